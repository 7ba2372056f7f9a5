"""Logits are computed from the first target on: with the same loss and gradients as all of them have."""

from __future__ import annotations

import numpy as np
import pytest
from decoders import tiny_decoder

from minipeft.autograd import functional
from minipeft.data import IGNORE, Batch, TokenRows
from minipeft.peft import LoraConfig, get_peft_model
from minipeft.training import evaluate_tokens
from minipeft.training.targets import logits_and_targets


def rows():
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(0, 250, n).astype(np.int32) for n in (9, 12, 10))
    labels = tuple(np.where(np.arange(len(r)) < len(r) - 3, IGNORE, r[::-1]).astype(np.int32) for r in ids)
    return TokenRows(ids, labels)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_and_the_gradients_are_those_of_all_logits(family):
    batch = rows().batch([0, 1, 2], 0)
    found = []
    for cut in (True, False):
        model = get_peft_model(tiny_decoder(family), LoraConfig(r=2, lora_alpha=4)).train()
        for name, parameter in model.trainable_parameters().items():
            parameter.data[...] = 0.1 * len(name)
        if cut:
            logits, targets = logits_and_targets(model, batch)
            assert logits.shape[:2] == targets.shape == (3, 12 - 6)
        else:
            logits, targets = model(batch.input_ids, batch.attention_mask, batch.token_type_ids), batch.labels
        loss = functional.cross_entropy(logits, targets)
        loss.backward()
        found.append((float(loss.data), [p.grad.copy() for p in model.trainable_parameters().values()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_classes_and_full_rows_are_left_whole():
    model = tiny_decoder()
    batch = rows().batch([0, 1], 0)
    full = Batch(batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.input_ids)
    assert logits_and_targets(model, full)[0].shape[1] == 12


def test_the_likelihood_of_each_row_is_that_of_its_targets():
    model, data = tiny_decoder(), rows()
    found = evaluate_tokens(model, data, 0)
    for nats, ids, labels in zip(found.rows, data.ids, data.labels, strict=True):
        x = model(ids[None]).data[0].astype("float64")
        log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
        places = np.flatnonzero(labels != IGNORE)
        assert nats == pytest.approx(-log_p[places, labels[places]].sum(), rel=1e-4)
    assert found.targets == 9

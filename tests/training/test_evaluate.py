"""Evaluation: accuracy by hand, and everything it must not depend on or change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tiny import CLASSES, DATA, PAD, bits, disturb, take_steps, tiny_data, tiny_model

import minipeft as mp
from minipeft import UserError
from minipeft.backend import active
from minipeft.backend.workers import current_workers
from minipeft.data import EncodedSet
from minipeft.peft import AdapterConfig, IntrinsicConfig, LoraConfig, get_peft_model
from minipeft.training import Trainer, TrainingConfig, evaluate


def by_hand(model: Any, data: EncodedSet) -> tuple[list[int], list[float]]:
    """The class and the loss of each row, alone and without padding."""
    classes, losses = [], []
    model.eval()
    for encoded, label in zip(data.encodings, data.labels, strict=True):
        with mp.no_grad():
            row = model(encoded.input_ids[None], None, encoded.token_type_ids[None]).numpy()[0].astype(np.float64)
        classes.append(int(row.argmax()))
        losses.append(math.log(np.exp(row - row.max()).sum()) - (row[label] - row.max()))
    return classes, losses


def test_it_equals_the_score_by_hand() -> None:
    model = tiny_model()
    classes, losses = by_hand(model, DATA)
    score = evaluate(model, DATA, PAD)
    assert len(set(classes)) == CLASSES  # the rows are told apart
    assert score.predictions == classes
    assert score.accuracy == np.mean(np.array(classes) == DATA.labels)
    assert 0 < score.accuracy < 1
    assert score.loss == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    expected, score = evaluate(tiny_model(), DATA, PAD), evaluate(tiny_model(), DATA, PAD, batch_size)
    assert score.predictions == expected.predictions
    assert score.accuracy == expected.accuracy
    assert score.loss == pytest.approx(expected.loss, rel=1e-5)


@pytest.mark.parametrize("method", [None, LoraConfig(), IntrinsicConfig(d=60)])
@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_does_not_matter(workers: int, method: Any) -> None:
    model = tiny_model() if method is None else get_peft_model(tiny_model(), method)
    expected, score = evaluate(model, DATA, PAD, 8), evaluate(model, DATA, PAD, 8, workers)
    assert score.predictions == expected.predictions
    assert score.loss == pytest.approx(expected.loss, rel=1e-5)


def test_the_order_does_not_matter_and_predictions_follow_it() -> None:
    order = np.random.default_rng(0).permutation(len(DATA))
    shuffled = EncodedSet(tuple(DATA.encodings[i] for i in order), DATA.labels[order], DATA.lengths[order])
    expected, score = evaluate(tiny_model(), DATA, PAD), evaluate(tiny_model(), shuffled, PAD)
    assert score.predictions == [expected.predictions[i] for i in order]
    assert score.accuracy == expected.accuracy
    assert score.loss == pytest.approx(expected.loss, rel=1e-5)


def test_what_fills_the_batch_up_does_not_matter() -> None:
    assert evaluate(tiny_model(), DATA, 0).predictions == evaluate(tiny_model(), DATA, 17).predictions


@pytest.mark.parametrize("method", [None, LoraConfig(lora_dropout=0.5), AdapterConfig(4), IntrinsicConfig(d=60)])
def test_pitfall_dropout_still_on_in_evaluation(method: Any) -> None:
    def make(dropout: float) -> Any:
        model = tiny_model(dropout=dropout)
        if method is None:
            return model
        mp.seed(1)
        m = get_peft_model(model, method)
        disturb(m)
        return m

    with_dropout, without = make(0.5), make(0.0)
    assert evaluate(with_dropout, DATA, PAD) == evaluate(without.eval(), DATA, PAD)
    assert evaluate(with_dropout, DATA, PAD) == evaluate(with_dropout, DATA, PAD)


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_is_restored_in_every_module_also_after_an_error(mode: bool) -> None:
    m = get_peft_model(tiny_model(dropout=0.5), LoraConfig())
    m.train(mode)
    evaluate(m, DATA, PAD)
    assert {module.training for _, module in m.named_modules()} == {mode}
    with pytest.raises(UserError):
        evaluate(m, EncodedSet(DATA.encodings, DATA.labels + 1, DATA.lengths), PAD)
    assert {module.training for _, module in m.named_modules()} == {mode}


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_moves_and_nothing_is_recorded(workers: int) -> None:
    model = tiny_model()
    before = bits(model)
    call, seen = model.forward, active().shared((workers, 2), "int32")  # of each worker: passes, and recorded ones

    def watched(*inputs: Any) -> mp.Tensor:
        logits = call(*inputs)
        seen[current_workers().rank] += (1, logits.requires_grad)
        return logits

    model.forward = watched
    evaluate(model, DATA, PAD, 8, workers)
    assert seen[:, 0].sum() == len(DATA) / 8
    assert seen[:, 0].all()
    assert not seen[:, 1].any()
    assert bits(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluating_between_two_epochs_does_not_change_the_training() -> None:
    ends = []
    for peek in (False, True):
        m = get_peft_model(tiny_model(dropout=0.1), LoraConfig(lora_dropout=0.1))
        on_step = (lambda *_, m=m: evaluate(m, DATA, PAD)) if peek else None
        Trainer(m, DATA, PAD, TrainingConfig(lr=0.01, epochs=2, batch_size=8), on_step=on_step).run()
        ends.append(bits(m))
    assert ends[0] == ends[1]


def test_training_shows_in_the_score_of_the_trained_rows() -> None:
    m = get_peft_model(tiny_model(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    before = evaluate(m, DATA, PAD)
    Trainer(m, DATA, PAD, TrainingConfig(lr=0.02, epochs=20, batch_size=8)).run()
    after = evaluate(m, DATA, PAD)
    assert after.accuracy > max(0.9, before.accuracy)
    assert after.loss < before.loss
    m.merge_adapter()
    merged = evaluate(m, DATA, PAD)
    assert merged.predictions == after.predictions


def test_a_merged_model_is_evaluated_in_training_mode_too() -> None:
    m = get_peft_model(tiny_model(), LoraConfig())
    take_steps(m)
    m.merge_adapter()
    m.train()
    assert len(evaluate(m, DATA, PAD).predictions) == len(DATA)


def test_no_rows() -> None:
    empty = EncodedSet((), np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32))
    with pytest.raises(UserError, match="no rows"):
        evaluate(tiny_model(), empty, PAD)


def test_a_label_that_is_no_class_of_the_model() -> None:
    with pytest.raises(UserError, match=f"class {CLASSES}"):
        evaluate(tiny_model(), EncodedSet(DATA.encodings, DATA.labels + 1, DATA.lengths), PAD)


def test_one_row() -> None:
    one = tiny_data(rows=1)
    score = evaluate(tiny_model(), one, PAD)
    assert score.accuracy in (0.0, 1.0)
    assert len(score.predictions) == 1

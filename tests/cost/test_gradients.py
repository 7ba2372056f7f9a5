"""The gradient's length in each layer."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import LAYERS, loss_of, tiny_model

from minipeft.cost import gradient_norms
from minipeft.peft import AdapterConfig, FullConfig, HeadConfig, IntrinsicConfig, LoraConfig, TopKConfig, get_peft_model

BLOCKS = [f"blocks.{i}" for i in range(LAYERS)]


def norms_of(config):
    m = get_peft_model(tiny_model(), config)
    loss_of(m).backward()
    return m, gradient_norms(m)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (FullConfig(), ["embed", *BLOCKS, "head"]),
        (TopKConfig(k=1), [BLOCKS[-1], "head"]),
        (AdapterConfig(bottleneck=4), [*BLOCKS, "head"]),
        (LoraConfig(r=2), [*BLOCKS, "head"]),
        (HeadConfig(), ["head"]),
        (IntrinsicConfig(d=8), ["head", "method"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_the_layers_are_those_that_are_trained_and_their_gradients_make_up_the_whole(config, layers):
    m, norms = norms_of(config)
    assert list(norms) == layers
    assert all(norm > 0 for norm in norms.values())
    whole = np.concatenate([p.grad.reshape(-1) for p in m.trainable_parameters().values()])
    assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(np.linalg.norm(whole), rel=1e-5)


def test_freezing_changes_no_gradient_that_is_left():
    full, top = norms_of(FullConfig())[1], norms_of(TopKConfig(k=1))[1]
    assert top["head"] == pytest.approx(full["head"], rel=1e-5)
    assert top[BLOCKS[-1]] == pytest.approx(full[BLOCKS[-1]], rel=1e-5)
    assert full[BLOCKS[0]] > 0


def test_before_a_backward_pass_there_is_no_gradient():
    assert set(gradient_norms(get_peft_model(tiny_model(), FullConfig())).values()) == {0.0}

"""Adapters: where they sit, what they compute, how they start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import erf
from tiny import BATCH, LAYERS, D, bits, disturb, logits, take_steps, tiny_model

from minipeft import Tensor, UserError
from minipeft.autograd.saved import count_nodes
from minipeft.nn import Block, Linear
from minipeft.peft import AdapterConfig, get_peft_model

R = 5
X = np.random.default_rng(2).standard_normal((2, 4, D)).astype(np.float32)
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}


def blocks(norm_first: bool = False, **settings: Any) -> tuple[Block, Block]:
    """The second block of a base, and the same one with adapters that have left their starting point."""
    base = tiny_model(norm_first=norm_first)
    m = get_peft_model(tiny_model(norm_first=norm_first), AdapterConfig(bottleneck=R, **settings))
    for parameter in m.model.head.parameters():
        parameter.requires_grad = False
    disturb(m, std=0.3)
    return base.blocks[1], m.model.blocks[1]


def adapted(adapter: Any, h: np.ndarray, activation: str = "gelu") -> np.ndarray:
    """f(h W_down + b_down) W_up + b_up, by hand."""
    down, up = adapter.down, adapter.up
    inner = ACTIVATIONS[activation](h @ down.weight.numpy() + down.bias.numpy())
    return inner @ up.weight.numpy() + up.bias.numpy()


def close(tensor: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_houlsby_sits_after_attention_and_after_the_feed_forward_part(activation: str, norm_first: bool) -> None:
    base, block = blocks(norm_first, placement="houlsby", activation=activation)
    attended, fed = base.attend(Tensor(X)).numpy(), base.feed_forward(Tensor(X)).numpy()
    close(block.attend(Tensor(X)), attended + adapted(block.attn_adapter, attended, activation))
    close(block.feed_forward(Tensor(X)), fed + adapted(block.mlp_adapter, fed, activation))


def test_pfeiffer_sits_after_the_feed_forward_part_alone() -> None:
    base, block = blocks(placement="pfeiffer")
    fed = base.feed_forward(Tensor(X)).numpy()
    assert np.array_equal(block.attend(Tensor(X)).numpy(), base.attend(Tensor(X)).numpy())
    close(block.feed_forward(Tensor(X)), fed + adapted(block.mlp_adapter, fed))


def test_parallel_reads_the_input_of_the_feed_forward_part() -> None:
    base, block = blocks(placement="parallel")
    assert np.array_equal(block.attend(Tensor(X)).numpy(), base.attend(Tensor(X)).numpy())
    close(block.feed_forward(Tensor(X)), base.feed_forward(Tensor(X)).numpy() + adapted(block.mlp_adapter, X))


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_the_adapter_comes_before_the_residual_sum_and_the_norm(placement: str) -> None:
    base, block = blocks(placement=placement)
    attended = block.attend(Tensor(X)).numpy()
    middle = base.attn_norm(Tensor(X + attended)).numpy()
    fed = block.feed_forward(Tensor(middle)).numpy()
    close(block(Tensor(X)), base.mlp_norm(Tensor(middle + fed)).numpy())


def test_it_starts_with_up_and_biases_zero_and_down_not() -> None:
    """Down and up both zero would never train (the pitfall of LoRA with A = B = 0)."""
    m = get_peft_model(tiny_model(), AdapterConfig(bottleneck=R))
    starts = set()
    for block in m.model.blocks:
        for adapter in (block.attn_adapter, block.mlp_adapter):
            assert adapter.down.weight.shape == (D, R)
            assert adapter.up.weight.shape == (R, D)
            assert (adapter.down.weight.numpy() != 0).all()
            for zero in (adapter.down.bias, adapter.up.weight, adapter.up.bias):
                assert not zero.numpy().any()
            starts.add(adapter.down.weight.numpy().tobytes())
    assert len(starts) == 2 * LAYERS  # no two start alike


def test_every_block_is_adapted_and_every_part_of_the_base_keeps_its_name_and_bits() -> None:
    base = tiny_model()
    before = bits(base)
    layers = {name: module for name, module in base.named_modules() if isinstance(module, Linear)}
    m = get_peft_model(base, AdapterConfig(bottleneck=R))
    after = bits(m.model)
    assert {name: after[name] for name in before} == before
    assert {name.split(".")[1] for name in after if "_adapter." in name} == {str(n) for n in range(LAYERS)}
    assert all(m.model.get_submodule(name) is layer for name, layer in layers.items())  # nothing is copied


def test_train_norms_trains_the_norms_of_the_blocks_and_not_the_embeddings() -> None:
    m = get_peft_model(tiny_model(), AdapterConfig(bottleneck=R, train_norms=True))
    norms = {name for name in m.trainable_parameters() if "norm" in name}
    assert norms == {
        f"blocks.{n}.{part}_norm.{w}" for n in range(LAYERS) for part in ("attn", "mlp") for w in ("weight", "bias")
    }
    before = bits(m)
    take_steps(m)
    assert {name for name, value in bits(m).items() if before[name] != value and "norm" in name} == {
        f"model.{n}" for n in norms
    }


def test_switched_off_it_costs_nothing() -> None:
    m = get_peft_model(tiny_model(), AdapterConfig(bottleneck=R))
    disturb(m)
    head_only = tiny_model()
    for name, parameter in head_only.named_parameters():
        parameter.requires_grad = name.startswith("head.")
    with m.disable_adapter():
        assert count_nodes(m(BATCH.input_ids)) == count_nodes(head_only(BATCH.input_ids))
    assert count_nodes(m(BATCH.input_ids)) > count_nodes(head_only(BATCH.input_ids))


def test_the_bottleneck_narrows_to_R_numbers() -> None:
    _, block = blocks()
    change = adapted(block.mlp_adapter, np.random.default_rng(0).standard_normal((200, D)))
    s = np.linalg.svd(change - block.mlp_adapter.up.bias.numpy(), compute_uv=False)
    assert s[R - 1] > 1e-3 * s[0] > 1e3 * s[R]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck": 0}, "bottleneck=0"),
        ({"placement": "houslby"}, "houlsby"),
        ({"activation": "rellu"}, "relu"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdapterConfig(**settings)


def test_a_model_without_blocks() -> None:
    with pytest.raises(UserError, match="Linear"):
        get_peft_model(Linear(3, 3), AdapterConfig())


def test_pre_norm_models_start_exactly_too() -> None:
    before = logits(tiny_model(norm_first=True))
    for placement in ("houlsby", "pfeiffer", "parallel"):
        m = get_peft_model(tiny_model(norm_first=True), AdapterConfig(bottleneck=R, placement=placement))
        assert np.array_equal(logits(m), before)

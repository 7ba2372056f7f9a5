"""What training costs: operations and bytes, against formulas written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tiny import BATCH, CLASSES, FF, LAYERS, D, bits, loss_of, tiny_model

import minipeft as mp
from minipeft import Tensor
from minipeft.autograd import functional
from minipeft.cost import activation_bytes, count_flops, measure_step
from minipeft.nn import LayerNorm, Linear, Module
from minipeft.peft import (
    AdapterConfig,
    FullConfig,
    HeadConfig,
    IntrinsicConfig,
    LoraConfig,
    PeftConfig,
    TopKConfig,
    get_peft_model,
)

ROWS, SEQ = BATCH.input_ids.shape
N = ROWS * SEQ  # positions, padding included: it is multiplied as well


def flops(forward: Callable[[], Tensor]) -> tuple[int, int]:
    """Operations of the forward and of the backward pass."""
    with count_flops() as up:
        out = forward()
    with count_flops() as down:
        if out.requires_grad:
            out.backward(np.ones_like(out.data))
    return up.flops, down.flops


# ---- operations


@pytest.mark.parametrize(
    ("x_needs", "W_needs", "products"), [(True, True, 2), (True, False, 1), (False, True, 1), (False, False, 0)]
)
def test_a_linear_layer(x_needs: bool, W_needs: bool, products: int) -> None:
    """2·n·in·out forward; as much for dX and as much for dW, each where it is needed."""
    linear = Linear(7, 11)
    linear.weight.requires_grad = W_needs
    x = Tensor(np.ones((3, 5, 7), dtype=np.float32), requires_grad=x_needs)
    one = 2 * 15 * 7 * 11
    assert flops(lambda: linear(x)) == (one, products * one)


def test_a_batched_product() -> None:
    a, b = (Tensor(np.ones(shape, dtype=np.float32), requires_grad=True) for shape in ((2, 3, 4, 5), (2, 3, 5, 6)))
    one = 2 * (2 * 3) * 4 * 5 * 6
    assert flops(lambda: a @ b) == (one, 2 * one)


def test_attention_is_two_products_forward_and_four_backward() -> None:
    q = k = v = Tensor(np.ones((2, 5, 8), dtype=np.float32), requires_grad=True)
    one = 2 * 2 * 5 * 5 * 8  # (batch · heads) of (seq, d_h) @ (d_h, seq): the heads cancel
    for heads in (1, 2, 4):
        assert flops(lambda h=heads: functional.attention(q, k, v, h)) == (2 * one, 4 * one)


def projections(n: int) -> int:
    """Of all positions k and v, of n positions q and o, up and down."""
    return 2 * 2 * N * D * D + 2 * 2 * n * D * D + 2 * 2 * n * D * FF


def mixing(n: int) -> int:
    """Scores and mixing for the queries of n positions."""
    return 2 * 2 * n * SEQ * D


BLOCK_PARTS = projections(N) + mixing(N)
LAST_PARTS = projections(ROWS) + mixing(ROWS)  # the head reads the first position of each row alone
HEAD_PARTS = 2 * ROWS * D * D + 2 * ROWS * D * CLASSES
FORWARD = (LAYERS - 1) * BLOCK_PARTS + LAST_PARTS + HEAD_PARTS


def cost(config: PeftConfig, layers: int = LAYERS) -> tuple[int, int]:
    m = get_peft_model(tiny_model(layers=layers), config)
    step = measure_step(m, lambda: loss_of(m))
    return step.forward_flops, step.backward_flops


def test_a_whole_encoder_trained_in_full() -> None:
    """Every product has two in the backward pass: the well-known factor of three in all."""
    assert cost(FullConfig()) == (FORWARD, 2 * FORWARD)


def test_a_probe_on_frozen_features() -> None:
    """The classifier's dW alone: its input needs no gradient."""
    assert cost(HeadConfig()) == (FORWARD, 2 * ROWS * D * CLASSES)


@pytest.mark.parametrize("k", [0, 1, 2, LAYERS])
def test_top_k_pays_for_its_blocks_alone(k: int) -> None:
    """The lowest trained block needs no dX for its q, k and v; with k = 0 that is the pooler's dX."""
    q_rows = ROWS if k == 1 else N
    saved = 2 * 2 * N * D * D + 2 * q_rows * D * D if k else 2 * ROWS * D * D
    blocks = (k - 1) * BLOCK_PARTS + LAST_PARTS if k else 0
    expected = 2 * (blocks + HEAD_PARTS) - saved
    assert cost(TopKConfig(k)) == (FORWARD, expected)
    assert cost(TopKConfig(k), layers=LAYERS + 2)[1] == expected


@pytest.mark.parametrize("r", [1, 4])
def test_lora_pays_for_its_branches_and_not_for_dW(r: int) -> None:
    branch = 2 * r * (D + D)  # of one position: X A, then (X A) B
    branches = branch * ((2 * LAYERS - 1) * N + ROWS)  # of q and v; the last q has the first positions alone
    forward, backward = cost(LoraConfig(r=r))
    assert forward == FORWARD + branches
    # dX of every frozen product but those into the first block's q, k and v, and of its branches' A; all of attention
    frozen = (LAYERS - 1) * projections(N) + projections(ROWS) - 3 * 2 * N * D * D
    attention = 2 * ((LAYERS - 1) * mixing(N) + mixing(ROWS))
    first_k = 2 * N * SEQ * D  # the first block's keys need no gradient: dK is not computed
    assert backward == frozen + attention - first_k + 2 * HEAD_PARTS + 2 * branches - 2 * 2 * N * r * D


def test_a_merged_model_costs_what_the_base_does() -> None:
    for config in (LoraConfig(target_modules="all-linear"), IntrinsicConfig(d=40)):
        m = get_peft_model(tiny_model(), config)
        m.merge_adapter()
        with count_flops() as count, mp.no_grad():
            loss_of(m)
        assert count.flops == FORWARD


def test_the_count_goes_on_inside_the_block_and_stands_still_after_it() -> None:
    x = Tensor(np.ones((2, 3), dtype=np.float32))
    with count_flops() as outer:
        assert outer.flops == 0
        with count_flops() as inner:
            _ = x @ x.mT
        once = inner.flops
        assert once == outer.flops == 2 * 2 * 3 * 2
        _ = x @ x.mT
        assert inner.flops == once
        assert outer.flops == 2 * once
    _ = x @ x.mT
    assert outer.flops == 2 * once


# ---- bytes

ROWS_OF_X = 6
FLOAT = 4


class Stack(Module):
    """The parts given, one after the other."""

    def __init__(self, *parts: Module | Callable[[Tensor], Tensor]) -> None:
        self.parts = list(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def kept(model: Module, x_needs: bool = False, frozen: bool = False) -> float:
    """Floats that the tape keeps of each row of an input of width 8."""
    for parameter in model.parameters():
        parameter.requires_grad = not frozen
    x = Tensor(np.ones((ROWS_OF_X, 8), dtype=np.float32), requires_grad=x_needs)
    return activation_bytes(model(x), model) / (FLOAT * ROWS_OF_X)


def test_a_linear_layer_keeps_its_input_for_dW_and_its_weight_is_no_activation() -> None:
    assert kept(Stack(Linear(8, 5))) == 8
    assert kept(Stack(Linear(8, 5)), x_needs=True) == 8
    assert kept(Stack(Linear(8, 5)), x_needs=True, frozen=True) == 0
    assert kept(Stack(Linear(8, 5)), frozen=True) == 0


def test_two_layers_keep_both_inputs() -> None:
    assert kept(Stack(Linear(8, 5), Linear(5, 3))) == 8 + 5


def test_gelu_keeps_its_derivative_alone() -> None:
    assert kept(Stack(Linear(8, 5), functional.gelu)) == 8 + 5
    assert kept(Stack(functional.gelu), x_needs=True) == 8
    assert kept(Stack(functional.gelu)) == 0


def test_layer_norm_keeps_the_normalised_input_and_a_number_a_row() -> None:
    assert kept(Stack(LayerNorm(8)), x_needs=True) == 8 + 1
    assert kept(Stack(LayerNorm(8)), x_needs=True, frozen=True) == 8 + 1
    assert kept(Stack(LayerNorm(8)), frozen=True) == 0


def test_an_array_that_two_ops_keep_counts_once() -> None:
    class Twice(Module):
        def __init__(self) -> None:
            self.a, self.b = Linear(8, 5), Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    assert kept(Twice()) == 8


def test_a_sum_keeps_nothing_and_a_product_its_factors() -> None:
    model = Stack(Linear(8, 5))
    x = Tensor(np.ones((6, 8), dtype=np.float32), requires_grad=True)
    y = Tensor(np.ones((6, 8), dtype=np.float32), requires_grad=True)
    assert activation_bytes(x + y, model) == 0
    assert activation_bytes(x * y, model) == 2 * 6 * 8 * FLOAT
    assert activation_bytes(x * 2.0, model) == 0


def test_cross_entropy_keeps_one_array_of_the_logits_size() -> None:
    model = Stack(Linear(8, 5))
    x = Tensor(np.ones((6, 8), dtype=np.float32))
    loss = functional.cross_entropy(model(x), np.zeros(6, dtype=np.int32))
    assert activation_bytes(loss, model) == FLOAT * 6 * (8 + 5)


def test_flat_parameters_are_no_activations_either() -> None:
    """An optimizer makes the parameters views of one vector; what they weigh is still no activation."""
    model = tiny_model()
    before = activation_bytes(loss_of(model), model)
    mp.optim.AdamW(model.parameters())
    assert activation_bytes(loss_of(model), model) == before


def test_activations_grow_with_the_batch_and_parameters_do_not_count() -> None:
    model = tiny_model()
    one = activation_bytes(functional.cross_entropy(model(BATCH.input_ids[:1]), BATCH.labels[:1]), model)
    four = activation_bytes(functional.cross_entropy(model(BATCH.input_ids[:4]), BATCH.labels[:4]), model)
    assert four == pytest.approx(4 * one, rel=0.05)


def measure(config: PeftConfig) -> mp.cost.StepCost:
    m = get_peft_model(tiny_model(), config)
    return measure_step(m, lambda: loss_of(m))


def test_activations_fall_from_full_to_lora_to_the_top_block_to_the_head() -> None:
    order = [FullConfig(), LoraConfig(r=1), TopKConfig(1), HeadConfig()]
    activations = [measure(config).activations for config in order]
    assert sorted(activations, reverse=True) == activations
    assert len(set(activations)) == len(order)
    assert measure(TopKConfig(1)).activations < measure(TopKConfig(2)).activations < measure(FullConfig()).activations


@pytest.mark.parametrize(
    "config", [FullConfig(), TopKConfig(1), AdapterConfig(4), LoraConfig(), IntrinsicConfig(d=40, projection="dense")]
)
def test_the_peak_is_no_less_than_the_activations(config: PeftConfig) -> None:
    step = measure(config)
    assert step.peak >= step.activations > 0


def test_the_peak_sees_a_temporary_that_the_tape_does_not_keep() -> None:
    model = Stack(Linear(8, 5))
    x = Tensor(np.ones((6, 8), dtype=np.float32))

    def wasteful() -> Tensor:
        np.ones(1_000_000, dtype=np.float32).sum()
        return functional.cross_entropy(model(x), np.zeros(6, dtype=np.int32))

    step = measure_step(model, wasteful)
    assert step.peak >= 4_000_000
    assert step.activations == FLOAT * 6 * (8 + 5)


def test_measuring_moves_nothing_and_gives_frozen_weights_no_gradient() -> None:
    m = get_peft_model(tiny_model(), TopKConfig(1))
    before = bits(m)
    measure_step(m, lambda: loss_of(m))
    assert bits(m) == before
    for name, p in m.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


def test_the_figures_do_not_depend_on_what_ran_before() -> None:
    m = get_peft_model(tiny_model(), LoraConfig())
    first, second = (measure_step(m, lambda: loss_of(m)) for _ in range(2))
    assert (first.forward_flops, first.backward_flops, first.activations) == (
        second.forward_flops,
        second.backward_flops,
        second.activations,
    )
    assert first.peak == pytest.approx(second.peak, rel=0.05)

"""Top-K: which blocks are trained, and that nothing is recorded or computed below the cut."""

from __future__ import annotations

import itertools

import pytest
from tiny import BLOCK, EMBED, HEAD, LAYERS, TOTAL, D, bits, loss_of, take_steps, tiny_model

from minipeft import UserError
from minipeft.autograd.saved import count_nodes, saved_arrays
from minipeft.cost import activation_bytes, count_flops
from minipeft.nn import Linear
from minipeft.peft import FullConfig, TopKConfig, get_peft_model


def tape(layers: int, **settings: object) -> tuple[int, int, int]:
    """Nodes on the tape, bytes that it keeps, and operations of the backward pass."""
    m = get_peft_model(tiny_model(layers=layers), TopKConfig(**settings))
    loss = loss_of(m)
    nodes, kept = count_nodes(loss), sum(array.nbytes for array in saved_arrays(loss))
    with count_flops() as backward:
        loss.backward()
    return nodes, kept, backward.flops


@pytest.mark.parametrize("k", range(LAYERS + 1))
def test_pitfall_nothing_is_recorded_kept_or_computed_below_the_cut(k: int) -> None:
    assert tape(LAYERS, k=k) == tape(LAYERS + 1, k=k) == tape(LAYERS + 4, k=k)


def test_each_trained_block_costs_more() -> None:
    costs = [tape(LAYERS, k=k) for k in range(LAYERS + 1)]
    for one, next_one in itertools.pairwise(costs):
        assert all(a < b for a, b in zip(one, next_one, strict=True))


def test_with_the_embeddings_the_gradient_goes_all_the_way_down() -> None:
    shallow, deep = (tape(layers, k=1, train_embeddings=True) for layers in (LAYERS, LAYERS + 1))
    assert all(a < b for a, b in zip(shallow, deep, strict=True))


def test_the_tape_holds_no_weight_from_below_the_cut() -> None:
    m = get_peft_model(tiny_model(), TopKConfig(1))
    held = {id(array) for array in saved_arrays(loss_of(m))}
    below = [p for part in (m.model.embed, *m.model.blocks[:-1]) for p in part.parameters()]
    assert not held & {id(p.data if p.data.base is None else p.data.base) for p in below}
    assert activation_bytes(loss_of(m), m) < sum(array.nbytes for array in saved_arrays(loss_of(m)))


@pytest.mark.parametrize("k", range(LAYERS + 1))
def test_the_top_k_blocks_move_and_no_others(k: int) -> None:
    m = get_peft_model(tiny_model(), TopKConfig(k))
    before = bits(m)
    take_steps(m)
    after = bits(m)
    moved = {name.split(".")[2] for name in before if ".blocks." in name and before[name] != after[name]}
    assert moved == {str(n) for n in range(LAYERS - k, LAYERS)}
    assert m.count_parameters().method == k * BLOCK


def test_block_count_is_that_of_the_docstring_for_a_fourfold_inner_width() -> None:
    m = get_peft_model(tiny_model(d_ff=4 * D), TopKConfig(2))
    assert m.count_parameters().method == 2 * (12 * D**2 + 13 * D)


def test_all_blocks_and_the_embeddings_are_full_fine_tuning() -> None:
    top = get_peft_model(tiny_model(), TopKConfig(LAYERS, train_embeddings=True))
    full = get_peft_model(tiny_model(), FullConfig())
    assert top.count_parameters() == full.count_parameters()
    assert top.count_parameters().trainable == TOTAL
    take_steps(top, weight_decay=0.1)
    take_steps(full, weight_decay=0.1)
    assert bits(top) == bits(full)


@pytest.mark.parametrize("final", [True, False])
def test_the_final_norm_of_a_pre_norm_model(final: bool) -> None:
    m = get_peft_model(tiny_model(norm_first=True), TopKConfig(1, train_final_norm=final))
    assert m.count_parameters().method == BLOCK + 2 * D * final
    assert m.model.final_norm.weight.requires_grad == final


def test_embeddings_alone() -> None:
    assert get_peft_model(tiny_model(), TopKConfig(0, train_embeddings=True)).count_parameters().method == EMBED


@pytest.mark.parametrize("train_head", [True, False])
def test_the_head(train_head: bool) -> None:
    m = get_peft_model(tiny_model(), TopKConfig(1, train_head=train_head))
    assert m.count_parameters().head == HEAD * train_head
    before = bits(m)
    take_steps(m)
    after = bits(m)
    assert all((before[name] != after[name]) == train_head for name in before if ".head." in name)


@pytest.mark.parametrize("k", [-1, LAYERS + 1, 100])
def test_a_k_that_the_model_does_not_have(k: int) -> None:
    with pytest.raises(UserError, match=rf"k={k}.*0 to {LAYERS}"):
        get_peft_model(tiny_model(), TopKConfig(k))


def test_a_model_without_blocks() -> None:
    with pytest.raises(UserError, match="Linear"):
        get_peft_model(Linear(3, 3), TopKConfig(1))

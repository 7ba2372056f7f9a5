"""The tree of modules: names, state, and putting one part in another's place."""

from __future__ import annotations

import numpy as np
import pytest

from minipeft.errors import UserError
from minipeft.nn import Dropout, LayerNorm, Linear, Module, Parameter


class Pair(Module):
    """Two layers and a list of two more; `again` is the first one a second time."""

    def __init__(self) -> None:
        self.first = Linear(3, 3)
        self.second = Linear(3, 2, bias=False)
        self.blocks = [LayerNorm(3), Dropout(0.5)]
        self.scale = Parameter(np.ones(1, dtype="float32"))
        self.again = self.first
        self.nothing = None
        self.size = 3


class Tied(Module):
    """One table, used as the embedding and as the output."""

    def __init__(self) -> None:
        self.table = Parameter(np.ones((5, 2), dtype="float32"))
        self.output = Linear(2, 5)
        self.output.weight = self.table


NAMES = ["scale", "first.weight", "first.bias", "second.weight", "blocks.0.weight", "blocks.0.bias"]


def filled(state, value):
    return {name: np.full_like(array, value) for name, array in state.items()}


def copied(module):
    return {name: array.copy() for name, array in module.state_dict().items()}


def unchanged(module, before):
    for name, array in module.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


# ---- names


def test_parameters_have_dotted_names_and_come_once():
    pair = Pair()
    assert [name for name, _ in pair.named_parameters()] == NAMES
    assert len(list(pair.parameters())) == len(NAMES)
    assert dict(pair.named_parameters())["first.weight"] is pair.first.weight


def test_tied_parameters_count_once():
    tied = Tied()
    assert [name for name, _ in tied.named_parameters()] == ["table", "output.bias"]
    assert sum(p.numel() for p in tied.parameters()) == 15
    tied.load_state_dict(filled(tied.state_dict(), 2.0))
    assert (tied.output.weight.data == 2).all()
    tied.astype("float64")
    assert tied.output.weight is tied.table
    assert tied.table.dtype == np.float64


def test_modules_have_dotted_names():
    pair = Pair()
    names = dict(pair.named_modules())
    assert list(names) == ["", "first", "second", "blocks.0", "blocks.1", "again"]
    assert names[""] is pair
    assert pair.get_submodule("blocks.1") is pair.blocks[1]
    assert pair.get_submodule("") is pair
    assert [name for name, _ in pair.first.named_modules("a.b")] == ["a.b"]


@pytest.mark.parametrize("path", ["third", "blocks.2", "blocks", "first.weight", "first."])
def test_a_module_that_is_not_there(path):
    pair = Pair()
    with pytest.raises(UserError, match=f"no module '{path}' in Pair"):
        pair.get_submodule(path)
    with pytest.raises(UserError, match=f"no module '{path}' in Pair"):
        pair.set_submodule(path, Dropout(0.1))
    assert list(dict(pair.named_modules())) == ["", "first", "second", "blocks.0", "blocks.1", "again"]


def test_set_submodule_in_an_attribute_a_list_and_further_down():
    outer, pair = Module(), Pair()
    outer.parts = [pair]
    new = Linear(3, 7)
    outer.set_submodule("parts.0.second", new)
    assert pair.second is new
    outer.set_submodule("parts.0.blocks.1", new)
    assert pair.blocks[1] is new
    outer.set_submodule("parts.0", new)
    assert outer.parts == [new]


def test_the_root_cannot_be_replaced():
    pair = Pair()
    with pytest.raises(UserError, match="itself"):
        pair.set_submodule("", Dropout(0.1))


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Pair has no forward"):
        Pair()(1)


# ---- state


def test_train_and_eval_reach_everything():
    pair = Pair()
    assert all(m.training for _, m in pair.named_modules())
    assert pair.eval() is pair
    assert not any(m.training for _, m in pair.named_modules())
    pair.train()
    assert all(m.training for _, m in pair.named_modules())
    assert Pair().training, "one module's mode is not another's"


def test_state_dict_round_trip_writes_in_place():
    source, target = Pair(), Pair()
    for p in source.parameters():
        p.data[...] = np.random.default_rng(p.numel()).standard_normal(p.shape)
    arrays = {name: p.data for name, p in target.named_parameters()}
    target.load_state_dict(source.state_dict())
    for name, p in target.named_parameters():
        assert p.data is arrays[name], "views of a parameter stay true"
        np.testing.assert_array_equal(p.data, source.state_dict()[name])
    source.first.weight.data[...] = 9
    assert (target.first.weight.data != 9).all(), "the values are copied"


def test_load_state_dict_converts_to_the_dtype_of_the_model():
    pair = Pair().astype("float64")
    pair.load_state_dict({name: array.astype("float32") for name, array in filled(pair.state_dict(), 0.5).items()})
    assert all(p.dtype == np.float64 for p in pair.parameters())
    assert pair.scale.data.tolist() == [0.5]


def replaced(name, array):
    return lambda state: state | {name: array}


def without(*names):
    return lambda state: {k: v for k, v in state.items() if k not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.0.bias"), r"do not fit Pair: missing 1 \(blocks\.0\.bias\)\.$"),
        (without(*NAMES[:4]), r"missing 4 \(first\.bias, first\.weight, scale, \.\.\.\)"),
        (replaced("blocks.0.beta", np.zeros(3)), r"unknown 1 \(blocks\.0\.beta\)"),
        (lambda s: without("scale")(s) | {"scales": s["scale"]}, r"missing 1 \(scale\); unknown 1 \(scales\)"),
        (replaced("blocks.0.bias", np.zeros((1, 3))), r"blocks\.0\.bias has shape \(1, 3\) in the file, \(3,\) here"),
        (replaced("blocks.0.bias", np.zeros(1)), r"blocks\.0\.bias has shape \(1,\)"),  # it would broadcast
        (replaced("blocks.0.bias", np.zeros(3, dtype="int64")), r"blocks\.0\.bias is int64 .* weights are floats"),
        (lambda state: {}, "missing 6"),
    ],
)
def test_load_state_dict_errors_name_the_thing_and_leave_everything_untouched(change, message):
    pair = Pair()
    before = copied(pair)
    state = change(filled(before, 7.0))
    with pytest.raises(UserError, match=message):
        pair.load_state_dict(state)
    unchanged(pair, before)


def test_astype_converts_every_parameter_and_drops_gradients():
    pair = Pair()
    pair.second.weight.requires_grad = False
    before = copied(pair)
    pair.scale.grad = np.ones(1, dtype="float32")
    assert pair.astype("float64") is pair
    assert all(p.dtype == np.float64 for p in pair.parameters())
    assert pair.scale.grad is None
    assert not pair.second.weight.requires_grad
    unchanged(pair, before)

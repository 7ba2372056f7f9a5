"""Every fused function: its value against the formula, its gradient against finite differences, and its refusals."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from minipeft.autograd import Tensor, functional, gradcheck
from minipeft.autograd import functional as F
from minipeft.backend import random
from minipeft.errors import UserError

rng = np.random.default_rng(0)
NOT_DIFFERENTIABLE = {"check_range"}


class Case(NamedTuple):
    """A function of Tensors of these shapes."""

    function: str
    what: str
    f: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]


def at_a_fixed_step(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`f` with the dropout masks of step 3 at every call: finite differences need the same function twice."""

    def fixed(*inputs: Tensor) -> Tensor:
        random.at_step(3)
        return f(*inputs)

    return fixed


def attention(heads: int, **options) -> Callable[..., Tensor]:
    return at_a_fixed_step(lambda q, k, v: F.attention(q, k, v, heads, **options))


MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 1, 1]])
IDS = np.array([[1, 4, 1], [0, 1, 4]])

CASES = [
    *(
        Case("linear", "bias" if len(shapes) == 3 else "no bias", F.linear, shapes)
        for x in [(3,), (1, 3), (4, 3), (2, 1, 3), (2, 4, 2, 3)]
        for shapes in [(x, (3, 5), (5,)), (x, (3, 5))]
    ),
    Case("linear", "1 to 1", F.linear, ((7, 1), (1, 1), (1,))),
    *(Case("layer_norm", "bias", F.layer_norm, (x, (4,), (4,))) for x in [(4,), (1, 4), (3, 4), (2, 1, 4)]),
    Case("layer_norm", "no bias", lambda x, w: F.layer_norm(x, w, None, 1e-12), ((3, 4), (4,))),
    *(Case("rms_norm", "", F.rms_norm, (x, (4,))) for x in [(4,), (1, 4), (3, 4), (2, 1, 4)]),
    Case("rms_norm", "one axis of length 1", lambda x, w: F.rms_norm(x, w, 0.1), ((3, 1), (1,))),
    *(
        Case("gelu", form, lambda x, form=form: F.gelu(x, form), (shape,))
        for form in ("none", "tanh")
        for shape in [(1,), (5,), (2, 1, 4)]
    ),
    *(Case("silu", "", F.silu, (shape,)) for shape in [(), (1,), (5,), (2, 1, 4)]),
    *(Case("swiglu", "", F.swiglu, (shape, shape)) for shape in [(1,), (5,), (2, 1, 4)]),
    *(Case("unembed", "", F.unembed, (x, (6, 3))) for x in [(3,), (1, 3), (2, 4, 3)]),
    *(Case("softmax", "", F.softmax, (shape,)) for shape in [(1,), (5,), (1, 4), (2, 3, 4), (3, 1)]),
    *(
        Case("cross_entropy", what, lambda x, y=y, o=o: F.cross_entropy(x, np.array(y), **o), (shape,))
        for what, shape, y, o in [
            ("mean", (3, 4), [0, 3, 1], {}),
            ("sum", (3, 4), [0, 3, 1], {"reduction": "sum"}),
            ("one row", (1, 2), [1], {}),
            ("one class", (2, 1), [0, 0], {}),
            ("0-d target", (4,), 2, {}),
            ("3-d", (2, 3, 4), [[0, 1, 2], [3, 3, 3]], {}),
            ("ignored", (4, 3), [0, -100, 2, -100], {}),
            ("ignored sum", (4, 3), [0, 1, 2, 1], {"ignore_index": 1, "reduction": "sum"}),
        ]
    ),
    *(
        Case("embedding", str(ids.shape), lambda w, ids=ids: F.embedding(w, ids), ((5, 3),))
        for ids in [np.array([2]), np.array([[3, 3, 3]]), IDS, IDS.astype("int32"), np.array(2)]
    ),
    *(
        Case("dropout", f"p={p}", at_a_fixed_step(lambda x, p=p: F.dropout(x, p)), (shape,))
        for p in (0.0, 0.3)
        for shape in [(1,), (6, 5)]
    ),
    Case("dropout", "off", lambda x: F.dropout(x, 0.5, training=False) * 1.0, ((6, 5),)),
    *(
        Case("attention", what, attention(heads, **o), shapes)
        for what, heads, o, shapes in [
            ("one head", 1, {}, ((2, 5, 4),) * 3),
            ("two heads", 2, {}, ((2, 5, 4),) * 3),
            ("heads of width 1", 4, {}, ((1, 2, 4),) * 3),
            ("one position", 2, {}, ((3, 1, 4),) * 3),
            ("mask", 2, {"mask": MASK}, ((2, 5, 4),) * 3),
            ("causal", 2, {"causal": True}, ((2, 5, 4),) * 3),
            ("causal mask", 2, {"causal": True, "mask": MASK}, ((2, 5, 4),) * 3),
            ("few queries", 2, {"mask": MASK}, ((2, 3, 4), (2, 5, 4), (2, 5, 4))),
            ("few causal queries", 2, {"causal": True}, ((2, 3, 4), (2, 5, 4), (2, 5, 4))),
            ("dropout", 2, {"dropout_p": 0.4, "mask": MASK}, ((2, 5, 4),) * 3),
            ("two groups", 4, {"kv_heads": 2, "causal": True, "mask": MASK}, ((2, 5, 8), (2, 5, 4), (2, 5, 4))),
            ("one group", 3, {"kv_heads": 1, "dropout_p": 0.3}, ((1, 2, 6), (1, 4, 2), (1, 4, 2))),
        ]
    ),
]


def name_of(case: Case) -> str:
    return f"{case.function}-{case.what}-{'-'.join('x'.join(map(str, s)) or '0d' for s in case.shapes)}"


def draw(shape: tuple[int, ...], grad: bool = True, dtype: str = "float64") -> Tensor:
    return Tensor(np.asarray(rng.standard_normal(shape)).astype(dtype), requires_grad=grad)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_gradient(case):
    gradcheck(case.f, *(draw(shape) for shape in case.shapes))
    for which in range(len(case.shapes)):
        if len(case.shapes) > 1:
            gradcheck(case.f, *(draw(shape, grad=i == which) for i, shape in enumerate(case.shapes)))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_float32_in_float32_out_and_back(case):
    inputs = [draw(shape, dtype="float32") for shape in case.shapes]
    out = case.f(*inputs)
    out.backward(np.ones(out.shape, dtype="float32"))
    assert out.dtype == np.float32
    for t in inputs:
        assert t.grad.dtype == np.float32
        assert t.grad.shape == t.shape


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_inputs_are_only_read(case):
    inputs = [draw(shape) for shape in case.shapes]
    before = [t.data.copy() for t in inputs]
    out = case.f(*inputs)
    value, g = out.data.copy(), np.ones(out.shape)
    out.backward(g)
    for t, then in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(t.data, then)
    np.testing.assert_array_equal(out.data, value)
    np.testing.assert_array_equal(g, np.ones(out.shape))


def test_every_public_function_stands_in_the_table():
    public = {
        name
        for name, f in inspect.getmembers(functional, inspect.isfunction)
        if f.__module__ == functional.__name__ and not name.startswith("_")
    }
    assert public == {case.function for case in CASES} | NOT_DIFFERENTIABLE


# ---- values


def test_gelu_values():
    x = np.array([-2.0, -1.0, 0.0, 0.5, 3.0])
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(F.gelu(Tensor(x)).data, exact, rtol=1e-15)
    assert F.gelu(Tensor(x), "tanh").data == pytest.approx(exact, abs=1e-3)
    assert F.gelu(Tensor(x), "tanh").data.tolist() != exact


def test_softmax_does_not_care_about_a_shift_and_sums_to_one():
    x = rng.standard_normal((3, 7))
    p = F.softmax(Tensor(x)).data
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(F.softmax(Tensor(x + 1e3)).data, p, rtol=1e-10)


def test_cross_entropy_of_uniform_logits_is_log_of_the_classes():
    assert F.cross_entropy(Tensor(np.zeros((5, 7))), np.arange(5)).item() == pytest.approx(math.log(7), rel=1e-14)


def test_cross_entropy_averages_over_the_targets_that_count():
    logits = rng.standard_normal((4, 3))
    kept = F.cross_entropy(Tensor(logits[[0, 2]]), np.array([0, 2])).item()
    x = Tensor(logits, requires_grad=True)
    loss = F.cross_entropy(x, np.array([0, -100, 2, -100]))
    assert loss.item() == pytest.approx(kept, rel=1e-14)
    loss.backward()
    np.testing.assert_array_equal(x.grad[[1, 3]], 0)


def test_embedding_adds_up_the_gradients_of_a_repeated_id():
    table = Tensor(np.zeros((5, 2)), requires_grad=True)
    F.embedding(table, IDS).backward(np.ones((2, 3, 2)))
    np.testing.assert_array_equal(table.grad[:, 0], [1, 3, 0, 0, 2])


# ---- dropout


def test_dropout_keeps_the_mean_and_scales_what_it_keeps():
    x = Tensor(np.ones((400, 500)), requires_grad=True)
    y = F.dropout(x, 0.25)
    assert np.unique(y.data).tolist() == [0, 1 / 0.75]
    assert y.data.mean() == pytest.approx(1, abs=0.01)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, y.data, err_msg="the mask of the forward pass is the backward's")


def test_dropout_draws_another_mask_at_each_call_and_the_same_at_the_same_step():
    x = Tensor(np.ones(1000))
    random.at_step(5)
    first, second = F.dropout(x, 0.5).data, F.dropout(x, 0.5).data
    assert 0.4 < (first == second).mean() < 0.6
    random.at_step(5)
    np.testing.assert_array_equal(F.dropout(x, 0.5).data, first)


def test_dropout_that_is_off_is_the_input_itself_and_draws_no_key():
    x = Tensor(np.ones(10), requires_grad=True)
    random.at_step(5)
    key = random.dropout_key()
    random.at_step(5)
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x
    assert random.dropout_key() == key


# ---- attention


def qkv(batch=2, seq=5, d=4):
    return [Tensor(rng.standard_normal((batch, seq, d))) for _ in range(3)]


def test_attention_is_the_formula_head_by_head():
    q, k, v = qkv()
    out = np.empty((2, 5, 4))
    for b in range(2):
        for h in range(2):
            cut = slice(2 * h, 2 * h + 2)
            scores = q.data[b, :, cut] @ k.data[b, :, cut].T / math.sqrt(2)
            scores[:, MASK[b] == 0] = -np.inf
            p = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[b, :, cut] = p / p.sum(axis=-1, keepdims=True) @ v.data[b, :, cut]
    np.testing.assert_allclose(F.attention(q, k, v, 2, mask=MASK).data, out, rtol=1e-12)


def test_grouped_heads_are_repeated_keys_and_values():
    q, k, v = Tensor(rng.standard_normal((2, 5, 12))), *qkv()[1:]
    wide = [Tensor(t.data.reshape(2, 5, 2, 1, 2).repeat(3, axis=3).reshape(2, 5, 12)) for t in (k, v)]
    expected = F.attention(q, *wide, 6, causal=True, mask=MASK).data
    np.testing.assert_allclose(F.attention(q, k, v, 6, causal=True, mask=MASK, kv_heads=2).data, expected, rtol=1e-12)


@pytest.mark.parametrize("mask", [MASK, MASK.astype(bool), MASK.astype("uint8"), MASK * 7], ids=lambda m: str(m.dtype))
def test_what_is_masked_has_no_influence_and_gets_no_gradient(mask):
    q, k, v = qkv()
    k, v = Tensor(k.data, requires_grad=True), Tensor(v.data, requires_grad=True)
    out = F.attention(q, k, v, 2, mask=mask)
    hidden = MASK == 0
    k2, v2 = k.data.copy(), v.data.copy()
    k2[hidden], v2[hidden] = 9, -9
    np.testing.assert_array_equal(F.attention(q, Tensor(k2), Tensor(v2), 2, mask=mask).data, out.data)
    out.sum().backward()
    np.testing.assert_array_equal(k.grad[hidden], 0)
    np.testing.assert_array_equal(v.grad[hidden], 0)


def test_causal_attention_does_not_see_the_future():
    q, k, v = qkv()
    out = F.attention(q, k, v, 2, causal=True).data
    np.testing.assert_allclose(out[:, 0], v.data[:, 0], rtol=1e-14)
    for n in range(1, 5):
        cut = [Tensor(t.data[:, :n]) for t in (q, k, v)]
        np.testing.assert_allclose(F.attention(*cut, 2, causal=True).data, out[:, :n], rtol=1e-12)
    last = F.attention(Tensor(q.data[:, -2:]), k, v, 2, causal=True).data
    np.testing.assert_allclose(last, out[:, -2:], rtol=1e-12, err_msg="fewer queries are the last ones")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_that_may_see_nothing_is_finite(dtype, causal):
    q, k, v = (Tensor(t.data.astype(dtype), requires_grad=True) for t in qkv())
    out = F.attention(q, k, v, 2, mask=np.zeros((2, 5), dtype=int), causal=causal)
    out.sum().backward()
    assert np.isfinite(out.data).all()
    assert all(np.isfinite(t.grad).all() for t in (q, k, v))


def test_attention_gives_gradients_to_those_alone_that_need_one():
    for needs in range(1, 8):
        inputs = [Tensor(t.data, requires_grad=bool(needs >> i & 1)) for i, t in enumerate(qkv())]
        F.attention(*inputs, 2).sum().backward()
        assert [t.grad is not None for t in inputs] == [t.requires_grad for t in inputs]


# ---- refusals


def zeros(*shape):
    return Tensor(np.zeros(shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.linear(zeros(2, 3), zeros(4, 5)), r"linear: input \(2, 3\) does not fit weight \(4, 5\)"),
        (lambda: F.layer_norm(zeros(2, 3), zeros(4), None), r"layer_norm: the last axis of \(2, 3\) .* \(4,\)"),
        (lambda: F.rms_norm(zeros(2, 3), zeros(1)), r"rms_norm: the last axis of \(2, 3\) .* \(1,\)"),
        (lambda: F.gelu(zeros(2), "exact"), "'none' or 'tanh', not 'exact'"),
        (lambda: F.dropout(zeros(2), 1.0), r"probability in \[0, 1\), not 1\.0"),
        (lambda: F.dropout(zeros(2), -0.1), "not -0.1"),
        (lambda: F.attention(zeros(2, 3, 6), zeros(2, 3, 6), zeros(2, 3, 6), 4), "do not fit 4 heads"),
        (lambda: F.attention(zeros(2, 3, 4), zeros(2, 3, 6), zeros(2, 3, 6), 2), r"q \(2, 3, 4\), k \(2, 3, 6\)"),
        (lambda: F.attention(zeros(2, 3, 8), zeros(2, 3, 6), zeros(2, 3, 6), 4, kv_heads=3), "4 heads over 3"),
        (lambda: F.unembed(zeros(2, 3), zeros(3, 4)), r"input \(2, 3\) does not fit a table \(3, 4\)"),
        (lambda: F.attention(zeros(2, 3, 4), zeros(2, 5, 4), zeros(2, 4, 4), 2), r"v \(2, 4, 4\)"),
        (lambda: F.cross_entropy(zeros(2, 3), np.array([0])), r"targets \(1,\) do not fit logits \(2, 3\)"),
        (lambda: F.cross_entropy(zeros(2, 3), np.array([0, 3])), "class 3 is out of range; valid ones are 0 to 2"),
        (lambda: F.cross_entropy(zeros(2, 3), np.array([-1, 3])), "class -1 is out of range"),
        (lambda: F.cross_entropy(zeros(2, 3), np.array([-100, -100])), "every target is ignored"),
        (lambda: F.cross_entropy(zeros(2, 3), np.array([0, 1]), reduction="none"), "'mean' or 'sum', not 'none'"),
        (lambda: F.cross_entropy(zeros(2, 2), np.array([True, False])), "class: integers are needed, not bool"),
        (lambda: F.cross_entropy(zeros(2, 2), np.array([1.0, 0.0])), "class: integers are needed, not float64"),
        (lambda: F.embedding(zeros(5, 2), np.array([[0, 5]])), "token id 5 is out of range; valid ones are 0 to 4"),
        (lambda: F.embedding(zeros(5, 2), np.array([-1])), "token id -1 is out of range"),
        (lambda: F.embedding(zeros(5, 2), np.array([True] * 5)), "token id: integers are needed, not bool"),
        (lambda: F.embedding(zeros(5, 2), np.array([1.0])), "token id: integers are needed, not float64"),
    ],
)
def test_refusals_name_what_was_given(call, message):
    with pytest.raises(UserError, match=message):
        call()

"""Every op: its value against NumPy's, its gradient against finite differences."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest

from minipeft.autograd import Tensor, gradcheck, ops
from minipeft.errors import UserError

rng = np.random.default_rng(0)


class Case(NamedTuple):
    """An op on inputs of these shapes, and what NumPy says; `positive` for functions of positive numbers."""

    op: str
    f: Callable[..., Tensor]
    reference: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    positive: bool = False


PAIRS = [
    ((), ()),
    ((3,), (3,)),
    ((2, 3), ()),
    ((), (2, 3)),
    ((2, 3), (3,)),
    ((2, 3), (2, 1)),
    ((1, 3), (2, 1)),
    ((4, 1, 3), (2, 1)),
    ((1,), (5, 1, 1)),
    ((1, 1), (1, 1)),
]
ONES = [(), (1,), (5,), (1, 3), (2, 1, 4)]
PRODUCTS = [
    ((2, 3), (3, 4)),
    ((1, 1), (1, 1)),
    ((1, 5), (5, 1)),
    ((4, 1), (1, 3)),
    ((2, 5, 3), (3, 4)),
    ((2, 1, 5, 3), (3, 4)),
    ((2, 5, 3), (2, 3, 4)),
    ((5, 3), (2, 3, 4)),
    ((1, 5, 3), (2, 3, 4)),
    ((2, 5, 3), (1, 3, 4)),
    ((2, 1, 5, 3), (4, 3, 1)),
]
MASK = rng.random((2, 3)) < 0.5
FLAT = [((2, 3, 4), None), ((2, 3, 4), 1), ((2, 3, 4), -1), ((2, 3, 4), (0, 2)), ((1, 3), 0), ((4, 1), 1), ((), None)]
INDICES = [
    ((4,), 2),
    ((4,), -1),
    ((4,), slice(1, 3)),
    ((4, 3), slice(None, None, -2)),
    ((4, 3), (slice(None), 0)),
    ((4, 3), (2, 1)),
    ((2, 4, 3), (..., slice(1, 2))),
    ((2, 4, 3), (0, None, slice(2), -1)),
    ((4, 3), None),
    ((4, 3), ...),
    ((4, 3), slice(2, 2)),
]

CASES = [
    *(Case("add", ops.add, np.add, pair) for pair in PAIRS),
    *(Case("subtract", ops.subtract, np.subtract, pair) for pair in PAIRS),
    *(Case("multiply", ops.multiply, np.multiply, pair) for pair in PAIRS),
    *(Case("divide", ops.divide, np.divide, pair, True) for pair in PAIRS),
    *(Case("maximum", ops.maximum, np.maximum, pair) for pair in PAIRS),
    *(
        Case("where", lambda a, b: ops.where(MASK, a, b), lambda a, b: np.where(MASK, a, b), pair)
        for pair in [((2, 3), (2, 3)), ((), (2, 3)), ((2, 1), (1, 3)), ((1, 1), ())]
    ),
    *(
        Case("power", lambda a, n=n: ops.power(a, n), lambda a, n=n: np.power(a, float(n)), (shape,), True)
        for n in (2, 0.5, -1, 1, 3.7)
        for shape in ONES
    ),
    Case("power", lambda a: ops.power(a, 3), lambda a: a * a * a, ((4, 3),)),  # of negative numbers as well
    *(
        Case(f.__name__, f, g, (shape,), f in (ops.log, ops.sqrt))
        for f, g in [
            (ops.exp, np.exp),
            (ops.log, np.log),
            (ops.sqrt, np.sqrt),
            (ops.tanh, np.tanh),
            (ops.relu, lambda a: np.maximum(a, 0)),
        ]
        for shape in ONES
    ),
    *(Case("matmul", ops.matmul, np.matmul, pair) for pair in PRODUCTS),
    *(
        Case("reshape", lambda a, n=new: ops.reshape(a, n), lambda a, n=new: np.reshape(a, n), (old,))
        for old, new in [((2, 3), (6,)), ((2, 3), (-1, 1, 2)), ((1,), ()), ((), (1, 1)), ((4, 3), (3, 4))]
    ),
    *(
        Case("swapaxes", lambda a, i=i, j=j: ops.swapaxes(a, i, j), lambda a, i=i, j=j: np.swapaxes(a, i, j), (shape,))
        for shape, i, j in [((2, 3), 0, 1), ((2, 3, 4), -1, 0), ((2, 1, 4), 1, 1)]
    ),
    *(
        Case("transpose", lambda a, o=order: ops.transpose(a, o), lambda a, o=order: np.transpose(a, o), (shape,))
        for shape, order in [((2, 3), (1, 0)), ((2, 3, 4), (2, 0, 1)), ((2, 3, 4, 5), (-1, 0, -2, 1)), ((3,), (0,))]
    ),
    *(Case("getitem", lambda a, i=i: ops.getitem(a, i), lambda a, i=i: a[i], (shape,)) for shape, i in INDICES),
    *(
        Case(name, lambda *t, f=f, axis=axis: f(list(t), axis), lambda *t, g=g, axis=axis: g(t, axis=axis), shapes)
        for name, f, g, choices in [
            (
                "concatenate",
                ops.concatenate,
                np.concatenate,
                [
                    (0, ((2, 3), (1, 3), (4, 3))),
                    (-1, ((2, 1, 3), (2, 1, 1))),
                    (0, ((2,),)),
                    (1, ((2, 3), (2, 0), (2, 1))),
                ],
            ),
            (
                "stack",
                ops.stack,
                np.stack,
                [(0, ((), ())), (0, ((2, 3),) * 3), (-1, ((2, 3),) * 2), (1, ((2, 3),) * 2), (-2, ((1, 3),))],
            ),
        ]
        for axis, shapes in choices
    ),
    *(
        Case(name, lambda a, f=f, o=o: f(a, **o), lambda a, g=g, o=o: g(a, **o), (shape,))
        for name, f, g in [("sum", ops.sum, np.sum), ("mean", ops.mean, np.mean), ("max", ops.max, np.max)]
        for shape, axis in FLAT
        if not (name == "max" and isinstance(axis, tuple))
        for o in ({"axis": axis}, {"axis": axis, "keepdims": True})
    ),
]


def name_of(case: Case) -> str:
    return f"{case.op}-{'-'.join('x'.join(map(str, s)) or '0d' for s in case.shapes)}"


def inputs_of(case: Case, which: tuple[int, ...], dtype: str = "float64") -> list[Tensor]:
    """Inputs of which those in `which` require a gradient."""
    draw = np.random.default_rng([len(name_of(case)), *map(len, case.shapes)])
    values = [draw.standard_normal(shape) for shape in case.shapes]
    values = [np.abs(v) + 0.5 if case.positive else np.asarray(v) for v in values]
    return [Tensor(v.astype(dtype), requires_grad=i in which) for i, v in enumerate(values)]


every_case = pytest.mark.parametrize("case", CASES, ids=name_of)


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value(case, dtype):
    inputs = inputs_of(case, (), dtype)
    out = case.f(*inputs)
    expected = np.asarray(case.reference(*(t.data for t in inputs)))
    assert out.dtype == dtype
    assert out.shape == expected.shape
    np.testing.assert_allclose(out.data, expected, rtol=1e-5 if dtype == "float32" else 1e-13, atol=1e-6)


@every_case
def test_gradient(case):
    everything = tuple(range(len(case.shapes)))
    gradcheck(case.f, *inputs_of(case, everything))
    for which in combinations(everything, 1):
        gradcheck(case.f, *inputs_of(case, which))  # the others frozen


@every_case
def test_gradient_has_the_dtype_and_shape_of_its_parent(case):
    inputs = inputs_of(case, tuple(range(len(case.shapes))), "float32")
    out = case.f(*inputs)
    out.backward(np.ones(out.shape, dtype="float32"))
    for t in inputs:
        assert t.grad.dtype == np.float32
        assert t.grad.shape == t.shape


def test_every_public_op_stands_in_the_table():
    public = {
        name
        for name, f in inspect.getmembers(ops, inspect.isfunction)
        if f.__module__ == ops.__name__ and not name.startswith("_")
    }
    assert public == {case.op for case in CASES}


# ---- where the derivative jumps, and what finite differences cannot see


def gradient(f, *values):
    inputs = [Tensor(np.array(v, dtype="float64"), requires_grad=True) for v in values]
    f(*inputs).sum().backward()
    return [t.grad.tolist() for t in inputs]


def test_ties_share_the_gradient():
    assert gradient(ops.max, [3.0, 1.0, 3.0, 3.0]) == [[1 / 3, 0, 1 / 3, 1 / 3]]
    assert gradient(lambda a: ops.max(a, axis=0), [[1.0, 2.0], [1.0, 0.0]]) == [[[0.5, 1.0], [0.5, 0.0]]]
    assert gradient(ops.maximum, [1.0, 2.0, 0.0], [1.0, 0.0, 2.0]) == [[0.5, 1, 0], [0.5, 0, 1]]


def test_relu_at_zero_and_far_out():
    assert gradient(ops.relu, [-1.0, 0.0, 2.0]) == [[0, 0, 1]]
    assert ops.relu(Tensor(np.array([-np.inf, -1e300, np.inf]))).data.tolist() == [0, 0, np.inf]


def test_power_at_zero():
    assert gradient(lambda a: ops.power(a, 2), [0.0, -2.0]) == [[0, -4]]
    assert gradient(lambda a: ops.power(a, 1), [0.0, -2.0]) == [[1, 1]]


def test_where_lets_no_gradient_through_the_side_not_taken():
    a, b = (Tensor(np.array([1.0, 2.0]), requires_grad=True) for _ in range(2))
    ops.where(np.array([True, False]), a, b).backward(np.array([3.0, np.inf]))
    assert a.grad.tolist() == [3, 0]
    assert b.grad.tolist() == [0, np.inf]


@pytest.mark.parametrize("f", [ops.add, ops.subtract, ops.multiply, ops.divide, ops.maximum])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_a_number_or_an_array_is_a_constant_on_either_side(f, dtype, shape):
    x = np.asarray(rng.random(shape) + 0.5, dtype=dtype)
    for other in (2.0, 3, np.asarray(rng.random((2, 3)) + 1, dtype=dtype)):
        for left in (False, True):
            t = Tensor(x, requires_grad=True)
            out = f(other, t) if left else f(t, other)
            np_f = getattr(np, f.__name__)
            np.testing.assert_array_equal(out.data, np_f(other, x) if left else np_f(x, other))
            assert out.dtype == dtype
            out.sum().backward()
            assert t.grad.dtype == dtype
            assert t.grad.shape == shape


def test_tensors_operators_and_methods_are_the_ops():
    x = Tensor(np.array([[0.5, 2.0], [1.5, 0.1]]), requires_grad=True)
    y = Tensor(np.array([[1.0, 2.0], [3.0, 4.0]]))
    pairs = [
        (x + y, x.data + y.data),
        (1 + x, 1 + x.data),
        (x - y, x.data - y.data),
        (1 - x, 1 - x.data),
        (x * y, x.data * y.data),
        (2 * x, 2 * x.data),
        (x / y, x.data / y.data),
        (1 / x, 1 / x.data),
        (-x, -x.data),
        (x**2, x.data**2),
        (x @ y, x.data @ y.data),
        (x[1], x.data[1]),
        (x.mT, x.data.T),
        (x.reshape(4), x.data.reshape(4)),
        (x.reshape(-1, 1), x.data.reshape(-1, 1)),
        (x.swapaxes(0, 1), x.data.T),
        (x.transpose(1, 0), x.data.T),
        (x.sum(axis=0), x.data.sum(axis=0)),
        (x.mean(axis=1, keepdims=True), x.data.mean(axis=1, keepdims=True)),
        (x.max(axis=0), x.data.max(axis=0)),
        (x.exp(), np.exp(x.data)),
        (x.log(), np.log(x.data)),
        (x.sqrt(), np.sqrt(x.data)),
        (x.tanh(), np.tanh(x.data)),
        (x.relu(), x.data),
    ]
    for ours, expected in pairs:
        np.testing.assert_allclose(ours.data, expected, rtol=1e-15)
        assert ours.requires_grad


# ---- errors


@pytest.mark.parametrize("f", [ops.add, ops.subtract, ops.multiply, ops.divide, ops.maximum])
def test_shapes_that_do_not_broadcast_are_named(f):
    with pytest.raises(UserError, match=rf"{f.__name__}: shapes \(2, 3\) and \(4,\) do not broadcast"):
        f(Tensor(np.zeros((2, 3))), Tensor(np.zeros(4)))
    with pytest.raises(UserError, match=r"\(2, 3\) and \(3, 2\)"):
        f(Tensor(np.zeros((2, 3))), np.zeros((3, 2)))


@pytest.mark.parametrize(("left", "right"), [((2, 3), (4, 3)), ((3,), (3, 4)), ((2, 3), (3,))], ids=str)
def test_matmul_names_the_shapes(left, right):
    with pytest.raises(UserError, match="matmul: ") as caught:
        ops.matmul(Tensor(np.zeros(left)), Tensor(np.zeros(right)))
    assert str(left) in str(caught.value)
    assert str(right) in str(caught.value)


def test_other_errors_name_what_was_given():
    x = Tensor(np.zeros((2, 3)))
    with pytest.raises(UserError, match=r"6 elements of shape \(2, 3\) do not fit shape \(4,\)"):
        x.reshape(4)
    for axes in ((0,), (0, 0), (0, 1, 2)):
        with pytest.raises(UserError, match=r"transpose: .* 2 axes of shape \(2, 3\)"):
            x.transpose(*axes)
    with pytest.raises(UserError, match="exponent is a Python number"):
        x**x
    for index in ([0, 1], np.array([0, 0]), (slice(None), np.array([True, False, True]))):
        with pytest.raises(UserError, match="getitem takes integers, slices"):
            x[index]

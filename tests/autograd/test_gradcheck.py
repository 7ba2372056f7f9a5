"""`gradcheck` itself: it lets right gradients pass, and shows both numbers of a wrong one."""

from __future__ import annotations

import re

import numpy as np
import pytest

from minipeft.autograd import Tensor, gradcheck, ops
from minipeft.autograd.gradcheck import GradientError
from minipeft.autograd.tensor import record
from minipeft.errors import UserError


def leaf(*shape, grad=True) -> Tensor:
    return Tensor(np.random.default_rng(shape).standard_normal(shape) + 0.0, requires_grad=grad)


def numbers(error: pytest.ExceptionInfo) -> tuple[float, float]:
    """What backward says, and what finite differences say."""
    found = re.search(r"backward says (\S+), finite differences say (\S+)\.$", str(error.value))
    assert found, str(error.value)
    return float(found[1]), float(found[2])


def test_right_gradients_pass():
    gradcheck(lambda x, y: (x * y).exp() + x, leaf(2, 3), leaf(3))
    gradcheck(lambda x: x.sum(), leaf(4, 1))
    gradcheck(lambda x: x, leaf())


def test_inputs_that_need_no_gradient_are_left_alone():
    x, constant = leaf(3), leaf(3, grad=False)
    before = x.data.copy(), constant.data.copy()
    gradcheck(lambda x, c: x * c, x, constant)
    assert constant.grad is None
    np.testing.assert_array_equal(x.data, before[0])
    np.testing.assert_array_equal(constant.data, before[1])


def test_a_gradient_left_from_before_does_not_count():
    x = leaf(3)
    x.grad = np.full(3, 1e6)
    gradcheck(lambda x: x * 2, x)


def test_a_wrong_sign():
    with pytest.raises(GradientError, match="argument 0: ") as error:
        gradcheck(lambda x: record(x.data * 2, (x, lambda g: -2 * g)), leaf(4))
    analytic, numeric = numbers(error)
    assert analytic == pytest.approx(-numeric, rel=1e-6)


def test_a_missing_factor():
    with pytest.raises(GradientError) as error:
        gradcheck(lambda x: record(np.tanh(x.data) * 3, (x, lambda g: g * (1 - np.tanh(x.data) ** 2))), leaf(4))
    analytic, numeric = numbers(error)
    assert numeric == pytest.approx(3 * analytic, rel=1e-6)


def test_a_small_error():
    with pytest.raises(GradientError):
        gradcheck(lambda x: record(x.data * 1.0, (x, lambda g: g * (1 + 1e-5))), leaf(4))


def test_one_wrong_element_of_many():
    def wrong(g):
        g = g.copy()
        g[123] *= 1.01
        return g

    with pytest.raises(GradientError):
        gradcheck(lambda x: record(x.data * 1.0, (x, wrong)), leaf(1000))


def test_a_forgotten_broadcast():
    def take_the_first_row(x, y):
        return record(x.data + y.data, (x, lambda g: g), (y, lambda g: g[0]))

    with pytest.raises(GradientError, match="argument 1: "):
        gradcheck(take_the_first_row, leaf(4, 3), leaf(3))


def test_wrong_for_the_second_argument_only():
    def divide(x, y):
        a, b = x.data, y.data
        return record(a / b, (x, lambda g: g / b), (y, lambda g: -g * a / b))

    with pytest.raises(GradientError, match="argument 1: ") as error:
        gradcheck(divide, leaf(5), leaf(5))
    analytic, numeric = numbers(error)
    assert analytic != pytest.approx(numeric, rel=1e-3)
    gradcheck(divide, leaf(5), leaf(5, grad=False))


def test_a_gradient_that_never_arrives():
    with pytest.raises(GradientError, match="argument 1: backward left no gradient; finite differences say"):
        gradcheck(lambda x, y: x * y.detach(), leaf(3), leaf(3))


def test_a_gradient_that_is_no_number():
    with pytest.raises(GradientError, match="nan"):
        gradcheck(lambda x: record(x.data * 1.0, (x, lambda g: g * np.nan)), leaf(3))


def test_what_it_refuses():
    with pytest.raises(UserError, match="no input requires a gradient"):
        gradcheck(lambda x: x * 1.0, leaf(3, grad=False))
    single = Tensor(np.zeros(3, dtype="float32"), requires_grad=True)
    with pytest.raises(UserError, match="argument 1 is float32; finite differences need float64"):
        gradcheck(ops.add, leaf(3), single)

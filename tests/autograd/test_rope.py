"""Rotary positions: the formula, the gradient, and what they are for: a product that knows the distance alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minipeft.autograd import Tensor, gradcheck
from minipeft.autograd.rope import rope
from minipeft.errors import UserError

rng = np.random.default_rng(0)


def turned(x: np.ndarray, heads: int, positions: np.ndarray, base: float) -> np.ndarray:
    """Number by number, as complex products."""
    out, half = np.empty_like(x), x.shape[-1] // heads // 2
    for b, s, h, i in np.ndindex(x.shape[0], x.shape[1], heads, half):
        p = positions[b, s] if positions.ndim == 2 else positions[s]
        one, two = 2 * h * half + i, 2 * h * half + half + i
        z = complex(x[b, s, one], x[b, s, two]) * np.exp(1j * p * base ** (-i / half))
        out[b, s, one], out[b, s, two] = z.real, z.imag
    return out


@pytest.mark.parametrize("positions", [np.arange(3), np.array([[0, 1, 2], [5, 5, 9]])], ids=["shared", "by row"])
def test_value_and_gradient(positions):
    x = Tensor(rng.standard_normal((2, 3, 12)), requires_grad=True)
    np.testing.assert_allclose(rope(x, 3, positions, 100.0).numpy(), turned(x.numpy(), 3, positions, 100.0), rtol=1e-12)
    gradcheck(lambda x: rope(x, 3, positions, 100.0), x)


def test_a_product_depends_on_the_distance_alone():
    q, k = (Tensor(np.tile(rng.standard_normal(8), (1, 6, 1))) for _ in range(2))
    scores = (rope(q, 1, np.arange(6), 50.0).numpy() @ rope(k, 1, np.arange(6), 50.0).numpy().swapaxes(1, 2))[0]
    for distance in range(-5, 6):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-10)
    assert not math.isclose(scores[0, 0], scores[0, 1])


def test_float32_stays_and_far_positions_are_exact():
    x = rng.standard_normal((1, 1, 8)).astype("float32")
    far = rope(Tensor(x), 1, np.array([8000]), 1e4).numpy()
    assert far.dtype == np.float32
    np.testing.assert_allclose(far, turned(x.astype("float64"), 1, np.array([8000]), 1e4), atol=1e-6)


def test_heads_need_an_even_width():
    with pytest.raises(UserError, match="2 heads of an even width do not fit a last axis of 6"):
        rope(Tensor(np.zeros((1, 1, 6))), 2, np.arange(1), 1e4)

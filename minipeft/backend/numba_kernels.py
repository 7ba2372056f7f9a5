"""The compiled loops of the Numba backend. Arrays are contiguous; row kernels take (n, d).

A compiled loop reads its inputs once and writes its outputs once; what NumPy keeps in a scratch block stays in registers.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numba
import numpy as np

from minipeft.backend.base import Array
from minipeft.backend.numpy_backend import ERF_A, ERF_P

compiled: Any = partial(numba.njit, cache=True, error_model="numpy")
# a + b·c may be rounded once; NaN and ∞ stay what they are.
# Not "arcp": with it 1/√x becomes an estimate and a Newton step, which makes NaN of 1/√∞.
loop: Any = partial(compiled, fastmath={"contract", "nsz"})
# A sum may also be taken in any order, or it could not be vectorised. Only where there is a sum: with this flag x·y·z is
# rounded in one of two ways, and an activation would have other bits beside its slope than alone.
sum_loop: Any = partial(compiled, fastmath={"reassoc", "contract", "nsz"})

# Constants have a dtype: with a float64 or an integer beside it, Numba would do a float32 loop in float64.
f32, i32, u32 = np.float32, np.int32, np.uint32
ZERO, HALF, ONE = f32(0), f32(0.5), f32(1)
INV_SQRT_2PI = f32(1 / math.sqrt(2 * math.pi))
PHI_P = f32(ERF_P / math.sqrt(2))
PHI_A = tuple(f32(a / 2) for a in ERF_A)
TANH_1, TANH_3 = f32(2 * math.sqrt(2 / math.pi)), f32(2 * math.sqrt(2 / math.pi) * 0.044715)
TANH_9 = f32(6 * math.sqrt(2 / math.pi) * 0.044715)

# Cephes, expf.c (S. Moshier): eˣ = 2ⁿ eʳ, n = round(x log₂ e), r = x - n ln 2 with ln 2 = LN2_HIGH + LN2_LOW
LOG2_E, LN2_HIGH, LN2_LOW = f32(1.44269504088896341), f32(0.693359375), f32(-2.12194440e-4)
CEPHES = (1.98756915e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
EXP_A = tuple(map(f32, CEPHES))
EXP_LOWEST, EXP_HIGHEST = f32(-87.336), f32(89)  # below eˣ is no normal float32, above it is ∞
ROUND = f32(1.5 * 2**23)  # a small number added to it is rounded to an integer, and found in the lowest bits
ROUND_BITS = ROUND.view(i32)
BIAS, MANTISSA, SIGN, REST, LEAST = i32(127), i32(23), i32(31), i32(2**31 - 1), i32(-(2**31))


@compiled(fastmath={"contract"})
def exp(x: Array) -> Array:
    """eˣ in float32 to a relative 1e-7, with 0 below the normal numbers. No call, no branch taken: it vectorises.

    Reassociation would cancel ROUND; a function that names no flags gets its caller's from Numba, so one is named.
    2ⁿ is made of its bits, in two halves, for 2¹²⁸ is no float32, though 0.9·2¹²⁸ is. Denormal numbers, which many
    processors are slow at, are not made on the way either.
    """
    y = EXP_LOWEST if x < EXP_LOWEST else x  # in this order NaN stays NaN
    y = EXP_HIGHEST if y > EXP_HIGHEST else y
    t = f32(y * LOG2_E + ROUND)
    n, k = t - ROUND, i32(t.view(i32) - ROUND_BITS)  # the same integer twice
    r = (y - n * LN2_HIGH) - n * LN2_LOW
    p = EXP_A[0]
    for a in EXP_A[1:]:
        p = p * r + a
    p = p * (r * r) + r + ONE
    half = k >> i32(1)
    p = p * i32((half + BIAS) << MANTISSA).view(f32) * i32((k - half + BIAS) << MANTISSA).view(f32)
    return ZERO if x < EXP_LOWEST else p


@loop
def gelu(x: Array, value: Array, slope: Array) -> None:
    """`Φ(-|x|) = (a₁t + ... + a₅t⁵) exp(-x²/2) / 2, t = 1/(1 + p|x|/√2)`: formula 7.1.26; φ shares its exponential."""
    for i in range(x.size):
        z = x[i]
        e = exp(-HALF * z * z)
        t = ONE / (ONE + PHI_P * abs(z))
        q = PHI_A[0]
        for a in PHI_A[1:]:
            q = q * t + a
        q *= t * e
        cdf = q if z < ZERO else ONE - q
        value[i] = z * cdf
        if slope.size:  # nobody asks below a cut and in evaluation
            slope[i] = cdf + z * e * INV_SQRT_2PI


@loop
def gelu_tanh(x: Array, value: Array, slope: Array) -> None:
    """x·s and s + x·s·(1 - s)·(2u)', s = σ(2u), u = √(2/π) (x + 0.044715 x³)."""
    for i in range(x.size):
        z = x[i]
        square = z * z
        s = ONE / (ONE + exp(-z * (TANH_1 + TANH_3 * square)))
        value[i] = z * s
        if slope.size:
            slope[i] = s + z * s * (ONE - s) * (TANH_1 + TANH_9 * square)


@loop
def silu(x: Array, value: Array, slope: Array) -> None:
    """x·s and s·(1 + x·(1 - s)), s = σ(x) = 1/(1 + exp(-x))."""
    for i in range(x.size):
        z = x[i]
        s = ONE / (ONE + exp(-z))
        value[i] = z * s
        slope[i] = s * (ONE + z * (ONE - s))


@sum_loop
def softmax_row(row: Array) -> tuple[Array, Array]:
    """The row becomes exp(x - max) / Σ exp(x - max); returns the maximum and the sum.

    The maximum is taken of the bits, read as integers (for a negative number with the other bits flipped), which
    order as the numbers do: a maximum of integers vectorises, one of floats that respects NaN does not.
    """
    bits = row.view(i32)
    highest = LEAST
    for j in range(row.size):
        highest = max(highest, bits[j] ^ ((bits[j] >> SIGN) & REST))
    maximum = i32(highest ^ ((highest >> SIGN) & REST)).view(f32)
    s = ZERO
    for j in range(row.size):
        e = exp(row[j] - maximum)
        row[j] = e
        s += e
    inverse = ONE / s
    for j in range(row.size):
        row[j] *= inverse
    return maximum, s


@sum_loop
def softmax(x: Array, top: Array, total: Array) -> None:
    """Each row becomes its softmax; its maximum and its Σ exp(x - max) are kept in `top` and `total`."""
    for i in range(x.shape[0]):
        top[i], total[i] = softmax_row(x[i])


@sum_loop
def attention_weights(x: Array, scale: Array, hidden: Array, first: int) -> None:
    """(batch, heads, q, k), (batch, k): softmax(scale · x + hidden) of the keys before `first` + the query's number."""
    batch, heads, queries, keys = x.shape
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                row, seen = x[b, h, i], min(first + i, keys)
                for j in range(seen):
                    row[j] = row[j] * scale + hidden[b, j]
                row[seen:] = ZERO
                softmax_row(row[:seen])


@sum_loop
def softmax_backward(p: Array, g: Array) -> None:
    """g ← p ⊙ (g - Σ g ⊙ p)."""
    for i in range(g.shape[0]):
        q, dx = p[i], g[i]
        dot = g.dtype.type(0)
        for j in range(dx.size):
            dot += dx[j] * q[j]
        for j in range(dx.size):
            dx[j] = q[j] * (dx[j] - dot)


@sum_loop
def norm(x: Array, eps: Array, centre: bool, x_hat: Array, scale: Array) -> None:
    """x̂ = s (x - mean), s = 1/√(mean((x - mean)²) + eps); without `centre` the mean is taken as 0."""
    real = x.dtype.type
    d = real(x.shape[1])
    for i in range(x.shape[0]):
        row, out = x[i], x_hat[i]
        mean, square = real(0), real(0)
        if centre:
            for j in range(row.size):
                mean += row[j]
            mean /= d
        for j in range(row.size):
            out[j] = row[j] - mean
            square += out[j] * out[j]
        s = real(1) / np.sqrt(square / d + eps)
        for j in range(row.size):
            out[j] *= s
        scale[i] = s


@sum_loop
def norm_backward(g: Array, x_hat: Array, scale: Array, centre: bool, dx: Array) -> None:
    """dx = s (g - mean(g) - x̂ mean(g x̂)); without `centre` mean(g) is left out."""
    real = g.dtype.type
    d = real(g.shape[1])
    for i in range(g.shape[0]):
        row, x, out = g[i], x_hat[i], dx[i]
        mean, dot = real(0), real(0)
        for j in range(row.size):
            mean += row[j]
            dot += row[j] * x[j]
        mean = mean / d if centre else real(0)
        dot /= d
        for j in range(row.size):
            out[j] = scale[i] * (row[j] - mean - x[j] * dot)


@loop
def add_rows(places: Array, rows: Array, sums: Array) -> None:
    """sums[places[i]] += rows[i], for each i in turn."""
    for i in range(rows.shape[0]):
        row, total = rows[i], sums[places[i]]
        for j in range(row.size):
            total[j] += row[j]


@compiled
def dropout_mask(low: Array, high: Array, limit: Array, mask: Array) -> None:
    """mask[i] = lowbias32(lowbias32(i + low) ⊕ high) ≥ limit."""
    for i in range(mask.size):
        mask[i] = mix(mix(u32(u32(i) + low)) ^ high) >= limit


@compiled
def mix(h: Array) -> Array:
    """lowbias32, see the base's `dropout_mask`."""
    h = u32(h ^ (h >> u32(16)))
    h = u32(h * u32(0x7FEB352D))
    h = u32(h ^ (h >> u32(15)))
    h = u32(h * u32(0x846CA68B))
    return u32(h ^ (h >> u32(16)))


@loop
def adamw(theta: Array, g: Array, m: Array, v: Array, options: tuple[Array, ...]) -> None:
    """With rate = lr/(1 - β₁ᵗ), correction = 1/√(1 - β₂ᵗ), keep = 1 - lr·wd, and rest = (1 - β) times the scale."""
    beta1, rest1, beta2, rest2, rate, correction, eps, keep = options
    for i in range(theta.size):
        m[i] = beta1 * m[i] + rest1 * g[i]
        v[i] = beta2 * v[i] + rest2 * g[i] * g[i]
        theta[i] = keep * theta[i] - rate * m[i] / (np.sqrt(v[i]) * correction + eps)

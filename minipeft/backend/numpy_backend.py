"""The NumPy backend: the hot kernels once more, in place and in blocks that stay in the processor's cache.

A NumPy expression such as `0.5 * x * (1 + t)` walks through main memory once an operator. Here the same operators run on
blocks of some 256 KB with `out=`, so the walks hit the cache, and no temporary of the full size is ever made.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

from minipeft.backend.base import Array, Backend

BLOCK = 65_536  # elements: 256 KB of float32; smaller ones lose more to the calls than they win in the cache

# Abramowitz and Stegun, Handbook of Mathematical Functions, formula 7.1.26: |error| < 1.5e-7, and float32's rounding
ERF_P = 0.3275911
ERF_A = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)

HALF_A = tuple(-a / 2 for a in ERF_A)

SIGN = np.uint32(1 << 31)

_exact_erf = np.frompyfunc(math.erf, 1, 1)


class NumpyBackend(Backend):
    """NumPy arrays on the CPU; matrix products by NumPy's BLAS."""

    name = "numpy"
    xp = np

    def to_numpy(self, array: Array) -> Any:
        """The array itself."""
        return np.asarray(array)

    def shared(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Zeros in an anonymous mapping; a page of it takes memory once it is written to."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return np.ndarray(shape, dtype, buffer=mmap.mmap(-1, max(size, 1)))

    def matmul(self, x: Array, y: Array, out: Array | None = None) -> Array:
        """As the base's. OpenBLAS may compute on what lies beside a small array and leave an "invalid" flag behind, of
        which NumPy would warn although the product is right; a NaN that matters shows in the loss.
        """
        with np.errstate(invalid="ignore"):
            return super().matmul(x, y, out)

    def column_sum(self, x: Array) -> Array:
        """1ᵀ x, by BLAS."""
        return _product(np.ones(x.shape[0], dtype=x.dtype), x)

    def row_dot(self, x: Array, y: Array) -> Array:
        """Inner products without the product array."""
        return np.vecdot(x, y)[..., None]

    def sum_into(self, vectors: list[Array]) -> Array:
        """As the base's, block by block: the sum is still in the cache when its norm is taken."""
        square = np.zeros((), dtype=vectors[0].dtype)
        for cut in _blocks(0, vectors[0].size):
            square += super().sum_into([vector[cut] for vector in vectors])
        return square

    def scatter_rows(self, indices: Array, rows: Array) -> tuple[Array, Array]:
        """Sort by index, then add each run of equal ones: the order of the additions is fixed, so are the bits."""
        if not indices.size:
            return indices, rows
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        return ordered[starts], np.add.reduceat(rows[order], starts, axis=0)

    def erf(self, x: Array) -> Array:
        """Formula 7.1.26 in float32; element by element from the C library in float64, which only tests use."""
        if x.dtype != np.float32:
            return np.asarray(_exact_erf(x), dtype=x.dtype)
        t = 1 / (1 + ERF_P * np.abs(x))
        return np.copysign(1 - _horner(t, np.empty_like(t)) * np.exp(-x * x), x)

    def gelu(self, x: Array, tanh: bool = False, slope: bool = True) -> tuple[Array, Array | None]:
        """As the base's, block by block: Φ and φ share one exponential. Without `slope`, None for it."""
        if x.dtype != np.float32:
            return super().gelu(x, tanh)
        x = np.asarray(x, order="C")
        value, slopes = np.empty_like(x), np.empty_like(x) if slope else None
        kernel = _gelu_tanh_block if tanh else _gelu_block
        a, b, c = (np.empty(min(BLOCK, x.size), dtype=x.dtype) for _ in range(3))
        for cut in _blocks(0, x.size):
            n = cut.stop - cut.start
            part = None if slopes is None else slopes.reshape(-1)[cut]
            kernel(x.reshape(-1)[cut], value.reshape(-1)[cut], part, a[:n], b[:n], c[:n])
        return value, slopes

    def softmax(self, x: Array) -> Array:
        """In place, a block of rows at a time."""
        x = np.ascontiguousarray(x)
        for rows in _row_blocks(x):
            _softmax(rows)
        return x

    def attention_weights(self, scores: Array, scale: float, mask: Array | None = None, causal: bool = False) -> Array:
        """As the base's, in place, some heads of one sequence at a time."""
        scores = np.ascontiguousarray(scores)
        lowest = np.finfo(scores.dtype).min
        hidden = None if mask is None else np.where(mask, 0, lowest).astype(scores.dtype)
        future = self._future(*scores.shape[-2:]) if causal and scores.shape[-2] > 1 else None
        heads = max(1, BLOCK // max(1, math.prod(scores.shape[-2:])))
        for i, sequence in enumerate(scores):
            for start in range(0, len(sequence), heads):
                x = sequence[start : start + heads]
                x *= scale
                if hidden is not None:
                    x += hidden[i]
                if future is not None:
                    np.copyto(x, lowest, where=future)
                _softmax(x)
        return scores

    def softmax_backward(self, p: Array, g: Array) -> Array:
        """In place on g, a block of rows at a time."""
        g = np.ascontiguousarray(g)
        for dx, q in zip(_row_blocks(g), _row_blocks(p), strict=True):
            dx -= np.vecdot(dx, q)[..., None]
            dx *= q
        return g

    def layer_norm(self, x: Array, eps: float) -> tuple[Array, Array]:
        """A block of rows at a time: mean by a product with ones, variance by an inner product."""
        d = x.shape[-1]
        x = np.ascontiguousarray(x)
        x_hat, scale = np.empty_like(x), np.empty((*x.shape[:-1], 1), dtype=x.dtype)
        mean_of = np.full((d, 1), 1 / d, dtype=x.dtype)
        for rows, out, s in zip(_row_blocks(x), _row_blocks(x_hat), _row_blocks(scale, d), strict=True):
            np.subtract(rows, _product(rows, mean_of), out=out)
            s[...] = np.vecdot(out, out)[:, None]
            s /= d
            s += eps
            np.sqrt(s, out=s)
            np.reciprocal(s, out=s)
            out *= s
        return x_hat, scale

    def layer_norm_backward(self, g: Array, x_hat: Array, scale: Array) -> Array:
        """As the base's, a block of rows at a time."""
        d = g.shape[-1]
        g = np.ascontiguousarray(g)
        dx = np.empty_like(g)
        mean_of = np.full((d, 1), 1 / d, dtype=g.dtype)
        blocks = (_row_blocks(g), _row_blocks(x_hat), _row_blocks(dx), _row_blocks(scale, d))
        for g_rows, x_rows, out, s in zip(*blocks, strict=True):
            np.multiply(x_rows, np.vecdot(g_rows, x_rows)[:, None] / d, out=out)
            out += _product(g_rows, mean_of)
            np.subtract(g_rows, out, out=out)
            out *= s
        return dx

    def dropout_mask(self, shape: tuple[int, ...], p: float, key: int) -> Array:
        """The base's hash, block by block."""
        mask = np.empty(math.prod(shape), dtype=bool)
        limit = np.uint32(min(round(p * 2**32), 2**32 - 1))
        for cut in _blocks(0, mask.size):
            np.greater_equal(self._hash(cut.start, cut.stop, key), limit, out=mask[cut])
        return mask.reshape(shape)

    def adamw_step(
        self,
        theta: Array,
        g: Array,
        m: Array,
        v: Array,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        step: int,
        scale: Any = 1.0,
    ) -> None:
        """As the base's, block by block: each of the four vectors passes through the cache once."""
        correction = math.sqrt(1 - beta2**step)  # m̂ / (√v̂ + ε) = correction · m̂ / (√v + correction · ε)
        rate = correction * lr / (1 - beta1**step)
        factor, square = float(scale) * (1 - beta1), float(scale) ** 2 * (1 - beta2)
        scratch = np.empty(min(BLOCK, theta.size), dtype=theta.dtype)
        for cut in _blocks(0, theta.size):
            t, gb, mb, vb = theta[cut], g[cut], m[cut], v[cut]
            a = scratch[: cut.stop - cut.start]
            mb *= beta1
            np.multiply(gb, factor, out=a)
            mb += a
            vb *= beta2
            np.multiply(gb, gb, out=a)
            a *= square
            vb += a
            np.sqrt(vb, out=a)
            a += correction * eps
            np.divide(mb, a, out=a)
            a *= rate
            if weight_decay:
                t *= 1 - lr * weight_decay
            t -= a


def _product(x: Array, y: Array) -> Array:
    """x @ y, uncounted: a sum in disguise. About the flag, see `matmul`."""
    with np.errstate(invalid="ignore"):
        return np.matmul(x, y)


def _blocks(start: int, stop: int) -> list[slice]:
    return [slice(at, min(at + BLOCK, stop)) for at in range(start, stop, BLOCK)]


def _row_blocks(x: Array, width: int | None = None) -> list[Array]:
    """`x` seen as (n, d), cut into views of about one block of elements; `width` replaces d in that count."""
    flat = x.reshape(-1, x.shape[-1])
    rows = max(1, BLOCK // max(1, width or flat.shape[1]))
    return [flat[start : start + rows] for start in range(0, flat.shape[0], rows)]


def _horner(t: Array, out: Array, coefficients: tuple[float, ...] = ERF_A) -> Array:
    """a₁t + a₂t² + ... + a₅t⁵ of formula 7.1.26, the last coefficient first."""
    np.multiply(t, coefficients[0], out=out)
    for a in coefficients[1:]:
        out += a
        out *= t
    return out


def _softmax(x: Array) -> None:
    x -= x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    total = _product(x, np.ones(x.shape[-1], dtype=x.dtype))[..., None]
    x *= np.reciprocal(total, out=total)


def _gelu_block(x: Array, value: Array, slope: Array | None, t: Array, e: Array, q: Array) -> None:
    np.abs(x, out=t)
    t *= ERF_P / math.sqrt(2)
    t += 1
    np.reciprocal(t, out=t)
    np.multiply(x, x, out=e)
    e *= -0.5
    np.exp(e, out=e)  # exp(-x²/2) serves erf(x/√2) and the density φ
    _horner(t, q, HALF_A)
    q *= e
    q += 0.5  # Φ(|x|) - 1/2
    bits = q.view(np.uint32)  # and now with the sign of x, as np.copysign does it in five times the time
    bits |= np.bitwise_and(x.view(np.uint32), SIGN, out=t.view(np.uint32))
    q += 0.5
    np.multiply(x, q, out=value)
    if slope is None:
        return
    np.multiply(x, e, out=slope)
    slope *= 1 / math.sqrt(2 * math.pi)
    slope += q


def _gelu_tanh_block(x: Array, value: Array, slope: Array | None, s: Array, t: Array, u: Array) -> None:
    np.multiply(x, x, out=s)
    np.multiply(s, 0.044715 * math.sqrt(2 / math.pi), out=t)
    t += math.sqrt(2 / math.pi)
    t *= x
    np.tanh(t, out=t)
    if slope is not None:
        _tanh_slope(x, slope, s, t, u)
    t += 1
    t *= 0.5
    np.multiply(x, t, out=value)


def _tanh_slope(x: Array, slope: Array, s: Array, t: Array, u: Array) -> None:
    """(1 + t)/2 + x (1 - t²)/2 · d inner/dx, from s = x² and t = tanh(inner)."""
    s *= 3 * 0.044715 * math.sqrt(2 / math.pi)
    s += math.sqrt(2 / math.pi)  # d inner / dx
    np.multiply(t, t, out=u)
    np.subtract(1, u, out=u)
    u *= s
    u *= x
    u += t
    u += 1
    np.multiply(u, 0.5, out=slope)

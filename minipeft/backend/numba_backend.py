"""The Numba backend: the hot kernels a third time, as the loops that the formulas are, compiled to vector instructions.

It needs the optional extra: `pip install 'minipeft[fast]'`. Each function of `numba_kernels.py` is compiled at its first
call, in a second or so, and kept on disk for the next process. Workers are processes (workers.py); Numba's own threads are
not used.

Left to NumPy are `matmul`, `row_dot` and `column_sum` (BLAS is as fast), `erf` (only tests call it by itself), and in
float64 whatever needs an exponential: NumPy's is vectorised, the C library's, which Numba would call, is not.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minipeft.backend import numba_kernels as kernels
from minipeft.backend.base import Array
from minipeft.backend.numba_kernels import ZERO, f32, u32
from minipeft.backend.numpy_backend import NumpyBackend


class NumbaBackend(NumpyBackend):
    """NumPy arrays on the CPU, kernels compiled by Numba, matrix products by NumPy's BLAS."""

    name = "numba"

    def scatter_rows(self, indices: Array, rows: Array) -> tuple[Array, Array]:
        """Add the rows one after the other, each to the sum of its index: the order is fixed, so are the bits."""
        distinct, inverse = np.unique(indices, return_inverse=True)
        sums = np.zeros((distinct.size, rows.shape[1]), dtype=rows.dtype)
        kernels.add_rows(inverse, np.ascontiguousarray(rows), sums)
        return distinct, sums

    def gelu(self, x: Array, tanh: bool = False, slope: bool = True) -> tuple[Array, Array | None]:
        """x·Φ(x) and Φ(x) + x·φ(x), in one pass; Φ from erf, or from tanh: (1 + tanh u) / 2 = σ(2u)."""
        return self._activation(kernels.gelu_tanh if tanh else kernels.gelu, x, slope) or super().gelu(x, tanh)

    def silu(self, x: Array) -> tuple[Array, Array]:
        """x·σ(x) and σ(x)·(1 + x·(1 - σ(x))), in one pass."""
        return self._activation(kernels.silu, x) or super().silu(x)

    def _activation(self, kernel: Any, x: Array, slope: bool = True) -> tuple[Array, Any] | None:
        if x.dtype != np.float32:
            return None
        x = np.asarray(x, order="C")
        value, slopes = np.empty_like(x), np.empty_like(x if slope else x[:0])
        kernel(x.reshape(-1), value.reshape(-1), slopes.reshape(-1))
        return value, slopes if slope else None

    def softmax(self, x: Array) -> Array:
        """exp(x - max) / Σ exp(x - max), in place."""
        if x.dtype != np.float32:
            return super().softmax(x)
        x = np.ascontiguousarray(x)
        kernels.softmax(_rows(x), *_numbers(x, 2))
        return x

    def attention_weights(self, scores: Array, scale: float, mask: Array | None = None, causal: bool = False) -> Array:
        """softmax(scale · scores) over the keys that may be seen, 0 for those after the query, in place."""
        if scores.dtype != np.float32:
            return super().attention_weights(scores, scale, mask, causal)
        scores = np.ascontiguousarray(scores)
        batch, _, queries, keys = scores.shape
        hidden = np.zeros((batch, keys), f32) if mask is None else np.where(mask, ZERO, np.finfo(f32).min)
        kernels.attention_weights(scores, f32(scale), hidden, keys - queries + 1 if causal else keys)
        return scores

    def softmax_backward(self, p: Array, g: Array) -> Array:
        """dL/dx = p ⊙ (g - Σ g ⊙ p), in place on g."""
        g = np.ascontiguousarray(g)
        kernels.softmax_backward(_rows(np.ascontiguousarray(p)), _rows(g))
        return g

    def cross_entropy(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        """log Σ exp(x - max) - (x_y - max), and softmax(x) - onehot(y)."""
        if logits.dtype != np.float32:
            return super().cross_entropy(logits, targets)
        derivative = np.array(logits, order="C")
        top, total = _numbers(derivative, 2)
        kernels.softmax(derivative, top, total)
        at = np.arange(targets.shape[0]), targets
        derivative[at] -= 1
        return np.log(total) - (logits[at] - top), derivative

    def layer_norm(self, x: Array, eps: float) -> tuple[Array, Array]:
        """x̂ = (x - mean) / √(var + eps) and 1/√(var + eps); the variance is the mean of (x - mean)²."""
        return self._normalised(x, eps, True)

    def rms_norm(self, x: Array, eps: float) -> tuple[Array, Array]:
        """x̂ = x / √(mean(x²) + eps) and 1/√(mean(x²) + eps)."""
        return self._normalised(x, eps, False)

    def _normalised(self, x: Array, eps: float, centre: bool) -> tuple[Array, Array]:
        x = np.ascontiguousarray(x)
        x_hat, (scale,) = np.empty_like(x), _numbers(x, 1)
        kernels.norm(_rows(x), x.dtype.type(eps), centre, _rows(x_hat), scale)
        return x_hat, scale.reshape(*x.shape[:-1], 1)

    def layer_norm_backward(self, g: Array, x_hat: Array, scale: Array) -> Array:
        """dL/dx = scale ⊙ (g - mean(g) - x̂ ⊙ mean(g ⊙ x̂))."""
        return self._normalised_backward(g, x_hat, scale, True)

    def rms_norm_backward(self, g: Array, x_hat: Array, scale: Array) -> Array:
        """dL/dx = scale ⊙ (g - x̂ ⊙ mean(g ⊙ x̂))."""
        return self._normalised_backward(g, x_hat, scale, False)

    def _normalised_backward(self, g: Array, x_hat: Array, scale: Array, centre: bool) -> Array:
        g, x_hat, scale = (np.ascontiguousarray(a) for a in (g, x_hat, scale))
        dx = np.empty_like(g)
        kernels.norm_backward(_rows(g), _rows(x_hat), scale.reshape(-1), centre, _rows(dx))
        return dx

    def dropout_mask(self, shape: tuple[int, ...], p: float, key: int) -> Array:
        """The base's hash of (key, position), one position at a time."""
        mask = np.empty(shape, dtype=bool)
        limit = min(round(p * 2**32), 2**32 - 1)
        kernels.dropout_mask(u32(key & 0xFFFFFFFF), u32((key >> 32) & 0xFFFFFFFF), u32(limit), mask.reshape(-1))
        return mask

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
        """m ← β₁m + (1-β₁)g, v ← β₂v + (1-β₂)g², θ ← θ - lr·wd·θ - lr·m̂ / (√v̂ + eps), in one pass."""
        rate, correction, keep = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step), 1 - lr * weight_decay
        factor, square = float(scale) * (1 - beta1), float(scale) ** 2 * (1 - beta2)
        numbers = (beta1, factor, beta2, square, rate, correction, eps, keep)
        kernels.adamw(theta, g, m, v, tuple(theta.dtype.type(number) for number in numbers))


def _rows(x: Array) -> Array:
    """(..., d) -> (n, d), for n = 0 and d = 0 too."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _numbers(x: Array, count: int) -> list[Array]:
    """Empty vectors with one number for each row of `x`."""
    return [np.empty(math.prod(x.shape[:-1]), dtype=x.dtype) for _ in range(count)]

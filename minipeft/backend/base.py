"""`Backend`: an array namespace and a plain version of every kernel, written as the formula reads.

A backend overrides the kernels that it can do faster; each override is tested against the version here.
Kernels work along the last axis. They take and return arrays, never Tensors, and know nothing of gradients: where a
derivative is wanted, a kernel returns it beside the value.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Array = Any  # an array of the active backend: numpy.ndarray, cupy.ndarray


class Peak:
    """`peak`: the most bytes that were allocated at once in a `memory_peak` block, beyond those from before it."""

    peak = 0


class Backend:
    """`xp` is the array namespace; `flops` counts the multiply-adds (as 2) of every matrix product so far."""

    name = "base"
    xp: Any
    chunk = 65_536  # elements that long computations take at a time: 256 KB, which stays in the cache
    shards: int | None = None  # the most parts of a batch that are worth running side by side; None for no limit

    def __init__(self) -> None:
        self.flops = 0

    # ---- arrays in and out

    def asarray(self, value: Any, dtype: Any = None) -> Array:
        """`value` as an array of this backend; no copy when it already is one of that dtype."""
        return self.xp.asarray(value, dtype=dtype)

    def to_numpy(self, array: Array) -> Any:
        """A NumPy array of the same values; the only way out of the backend."""
        raise NotImplementedError

    def shared(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Zeros, in memory that workers (workers.py) share, if the backend has any."""
        return self.xp.zeros(shape, dtype=dtype)

    def svd(self, x: Array) -> tuple[Array, Array, Array]:
        """U (m, k), S (k,) falling, Vᵀ (k, n) of an (m, n) matrix with k = min(m, n): x = U S Vᵀ."""
        U, S, Vt = self.xp.linalg.svd(x, full_matrices=False)
        return U, S, Vt

    def synchronize(self) -> None:
        """Wait until everything asked for has been computed. On the host it has."""

    def useful_workers(self, count: int) -> int:
        """At most `count` workers, and no more than this backend can use."""
        return count if self.shards is None else min(count, self.shards)

    @contextmanager
    def memory_peak(self) -> Iterator[Peak]:
        """The yielded object tells, after the block, the most memory that arrays took in it; from `tracemalloc` here."""
        tracing = tracemalloc.is_tracing()
        if not tracing:
            tracemalloc.start()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = Peak()
        try:
            yield result
            result.peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            if not tracing:
                tracemalloc.stop()

    def device_bytes(self) -> int:
        """The memory that arrays have on a device of their own; 0 where that is the host's."""
        return 0

    def describe(self) -> list[tuple[str, str]]:
        """Pairs of (what, how it is here), for `minipeft doctor`."""
        return []

    # ---- matrix products and sums

    def matmul(self, x: Array, y: Array, out: Array | None = None) -> Array:
        """(..., m, k) @ (..., k, n) -> (..., m, n). A 2-D right side makes one flat product of it all."""
        if y.ndim == 2 and x.ndim > 2 and out is None:
            flat = self.matmul(x.reshape(-1, x.shape[-1]), y)
            return flat.reshape(*x.shape[:-1], y.shape[-1])
        product = self.xp.matmul(x, y, out=out) if out is not None else self.xp.matmul(x, y)
        self.flops += 2 * product.size * x.shape[-1]
        return product

    def column_sum(self, x: Array) -> Array:
        """(n, d) -> (d,): the sum of the rows."""
        return x.sum(axis=0)

    def row_dot(self, x: Array, y: Array) -> Array:
        """(..., d), (..., d) -> (..., 1): the inner product of each pair of rows."""
        return (x * y).sum(axis=-1, keepdims=True)

    def sum_into(self, vectors: list[Array]) -> Array:
        """Add all vectors (n,) into the first, in their order; returns the sum's squared norm (a 0-d array)."""
        total = vectors[0]
        for vector in vectors[1:]:
            total += vector
        return total @ total

    def scatter_rows(self, indices: Array, rows: Array) -> tuple[Array, Array]:
        """(n,), (n, d) -> the distinct indices (u,) and, for each, the sum of its rows (u, d).

        `indices` may be a NumPy array, whatever the backend: the engine has the ids on the host.
        """
        xp = self.xp
        distinct, inverse = xp.unique(indices, return_inverse=True)
        sums = xp.zeros((distinct.shape[0], rows.shape[1]), dtype=rows.dtype)
        xp.add.at(sums, inverse.reshape(-1), rows)
        return distinct, sums

    # ---- activations: value and derivative

    def erf(self, x: Array) -> Array:
        """The error function 2/√π ∫₀ˣ exp(-t²) dt, to the precision of the dtype."""
        raise NotImplementedError

    def gelu(self, x: Array, tanh: bool = False, slope: bool = True) -> tuple[Array, Array | None]:
        """GELU and its derivative: x·Φ(x), Φ(x) = (1 + erf(x/√2)) / 2; or the tanh form of it (arXiv 1606.08415).

        Without `slope`, nobody needs the derivative, and a backend may give None for it.
        """
        xp = self.xp
        if tanh:
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
            t = xp.tanh(inner)
            inner_slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
            return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner_slope
        cdf = 0.5 * (1 + self.erf(x / math.sqrt(2)))
        pdf = xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return x * cdf, cdf + x * pdf

    def silu(self, x: Array) -> tuple[Array, Array]:
        """x·σ(x) and its derivative σ(x)·(1 + x·(1 - σ(x))), σ(x) = 1 / (1 + exp(-x))."""
        sigma = 0.5 * (1 + self.xp.tanh(0.5 * x))  # this form of σ cannot overflow
        return x * sigma, sigma * (1 + x * (1 - sigma))

    # ---- softmax

    def softmax(self, x: Array) -> Array:
        """exp(x - max) / Σ exp(x - max) along the last axis. May reuse the memory of `x`."""
        e = self.xp.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    def attention_weights(self, scores: Array, scale: float, mask: Array | None = None, causal: bool = False) -> Array:
        """softmax(scale · scores) along the last axis, over the keys that may be seen. May reuse the memory of `scores`.

        (batch, heads, q, k) -> the same. Keys where `mask` (batch, k) is zero are not seen; with `causal`, query i sees
        the keys up to i + k - q.
        """
        xp = self.xp
        lowest = xp.asarray(xp.finfo(scores.dtype).min, dtype=scores.dtype)
        scores *= scale
        if mask is not None:
            scores += xp.where(mask, xp.zeros_like(lowest), lowest)[:, None, None, :]
        if causal:
            scores = xp.where(self._future(*scores.shape[-2:]), lowest, scores)
        return self.softmax(scores)

    def _future(self, queries: int, keys: int) -> Array:
        """(queries, keys): True where a key comes after its query, the last query being at the last key."""
        return self.xp.triu(self.xp.ones((queries, keys), dtype=bool), k=1 + keys - queries)

    def softmax_backward(self, p: Array, g: Array) -> Array:
        """dL/dx = p ⊙ (g - Σ g ⊙ p) for p = softmax(x). May reuse the memory of `g`."""
        return p * (g - self.row_dot(g, p))

    def cross_entropy(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        """(n, C) logits, (n,) classes -> (n,) losses -log softmax(x)_y, and their derivative softmax(x) - onehot(y)."""
        xp = self.xp
        rows = xp.arange(targets.shape[0])
        shifted = logits - logits.max(axis=-1, keepdims=True)
        e = xp.exp(shifted)
        total = e.sum(axis=-1, keepdims=True)
        losses = xp.log(total[:, 0]) - shifted[rows, targets]
        derivative = e / total
        derivative[rows, targets] -= 1
        return losses, derivative

    # ---- normalisation

    def layer_norm(self, x: Array, eps: float) -> tuple[Array, Array]:
        """x̂ = (x - mean) / √(var + eps) along the last axis, and 1/√(var + eps) (arXiv 1607.06450)."""
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = 1 / self.xp.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
        return centred * scale, scale

    def layer_norm_backward(self, g: Array, x_hat: Array, scale: Array) -> Array:
        """dL/dx from g = dL/dx̂: scale ⊙ (g - mean(g) - x̂ ⊙ mean(g ⊙ x̂))."""
        return scale * (g - g.mean(axis=-1, keepdims=True) - x_hat * (g * x_hat).mean(axis=-1, keepdims=True))

    def rms_norm(self, x: Array, eps: float) -> tuple[Array, Array]:
        """x̂ = x / √(mean(x²) + eps) along the last axis, and 1/√(mean(x²) + eps) (arXiv 1910.07467)."""
        scale = 1 / self.xp.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
        return x * scale, scale

    def rms_norm_backward(self, g: Array, x_hat: Array, scale: Array) -> Array:
        """dL/dx from g = dL/dx̂: scale ⊙ (g - x̂ ⊙ mean(g ⊙ x̂))."""
        return scale * (g - x_hat * (g * x_hat).mean(axis=-1, keepdims=True))

    # ---- dropout

    def dropout_mask(self, shape: tuple[int, ...], p: float, key: int) -> Array:
        """True where an element is kept, with probability 1 - p: a hash of (key, position), so no state is needed.

        The hash is two rounds of the 32-bit finalizer "lowbias32" over the element's index, offset by the key;
        an element is kept when its hash is at least p · 2³².
        """
        size = math.prod(shape)
        return self._hash(0, size, key).reshape(shape) >= min(round(p * 2**32), 2**32 - 1)

    def _hash(self, start: int, stop: int, key: int) -> Array:
        """The 32-bit hashes of the positions start..stop-1; in place, on one buffer."""
        xp = self.xp
        h = xp.arange(start, stop, dtype=xp.uint32)
        h += xp.uint32(key & 0xFFFFFFFF)
        self._mix(h)
        h ^= xp.uint32((key >> 32) & 0xFFFFFFFF)
        return self._mix(h)

    def _mix(self, h: Array) -> Array:
        u = self.xp.uint32
        h ^= h >> u(16)
        h *= u(0x7FEB352D)
        h ^= h >> u(15)
        h *= u(0x846CA68B)
        h ^= h >> u(16)
        return h

    # ---- optimizer

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
        """One step of AdamW for the gradient scale · g, in place on θ, m and v (arXiv 1711.05101, algorithm 2).

        m ← β₁m + (1-β₁)g, v ← β₂v + (1-β₂)g², θ ← θ - lr·wd·θ - lr·m̂ / (√v̂ + eps), with m̂ = m/(1-β₁ᵗ), v̂ = v/(1-β₂ᵗ).
        `step` is t and counts from 1; `scale`, a number or a 0-d array, is the factor of clipping.
        """
        g = g * scale
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * g * g
        theta *= 1 - lr * weight_decay
        denominator = self.xp.sqrt(v) / math.sqrt(1 - beta2**step) + eps
        theta -= (lr / (1 - beta1**step)) * m / denominator

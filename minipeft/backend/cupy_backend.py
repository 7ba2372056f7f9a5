"""The CuPy backend: arrays on an NVIDIA GPU, kernels fused into one launch each (`cupy_kernels.py`), products by cuBLAS.

It needs the optional extra: `pip install 'minipeft[gpu]'` (CUDA 13; with CUDA 12, `pip install 'cupy-cuda12x[ctk]'`).
Work is queued on the device and the host goes on: `to_numpy` is the one place that waits, and `asarray` the one that
uploads. The engine calls `to_numpy` on what is on the host already, where it costs nothing, to check token ids and classes.

float32 by default; set CUPY_TF32=1 in the environment to let matrix products round their factors to TF32 (10 bits).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cupy
import numpy as np
from cupy.cuda import device, memory_hook
from cupy_backends.cuda.libs import cublas

from minipeft.backend import cupy_kernels as kernels
from minipeft.backend.base import Array, Backend, Peak

TF32_MATH = 3  # CUBLAS_TF32_TENSOR_OP_MATH
ONE, ZERO = ({t: np.array(v, dtype=t) for t in ("float32", "float64")} for v in (1, 0))  # cuBLAS reads them on the host


class CupyBackend(Backend):
    """CuPy arrays on the current device, which is used by one host thread on one stream."""

    name = "cupy"
    xp = cupy
    shards = 1

    def __init__(self) -> None:
        super().__init__()
        self._no_mask = cupy.zeros(1, dtype=np.int32)  # its address is passed along, and not read
        if int(os.environ.get("CUPY_TF32", "0")):  # CuPy itself heeds it in plain products; the batched ones are ours
            cublas.setMathMode(device.get_cublas_handle(), TF32_MATH)

    # ---- arrays in and out

    def to_numpy(self, array: Array) -> Any:
        """A copy on the host, once the device has computed it; an array that is on the host is given back as it is."""
        return array.get() if isinstance(array, cupy.ndarray) else np.asarray(array)

    def svd(self, x: Array) -> tuple[Array, Array, Array]:
        """As the base's, on the host: PiSSA starts from the same numbers on every backend."""
        U, S, Vt = np.linalg.svd(self.to_numpy(x), full_matrices=False)
        return cupy.asarray(U), cupy.asarray(S), cupy.asarray(Vt)

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""
        device.Device().synchronize()

    @contextmanager
    def memory_peak(self) -> Iterator[Peak]:
        """Counts what CuPy's pool hands out and gets back."""
        with _PoolWatch() as watch:
            yield watch

    def device_bytes(self) -> int:
        """What CuPy's pool holds."""
        return int(cupy.get_default_memory_pool().total_bytes())

    def describe(self) -> list[tuple[str, str]]:
        """The device, its memory, and the versions."""
        properties = cupy.cuda.runtime.getDeviceProperties(device.Device().id)
        free, total = cupy.cuda.runtime.memGetInfo()
        runtime = cupy.cuda.runtime.runtimeGetVersion()
        return [
            ("device", f"{properties['name'].decode()}, compute capability {device.Device().compute_capability}"),
            ("memory", f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"),
            ("CuPy", f"{cupy.__version__}, CUDA {runtime // 1000}.{runtime % 1000 // 10}, cuBLAS {_cublas_version()}"),
        ]

    # ---- matrix products and sums

    def matmul(self, x: Array, y: Array, out: Array | None = None) -> Array:
        """As the base's. A batch of two axes whose matrices are strided views, as the heads of attention are, is multiplied
        where it lies; CuPy would copy it.
        """
        if x.ndim == y.ndim == 4 and x.shape[:2] == y.shape[:2] and x.dtype == y.dtype:
            shape = (*x.shape[:-1], y.shape[-1])
            product = cupy.empty(shape, dtype=x.dtype) if out is None else out
            if _multiply_batch(x, y, product):
                self.flops += 2 * product.size * x.shape[-1]
                return product
        return super().matmul(x, y, out)

    def scatter_rows(self, indices: Array, rows: Array) -> tuple[Array, Array]:
        """Each sum by threads that add in a fixed order. The indices are sorted on the host, where the engine has them."""
        host = self.to_numpy(indices)
        order = np.argsort(host, kind="stable")
        ordered = host[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if host.size else order
        plan = cupy.asarray(np.concatenate((ordered[starts], order, starts, [host.size])).astype(np.int64))
        n, d = starts.size, rows.shape[1]
        sums = cupy.empty((n, d), dtype=rows.dtype)
        if sums.size:
            block = min(128, -(-d // 32) * 32)
            arguments = (cupy.ascontiguousarray(rows), plan[n : n + host.size], plan[n + host.size :], sums)
            kernels.ADD_RUNS[rows.dtype.name]((n, -(-d // block)), (block,), (*arguments, np.int32(d)))
        return plan[:n], sums

    # ---- activations

    def erf(self, x: Array) -> Array:
        """CUDA's."""
        return kernels.ERF(x)

    def gelu(self, x: Array, tanh: bool = False, slope: bool = True) -> tuple[Array, Array | None]:
        """As the base's, in one launch. Without `slope`, None for it."""
        if not slope:
            return (kernels.GELU_TANH if tanh else kernels.GELU)(x), None
        value, derivative = (kernels.GELU_TANH_SLOPE if tanh else kernels.GELU_SLOPE)(x)
        return value, derivative

    def silu(self, x: Array) -> tuple[Array, Array]:
        """As the base's, in one launch."""
        value, slope = kernels.SILU(x)
        return value, slope

    # ---- softmax

    def softmax(self, x: Array) -> Array:
        """As the base's, in place."""
        x = cupy.ascontiguousarray(x)
        kernels.launch_rows(kernels.SOFTMAX, x, x, x)
        return x

    def attention_weights(self, scores: Array, scale: float, mask: Array | None = None, causal: bool = False) -> Array:
        """As the base's, in one launch and in place."""
        scores = cupy.ascontiguousarray(scores)
        _, heads, queries, _ = scores.shape
        real = scores.dtype.type
        given = self._no_mask if mask is None else cupy.ascontiguousarray(mask.astype(np.int32, copy=False))
        numbers = (real(scale), np.finfo(real).min, np.int32(mask is not None), np.int32(causal))
        shape = (np.int32(heads * queries), np.int32(queries))
        kernels.launch_rows(kernels.ATTENTION, scores, scores, given, *numbers, *shape)
        return scores

    def softmax_backward(self, p: Array, g: Array) -> Array:
        """As the base's, in place on g."""
        p, g = cupy.ascontiguousarray(p), cupy.ascontiguousarray(g)
        kernels.launch_rows(kernels.SOFTMAX_BACKWARD, p, p, g)
        return g

    def cross_entropy(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        """As the base's, in one launch."""
        logits, targets = cupy.ascontiguousarray(logits), targets.astype(np.int32, copy=False)
        losses, derivative = cupy.empty(logits.shape[0], dtype=logits.dtype), cupy.empty_like(logits)
        kernels.launch_rows(kernels.CROSS_ENTROPY, logits, logits, targets, losses, derivative)
        return losses, derivative

    # ---- normalisation

    def layer_norm(self, x: Array, eps: float) -> tuple[Array, Array]:
        """As the base's, in one launch."""
        return self._norm(x, eps, True)

    def rms_norm(self, x: Array, eps: float) -> tuple[Array, Array]:
        """As the base's, in one launch."""
        return self._norm(x, eps, False)

    def _norm(self, x: Array, eps: float, centre: bool) -> tuple[Array, Array]:
        x = cupy.ascontiguousarray(x)
        x_hat, scale = cupy.empty_like(x), cupy.empty((*x.shape[:-1], 1), dtype=x.dtype)
        kernels.launch_rows(kernels.NORM, x, x, x_hat, scale, x.dtype.type(eps), np.int32(centre))
        return x_hat, scale

    def layer_norm_backward(self, g: Array, x_hat: Array, scale: Array) -> Array:
        """As the base's, in one launch."""
        return self._norm_backward(g, x_hat, scale, True)

    def rms_norm_backward(self, g: Array, x_hat: Array, scale: Array) -> Array:
        """As the base's, in one launch."""
        return self._norm_backward(g, x_hat, scale, False)

    def _norm_backward(self, g: Array, x_hat: Array, scale: Array, centre: bool) -> Array:
        g, x_hat, scale = (cupy.ascontiguousarray(a) for a in (g, x_hat, scale))
        dx = cupy.empty_like(g)
        kernels.launch_rows(kernels.NORM_BACKWARD, g, g, x_hat, scale, dx, np.int32(centre))
        return dx

    # ---- dropout and the optimizer

    def dropout_mask(self, shape: tuple[int, ...], p: float, key: int) -> Array:
        """The base's hash, bit for bit, in one launch."""
        limit = min(round(p * 2**32), 2**32 - 1)
        words = (np.uint32(word) for word in (key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF, limit))
        return kernels.DROPOUT_MASK(*words, cupy.empty(shape, dtype=bool))

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
        """As the base's, in one launch, for the gradient scale · g: a number, or a 0-d array, which stays on the device."""
        rate, correction, keep = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step), 1 - lr * weight_decay
        numbers = (beta1, 1 - beta1, beta2, 1 - beta2, rate, correction, eps, keep)
        factor = scale if isinstance(scale, cupy.ndarray) else theta.dtype.type(scale)
        kernels.ADAMW(g, factor, *(theta.dtype.type(number) for number in numbers), theta, m, v)


def _multiply_batch(x: Array, y: Array, out: Array) -> bool:
    """out = x @ y over two batch axes, without a copy; False where cuBLAS cannot read an operand as it lies.

    cuBLAS counts columns first, so it is asked for outᵀ = yᵀ xᵀ: a row-major matrix is its own transpose to it.
    """
    layouts = [_layout(matrix) for matrix in (x, y, out)]
    if None in layouts or layouts[2][0] or x.dtype.name not in ONE or not x.size or not y.size:  # type: ignore[index]
        return False
    (x_turned, x_lead), (y_turned, y_lead), (_, out_lead) = layouts  # type: ignore[misc]
    outer, inner, rows, columns = out.shape
    places = [number for a in (x, y, out) for number in (a.data.ptr, a.strides[0], a.strides[1])]
    addresses = cupy.empty((3, outer * inner), dtype=np.uint64)
    kernels.ADDRESSES(*places, inner, *addresses)
    multiply = cublas.sgemmBatched if x.dtype == np.float32 else cublas.dgemmBatched
    xs, ys, outs = (row.data.ptr for row in addresses)
    one, zero = ONE[x.dtype.name].ctypes.data, ZERO[x.dtype.name].ctypes.data
    sizes = (int(y_turned), int(x_turned), columns, rows, x.shape[-1])
    operands = (one, ys, y_lead, xs, x_lead, zero, outs, out_lead)
    multiply(device.get_cublas_handle(), *sizes, *operands, outer * inner)
    return True


def _layout(matrix: Array) -> tuple[bool, int] | None:
    """(whether its columns, not its rows, are contiguous; elements from one to the next), or None where neither is."""
    rows, columns = matrix.shape[-2:]
    row_step, column_step = (step // matrix.itemsize for step in matrix.strides[-2:])
    if column_step == 1 and row_step >= columns:
        return False, row_step
    if row_step == 1 and column_step >= rows:
        return True, column_step
    return None


def _cublas_version() -> str:
    version = cublas.getVersion(device.get_cublas_handle())
    return f"{version // 10000}.{version // 100 % 100}"


class _PoolWatch(memory_hook.MemoryHook, Peak):
    """Adds up the sizes that the pool hands out."""

    name = "minipeft"

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def malloc_postprocess(self, **event: int) -> None:
        """Called by CuPy after a piece was handed out."""
        self.sizes[event["pmem_id"]] = event["mem_size"]
        self.now += event["mem_size"]
        self.peak = max(self.peak, self.now)

    def free_postprocess(self, **event: int) -> None:
        """Called by CuPy after a piece came back; one from before does not count."""
        self.now -= self.sizes.pop(event["pmem_id"], 0)

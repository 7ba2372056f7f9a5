"""The kernels of the fake CuPy: each is checked against its CUDA signature and computed by its plain twin in base.py.

What the CUDA source itself computes is not seen here: that is for the emulated device (tests/cuda_emulator) and for GPUs.
"""

from __future__ import annotations

import ctypes
import math
import re
import types
from collections.abc import Callable
from typing import Any

import fake_cupy
import numpy as np

from minipeft.backend.numpy_backend import NumpyBackend

C_TYPES = {"int": "int32", "long long": "int64", "unsigned int": "uint32", "float": "float32", "double": "float64"}
PLAIN = NumpyBackend()


class ElementwiseKernel:
    """Takes what the real one takes; the twin is found by the kernel's name."""

    def __init__(self, inputs: str, outputs: str, operation: str, name: str = "kernel", preamble: str = "") -> None:
        self.inputs, self.outputs = ([p.split() for p in text.split(",")] for text in (inputs, outputs))
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name == "kernel":
            raise ValueError(f"Invalid kernel name: {name!r}")
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        twin = ELEMENTWISE[self.name]
        known = {}
        slots = [*self.inputs, *self.outputs]
        if len(arguments) not in (len(self.inputs), len(slots)):
            raise TypeError(f"Wrong number of arguments for {self.name!r}: {len(arguments)}, not {len(self.inputs)}.")
        for (kind, slot), value in zip(slots, arguments, strict=False):
            if isinstance(value, np.ndarray):
                raise TypeError(f"Unsupported type {type(value)}")
            dtype = getattr(value, "dtype", None)
            if dtype is not None and known.setdefault(kind, dtype if kind == "T" else np.dtype(kind)) != dtype:
                raise TypeError(f"{self.name}: {slot} is {dtype}, not {kind} = {known[kind]}")
        values = [fake_cupy.unwrap(value) for value in arguments[: len(self.inputs)]]
        outs = [fake_cupy.unwrap(value) for value in arguments[len(self.inputs) :]]
        with np.errstate(all="ignore"):
            results = twin(*values, *outs)
        if not outs:
            wrapped = tuple(fake_cupy.wrap(np.asarray(result)) for result in results)
            return wrapped if len(wrapped) > 1 else wrapped[0]
        for out, result in zip(outs, results, strict=True):
            out[...] = result
        return arguments[-1] if len(self.outputs) == 1 else tuple(arguments[len(self.inputs) :])


class RawKernel:
    """Launched with a grid, a block and arguments, which must fit the C signature of `name` in `source`."""

    def __init__(self, source: str, name: str) -> None:
        self.name = name
        real = re.search(r"#define T (\w+)", source)
        signature = re.search(rf'extern "C" __global__ void {name}\(([^)]*)\)', source)
        self.parameters: list[tuple[str, bool, str]] | None = None  # (text, whether it is a pointer, dtype)
        if signature:
            texts = [part.replace("T ", f"{real[1] if real else 'T'} ").strip() for part in signature[1].split(",")]
            parts = [re.fullmatch(r"(?:const )?([a-z ]+?) ?(\*?)\w+", text) for text in texts]
            self.parameters = [
                (text, bool(part[2]), C_TYPES[part[1]]) for text, part in zip(texts, parts, strict=True) if part
            ]
            assert len(self.parameters) == len(texts), f"{name}: a parameter of {texts} could not be read"

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        if self.parameters is None:
            raise RuntimeError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {self.name}")
        if not all(isinstance(n, int) and n > 0 for n in (*grid, *block)) or math.prod(block) > 1024:
            raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: grid {grid}, block {block}")
        assert len(arguments) == len(self.parameters), f"{self.name} takes {self.parameters}"
        for (parameter, pointer, dtype), value in zip(self.parameters, arguments, strict=True):
            if pointer:
                assert isinstance(value, fake_cupy.ndarray), f"{self.name}: {parameter} is {type(value)}"
                assert value._a.flags.c_contiguous, f"{self.name}: {parameter} is not contiguous"
            else:
                assert isinstance(value, np.generic), f"{self.name}: {parameter} needs a dtype, not {type(value)}"
            assert value.dtype == dtype, f"{self.name}: {parameter} is given {value.dtype}"
        with np.errstate(all="ignore"):
            ROWS[self.name.removeprefix("minipeft_").rpartition("_")[0]](*fake_cupy.unwrap(arguments))


# ---- twins


def _adamw(
    grad: Any, scale: Any, b1: Any, r1: Any, b2: Any, r2: Any, rate: Any, corr: Any, eps: Any, keep: Any, *state: Any
) -> Any:
    theta, m, v = state
    g = grad * scale
    m, v = b1 * m + r1 * g, b2 * v + r2 * g * g
    return keep * theta - rate * m / (np.sqrt(v) * corr + eps), m, v


def _dropout_mask(low: Any, high: Any, limit: Any, keep: Any) -> Any:
    mix = PLAIN._mix
    with np.errstate(over="ignore"):
        return (mix(mix(np.arange(keep.size, dtype=np.uint32) + low) ^ high).reshape(keep.shape) >= limit,)


def _addresses(
    x: Any, xo: Any, xi: Any, y: Any, yo: Any, yi: Any, z: Any, zo: Any, zi: Any, inner: Any, *out: Any
) -> Any:
    i = np.arange(out[0].size)
    return [s + i // inner * o + i % inner * n for s, o, n in ((x, xo, xi), (y, yo, yi), (z, zo, zi))]


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "minipeft_erf": lambda x: (PLAIN.erf(x),),
    "minipeft_gelu": lambda x: PLAIN.gelu(x)[:1],
    "minipeft_gelu_slope": PLAIN.gelu,
    "minipeft_gelu_tanh": lambda x: PLAIN.gelu(x, tanh=True)[:1],
    "minipeft_gelu_tanh_slope": lambda x: PLAIN.gelu(x, tanh=True),
    "minipeft_silu": PLAIN.silu,
    "minipeft_dropout_mask": _dropout_mask,
    "minipeft_adamw": _adamw,
    "minipeft_addresses": _addresses,
}


def _into(*places_and_values: Any) -> None:
    for place, value in zip(places_and_values[::2], places_and_values[1::2], strict=True):
        place[...] = value


def _attention(x: Any, mask: Any, scale: Any, lowest: Any, has_mask: Any, causal: Any, *_: Any) -> None:
    _into(x, PLAIN.attention_weights(x.copy(), scale, mask if has_mask else None, bool(causal)))


def _cross_entropy(x: Any, y: Any, loss: Any, derivative: Any, rows: Any, d: Any) -> None:
    losses, slopes = PLAIN.cross_entropy(x, y)
    _into(loss, losses, derivative, slopes)


def _norm(x: Any, x_hat: Any, scale: Any, eps: Any, centre: Any, *_: Any) -> None:
    a, b = (PLAIN.layer_norm if centre else PLAIN.rms_norm)(x, eps)
    _into(x_hat, a, scale, b)


def _norm_backward(g: Any, x_hat: Any, scale: Any, dx: Any, centre: Any, *_: Any) -> None:
    _into(dx, (PLAIN.layer_norm_backward if centre else PLAIN.rms_norm_backward)(g, x_hat, scale))


def _add_runs(rows: Any, order: Any, starts: Any, sums: Any, d: Any) -> None:
    _into(sums, np.add.reduceat(rows[order], starts[:-1], axis=0))


ROWS: dict[str, Callable[..., None]] = {
    "softmax": lambda x, p, rows, d: _into(p, PLAIN.softmax(x.copy())),
    "attention": _attention,
    "softmax_backward": lambda p, g, rows, d: _into(g, PLAIN.softmax_backward(p, g.copy())),
    "cross_entropy": _cross_entropy,
    "norm": _norm,
    "norm_backward": _norm_backward,
    "add_runs": _add_runs,
}


# ---- cupy.cuda, and cuBLAS on host memory


def _matrices(addresses: int, count: int, rows: int, columns: int, lead: int, turned: int, kind: Any) -> list[Any]:
    """The matrices that an array of pointers names, seen row-major: cuBLAS's columns are our rows."""
    pointers = (ctypes.c_uint64 * count).from_address(addresses)
    length, wide = (columns, rows) if turned else (rows, columns)
    found = []
    for pointer in pointers:
        memory = (kind * ((length - 1) * lead + wide)).from_address(pointer)
        size = ctypes.sizeof(kind)
        matrix: Any = np.ndarray((length, wide), kind, memory, strides=(lead * size, size))
        found.append(matrix.T if turned else matrix)
    return found


def _gemm_batched(kind: Any) -> Callable[..., None]:
    def multiply(
        handle: int, ta: int, tb: int, m: int, n: int, k: int, alpha: int, a: int, lda: int, b: int, ldb: int, beta: int,
        c: int, ldc: int, count: int,
    ) -> None:  # fmt: skip
        lefts = _matrices(b, count, n, k, ldb, tb, kind)
        rights = _matrices(a, count, k, m, lda, ta, kind)
        for left, right, out in zip(lefts, rights, _matrices(c, count, n, m, ldc, 0, kind), strict=True):
            out[...] = left @ right

    return multiply


cublas = types.SimpleNamespace(
    sgemmBatched=_gemm_batched(ctypes.c_float),
    dgemmBatched=_gemm_batched(ctypes.c_double),
    setMathMode=lambda handle, mode: None,
    getVersion=lambda handle: 130000,
)


class Device:
    id, compute_capability = 0, "80"

    def synchronize(self) -> None:
        fake_cupy._wait()


class MemoryHook:
    """Sees nothing: the fake has no pool."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def make_cuda() -> Any:
    cuda: Any = types.ModuleType("cupy.cuda")
    cuda.is_available = lambda: True
    cuda.device = types.SimpleNamespace(Device=Device, get_cublas_handle=lambda: 0)
    cuda.memory_hook = types.SimpleNamespace(MemoryHook=MemoryHook)
    cuda.compiler = types.SimpleNamespace(CompileException=type("CompileException", (Exception,), {}))
    cuda.runtime = types.SimpleNamespace(
        getDeviceProperties=lambda device: {"name": b"a fake"},
        memGetInfo=lambda: (8 * 10**9, 8 * 10**9),
        runtimeGetVersion=lambda: 13000,
    )
    return cuda

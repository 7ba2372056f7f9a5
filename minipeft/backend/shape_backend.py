"""Arrays that have a shape, a dtype and strides, and no values: a whole training step of GPT-3 takes no memory.

The engine, the models and the methods run on them as they are, so what is counted there (parameters, bytes, the operations
of matrix products) is by construction what the same code does with numbers. Whatever would need a value is an error.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from minipeft import backend
from minipeft.backend import random
from minipeft.backend.base import Backend
from minipeft.errors import UserError

BOOL = np.dtype(bool)


class ShapeArray:
    """An array without values. `layout` is NumPy's idea of its shape and strides over one element, and is never read."""

    def __init__(self, layout: np.ndarray, base: ShapeArray | None = None) -> None:
        self.layout, self.base = layout, base
        self.shape, self.dtype, self.ndim, self.size = layout.shape, layout.dtype, layout.ndim, layout.size
        self.nbytes = layout.nbytes

    # ---- views and copies, exactly where NumPy makes them

    def _view(self, layout: np.ndarray) -> ShapeArray:
        return ShapeArray(layout, self.base if self.base is not None else self)

    def reshape(self, *shape: Any) -> ShapeArray:
        """A view where the strides allow one, else a new array."""
        shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        if -1 in shape:
            rest = -math.prod(shape)
            shape = tuple(self.size // max(rest, 1) if n == -1 else n for n in shape)
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape an array of shape {self.shape} into shape {shape}")
        try:
            return self._view(np.reshape(self.layout, shape, copy=False))
        except ValueError:  # the strides do not allow a view
            return empty(shape, self.dtype)

    def swapaxes(self, i: int, j: int) -> ShapeArray:
        """A view."""
        return self._view(self.layout.swapaxes(i, j))

    def transpose(self, *axes: Any) -> ShapeArray:
        """A view."""
        return self._view(self.layout.transpose(*axes))

    @property
    def T(self) -> ShapeArray:
        """A view."""
        return self._view(self.layout.T)

    def __getitem__(self, index: Any) -> ShapeArray:
        if isinstance(index, ShapeArray | np.ndarray):  # rows by number: a copy
            return empty((*index.shape, *self.shape[1:]), self.dtype)
        index = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, ShapeArray | np.ndarray) for part in index):
            raise UserError("Arrays without values take one array as an index, alone.")
        return self._view(self.layout[index if ... in index else (*index, ...)])  # with ..., never a read element

    def __setitem__(self, index: Any, value: Any) -> None:
        """Nothing to write."""

    def take(self, indices: Any) -> ShapeArray:
        """A new array: elements by number."""
        return empty(indices.shape, self.dtype)

    def copy(self) -> ShapeArray:
        """A new array."""
        return empty(self.shape, self.dtype)

    def astype(self, dtype: Any) -> ShapeArray:
        """A new array."""
        return empty(self.shape, dtype)

    def fill(self, value: Any) -> None:
        """Nothing to write."""

    def __len__(self) -> int:
        return int(self.shape[0])

    def __iter__(self) -> Iterator[ShapeArray]:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        raise UserError("This array has a shape and no values: it is for counting. Load the model to compute with it.")

    __int__ = __bool__ = __index__ = __float__

    # ---- arithmetic

    def _with(self, *others: Any) -> ShapeArray:
        return elementwise(self, *others)

    def _quotient(self, other: Any) -> ShapeArray:
        return elementwise(self, other, floating=True)

    def _compared(self, other: Any) -> ShapeArray:
        return elementwise(self, other, dtype=BOOL)

    def _in_place(self, other: Any) -> ShapeArray:
        assert elementwise(self, other).shape == self.shape, f"{self.shape} cannot take {getattr(other, 'shape', ())}"
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __pow__ = __rpow__ = __floordiv__ = __mod__ = _with
    __and__ = __or__ = __xor__ = __lshift__ = __rshift__ = __neg__ = _with
    __truediv__ = __rtruediv__ = _quotient
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _compared  # type: ignore[assignment]
    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ixor__ = _in_place
    __hash__ = object.__hash__

    def __matmul__(self, other: ShapeArray) -> ShapeArray:
        return product(self, other)

    # ---- reductions

    def sum(self, axis: Any = None, dtype: Any = None, keepdims: bool = False, out: Any = None) -> ShapeArray:
        """The shape that is left, here and below."""
        axes = (
            range(self.ndim) if axis is None else [a % self.ndim for a in ((axis,) if isinstance(axis, int) else axis)]
        )
        shape = [1 if i in axes else n for i, n in enumerate(self.shape) if keepdims or i not in axes]
        return out if out is not None else empty(tuple(shape), dtype or self.dtype)

    mean = max = min = prod = sum

    def argmax(self, axis: Any = None) -> ShapeArray:
        """Integers."""
        return self.sum(axis, np.int64)


def empty(shape: Any, dtype: Any = np.float64) -> ShapeArray:
    """A new array, its elements side by side."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    dtype = np.dtype(dtype)
    strides = [dtype.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return ShapeArray(np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, strides, writeable=False))


def elementwise(*values: Any, dtype: Any = None, floating: bool = False) -> ShapeArray:
    """The result of an operation on each element: broadcast, of the common dtype (a Python number has none)."""
    shape = np.broadcast_shapes(*(getattr(v, "shape", ()) for v in values))
    dtype = np.result_type(*(getattr(v, "dtype", v) for v in values)) if dtype is None else dtype
    return empty(shape, np.float64 if floating and dtype.kind in "iub" else dtype)


def product(x: Any, y: Any, out: ShapeArray | None = None) -> ShapeArray:
    """(..., m, k) @ (..., k, n); of two vectors their inner product."""
    if x.ndim == y.ndim == 1:
        return empty((), np.result_type(x.dtype, y.dtype))
    assert x.shape[-1] == y.shape[-2], f"{x.shape} @ {y.shape}"
    shape = (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])
    assert out is None or out.shape == shape, f"{shape} into {None if out is None else out.shape}"
    return out if out is not None else empty(shape, np.result_type(x.dtype, y.dtype))


class Namespace:
    """NumPy's names, for what the engine and the methods use of them. Another name is an AttributeError."""

    float32, float64, finfo = np.float32, np.float64, np.finfo
    int32, int64, uint32, intp = np.int32, np.int64, np.uint32, np.intp
    ndarray = ShapeArray
    matmul = staticmethod(product)

    def __init__(self) -> None:
        for name in ("exp", "log", "sqrt", "tanh", "cos", "sin"):
            setattr(self, name, lambda x: elementwise(x, floating=True))
        for name in ("abs", "negative", "maximum", "minimum", "square"):
            setattr(self, name, elementwise)
        views: Any = (np.expand_dims, np.broadcast_to)
        for view in views:
            setattr(self, view.__name__, lambda x, how, view=view: x._view(view(x.layout, how)))
        for name in ("zeros", "ones", "empty"):
            setattr(self, name, empty)
        for name in ("zeros_like", "ones_like", "empty_like", "copy", "ascontiguousarray", "triu"):
            setattr(self, name, lambda x, dtype=None, k=0: empty(x.shape, dtype or x.dtype))

    def full(self, shape: Any, value: Any, dtype: Any = None) -> ShapeArray:
        """As NumPy's."""
        return empty(shape, dtype or np.asarray(value).dtype)

    def asarray(self, value: Any, dtype: Any = None) -> ShapeArray:
        """As NumPy's."""
        if isinstance(value, ShapeArray):
            return value if dtype is None or value.dtype == np.dtype(dtype) else value.astype(dtype)
        value = np.asarray(value, dtype=dtype)
        return empty(value.shape, value.dtype)

    def arange(self, *limits: int, dtype: Any = np.int64) -> ShapeArray:
        """As NumPy's."""
        return empty(len(range(*limits)), dtype)

    def where(self, condition: Any, x: Any, y: Any) -> ShapeArray:
        """As NumPy's."""
        both = elementwise(x, y)
        return empty(np.broadcast_shapes(condition.shape, both.shape), both.dtype)

    def concatenate(self, arrays: Sequence[ShapeArray], axis: int = 0) -> ShapeArray:
        """As NumPy's."""
        shape = list(arrays[0].shape)
        shape[axis] = sum(a.shape[axis] for a in arrays)
        return empty(shape, np.result_type(*(a.dtype for a in arrays)))

    def stack(self, arrays: Sequence[ShapeArray], axis: int = 0) -> ShapeArray:
        """As NumPy's."""
        shape = list(arrays[0].shape)
        shape.insert(axis % (len(shape) + 1), len(arrays))
        return empty(shape, arrays[0].dtype)

    def sum(self, x: ShapeArray, axis: Any = None, keepdims: bool = False, out: Any = None) -> ShapeArray:
        """As NumPy's."""
        return x.sum(axis, keepdims=keepdims, out=out)


class ShapeGenerator:
    """Draws shapes, in the place of every random generator."""

    def standard_normal(self, size: Any, dtype: Any = np.float64) -> ShapeArray:
        """As NumPy's."""
        return empty(size, dtype)

    def uniform(self, low: float, high: float, size: Any) -> ShapeArray:
        """As NumPy's."""
        return empty(size)

    def integers(self, low: int, high: int, size: Any, dtype: Any = np.int64) -> ShapeArray:
        """As NumPy's."""
        return empty(size, dtype)

    def choice(self, count: int, size: Any, **options: Any) -> ShapeArray:
        """As NumPy's."""
        return empty(size, np.int64)

    def permuted(self, x: Any, axis: int | None = None) -> ShapeArray:
        """As NumPy's."""
        return empty(x.shape, x.dtype)


class ShapeBackend(Backend):
    """The base's formulas on shapes; what picks elements by their values is written out here."""

    name = "shapes"
    xp: Any
    chunk = 1 << 62  # nothing has to fit a cache

    def __init__(self) -> None:
        super().__init__()
        self.xp = Namespace()

    def to_numpy(self, array: Any) -> Any:
        """A host's array as it is; one without values cannot be had."""
        if isinstance(array, ShapeArray):
            float(array)
        return np.asarray(array)

    def svd(self, x: ShapeArray) -> tuple[ShapeArray, ShapeArray, ShapeArray]:
        """As the base's."""
        (m, n), k = x.shape, min(x.shape)
        return empty((m, k), x.dtype), empty(k, x.dtype), empty((k, n), x.dtype)

    def erf(self, x: ShapeArray) -> ShapeArray:
        """As the base's."""
        return x.copy()

    def dropout_mask(self, shape: tuple[int, ...], p: float, key: int) -> ShapeArray:
        """As the base's."""
        return empty(shape, BOOL)

    def scatter_rows(self, indices: Any, rows: ShapeArray) -> tuple[Any, ShapeArray]:
        """As the base's."""
        distinct = np.unique(indices)
        return distinct, empty((distinct.size, rows.shape[1]), rows.dtype)

    def cross_entropy(self, logits: ShapeArray, targets: Any) -> tuple[ShapeArray, ShapeArray]:
        """As the base's."""
        return empty(logits.shape[:1], logits.dtype), logits.copy()


@contextlib.contextmanager
def shapes_only() -> Iterator[ShapeBackend]:
    """Inside, every new array has a shape and no values, and every draw is one of shapes."""
    before, shapes = backend._active, ShapeBackend()
    backend._active = shapes
    try:
        with random.drawn_from(ShapeGenerator()):
            yield shapes
    finally:
        backend._active = before

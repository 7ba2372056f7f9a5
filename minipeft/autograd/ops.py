"""Arithmetic, matrix products, shapes and reductions. Each op is its value and, beside it, one vjp a parent.

In a vjp, `g` is dL/d(output). Broadcasting is undone by the tape, so a vjp may return a gradient of the broadcast shape.
Arguments that are not Tensors (numbers, arrays) are constants.
"""

from __future__ import annotations

from typing import Any

from minipeft.autograd.tape import Partial, Product
from minipeft.autograd.tensor import Tensor, record
from minipeft.backend import Array, active
from minipeft.errors import UserError


def _value(a: Any) -> Any:
    if isinstance(a, Tensor):
        return a.data
    return active().asarray(a) if hasattr(a, "shape") else a  # an array of the host is moved to the device


def _broadcast(name: str, a: Any, b: Any) -> tuple[Any, Any]:
    x, y = _value(a), _value(b)
    if hasattr(x, "shape") and hasattr(y, "shape") and x.shape != y.shape:
        for m, n in zip(reversed(x.shape), reversed(y.shape), strict=False):
            if m != n and m != 1 and n != 1:
                raise UserError(f"{name}: shapes {x.shape} and {y.shape} do not broadcast.")
    return x, y


# ---- arithmetic


def add(a: Any, b: Any) -> Tensor:
    """a + b."""
    x, y = _broadcast("add", a, b)
    return record(x + y, (a, lambda g: g), (b, lambda g: g))


def subtract(a: Any, b: Any) -> Tensor:
    """a - b."""
    x, y = _broadcast("subtract", a, b)
    return record(x - y, (a, lambda g: g), (b, lambda g: -g))


def multiply(a: Any, b: Any) -> Tensor:
    """a ⊙ b."""
    x, y = _broadcast("multiply", a, b)
    return record(x * y, (a, lambda g: g * y), (b, lambda g: g * x))


def divide(a: Any, b: Any) -> Tensor:
    """a / b."""
    x, y = _broadcast("divide", a, b)
    return record(x / y, (a, lambda g: g / y), (b, lambda g: -g * x / (y * y)))


def power(a: Tensor, exponent: float) -> Tensor:
    """a to the power of a Python number."""
    if isinstance(exponent, Tensor):
        raise UserError("power: the exponent is a Python number; for a Tensor write (b * a.log()).exp().")
    x = a.data
    return record(x**exponent, (a, lambda g: g * (exponent * x ** (exponent - 1))))


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of a and b, element by element; where they are equal the gradient is shared."""
    x, y = _broadcast("maximum", a, b)
    xp = active().xp

    def share(mine: Any, other: Any) -> Array:
        return ((mine > other) + 0.5 * (mine == other)).astype(g_dtype)

    value = xp.maximum(x, y)
    g_dtype = value.dtype
    return record(value, (a, lambda g: g * share(x, y)), (b, lambda g: g * share(y, x)))


def where(condition: Array, a: Any, b: Any) -> Tensor:
    """`a` where the boolean array is True, else `b`."""
    xp, condition = active().xp, active().asarray(condition)
    x, y = _value(a), _value(b)
    return record(
        xp.where(condition, x, y),
        (a, lambda g: xp.where(condition, g, xp.zeros_like(g))),
        (b, lambda g: xp.where(condition, xp.zeros_like(g), g)),
    )


# ---- functions of one tensor


def exp(a: Tensor) -> Tensor:
    """e^a."""
    y = active().xp.exp(a.data)
    return record(y, (a, lambda g: g * y))


def log(a: Tensor) -> Tensor:
    """ln a."""
    x = a.data
    return record(active().xp.log(x), (a, lambda g: g / x))


def sqrt(a: Tensor) -> Tensor:
    """√a."""
    y = active().xp.sqrt(a.data)
    return record(y, (a, lambda g: g / (2 * y)))


def tanh(a: Tensor) -> Tensor:
    """The hyperbolic tangent; d tanh = 1 - tanh²."""
    y = active().xp.tanh(a.data)
    return record(y, (a, lambda g: g * (1 - y * y)))


def relu(a: Tensor) -> Tensor:
    """max(a, 0)."""
    positive = a.data > 0
    return record(active().xp.maximum(a.data, 0), (a, lambda g: g * positive))


# ---- matrix product


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """(..., m, k) @ (..., k, n) -> (..., m, n)."""
    x, y = a.data, b.data
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
        raise UserError(f"matmul: {x.shape} @ {y.shape}; needs (..., m, k) @ (..., k, n) with the same k.")
    product = active().matmul
    if y.ndim == 2:  # a weight: the gradient of every row of x adds up in one product
        return record(
            product(x, y),
            (a, lambda g: product(g, y.T)),  # dL/da = g bᵀ
            (b, lambda g: Product(x.reshape(-1, x.shape[-1]).T, g.reshape(-1, g.shape[-1]))),  # dL/db = aᵀ g
        )
    return record(
        product(x, y),
        (a, lambda g: product(g, y.swapaxes(-1, -2))),
        (b, lambda g: product(x.swapaxes(-1, -2), g)),
    )


# ---- shapes


def reshape(a: Tensor, shape: Any) -> Tensor:
    """The same elements in another shape."""
    old = a.shape
    shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else tuple(shape)
    try:
        value = a.data.reshape(shape)
    except ValueError:
        raise UserError(f"reshape: {a.numel()} elements of shape {old} do not fit shape {shape}.") from None
    return record(value, (a, lambda g: g.reshape(old)))


def swapaxes(a: Tensor, i: int, j: int) -> Tensor:
    """Axes i and j exchanged."""
    return record(a.data.swapaxes(i, j), (a, lambda g: g.swapaxes(i, j)))


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The axes in the order given."""
    if sorted(axis % a.ndim for axis in axes) != list(range(a.ndim)):
        raise UserError(f"transpose: {axes} is not an order of the {a.ndim} axes of shape {a.shape}.")
    back = tuple(sorted(range(a.ndim), key=lambda i: axes[i] % a.ndim))
    return record(a.data.transpose(axes), (a, lambda g: g.transpose(back)))


def getitem(a: Tensor, index: Any) -> Tensor:
    """a[index] for integers, slices, None and `...`: indices that name no element twice.

    For rows by an integer array, which may repeat, use `functional.embedding`.
    """
    for part in index if isinstance(index, tuple) else (index,):
        if not (part is None or part is ... or isinstance(part, int | slice)):
            raise UserError(f"getitem takes integers, slices, None and ...; {type(part).__name__} needs `embedding`.")
    return record(a.data[index], (a, lambda g: Partial(index, g)))


def concatenate(tensors: list[Tensor], axis: int = 0) -> Tensor:
    """The tensors one after the other along an axis that exists."""
    value = active().xp.concatenate([t.data for t in tensors], axis=axis)
    lengths = [t.shape[axis] for t in tensors]

    def cut(g: Array) -> tuple[Array, ...]:
        parts, start = [], 0
        for n in lengths:
            parts.append(g[(slice(None),) * (axis % g.ndim) + (slice(start, start + n),)])
            start += n
        return tuple(parts)

    return record(value, (tuple(tensors), cut))


def stack(tensors: list[Tensor], axis: int = 0) -> Tensor:
    """The tensors side by side along a new axis."""
    value = active().xp.stack([t.data for t in tensors], axis=axis)
    at = axis % value.ndim
    return record(value, (tuple(tensors), lambda g: tuple(g[(slice(None),) * at + (i,)] for i in range(g.shape[at]))))


# ---- reductions


def _expand(g: Array, axis: Any, keepdims: bool) -> Array:
    """Give a reduced gradient its summed axes back, with length 1."""
    return active().xp.expand_dims(g, axis) if axis is not None and not keepdims else g


def sum(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over the axes given, or over all."""
    shape, xp = a.shape, active().xp
    value = xp.asarray(a.data.sum(axis=axis, keepdims=keepdims))
    return record(value, (a, lambda g: xp.broadcast_to(_expand(g, axis, keepdims), shape)))


def mean(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The mean over the axes given, or over all."""
    total = sum(a, axis, keepdims)
    return total * (total.numel() / a.numel())


def max(a: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The largest element; elements that tie share the gradient equally."""
    x, xp = a.data, active().xp
    y = xp.asarray(x.max(axis=axis, keepdims=keepdims))

    def vjp(g: Array) -> Array:
        ties = (x == _expand(y, axis, keepdims)).astype(x.dtype)
        return ties * (_expand(g, axis, keepdims) / ties.sum(axis=axis, keepdims=True))

    return record(y, (a, vjp))

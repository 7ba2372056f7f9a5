"""`Tensor`, and `record`, which puts an op on the tape (`tape.py`).

An op computes its value and hands `record` one vector-Jacobian product (vjp) a parent: a function that takes
g = dL/d(output) and returns dL/d(parent). `record` keeps only the parents that need a gradient. What the kept functions
hold on to (their closures) is all the memory that training costs beyond the weights, and `saved.py` lists it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from minipeft.autograd.tape import Node, Target, Vjp, backward
from minipeft.backend import Array, active
from minipeft.errors import UserError

_grad_enabled: contextvars.ContextVar[bool] = contextvars.ContextVar("grad_enabled", default=True)


class Tensor:
    """An array that can remember how it was made. Names follow torch.

    `data` is the array, `grad` the gradient that `backward` has added up (None before), `requires_grad` whether to
    record what is done with it. Python numbers and lists become float32; an array keeps its dtype.

    Raises:
        UserError: `requires_grad` on an array that is not of a float dtype.
    """

    __slots__ = ("data", "grad", "node", "requires_grad")
    __array_ufunc__ = None  # NumPy leaves `array + tensor` to Tensor

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        xp = active().xp
        if isinstance(data, Tensor):
            raise UserError("A Tensor cannot be made of a Tensor; use .detach() for one that shares its data.")
        if not hasattr(data, "dtype"):
            data = xp.asarray(data)
            if data.dtype == xp.float64:
                data = data.astype(xp.float32)
        self.data: Array = active().asarray(data)
        if requires_grad and self.data.dtype.kind != "f":
            raise UserError(f"Only float tensors can require a gradient; this one is {self.data.dtype}.")
        self.requires_grad = requires_grad
        self.grad: Array | None = None
        self.node: Node | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return tuple(self.data.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return int(self.data.ndim)

    @property
    def dtype(self) -> Any:
        """The dtype of the elements."""
        return self.data.dtype

    def numel(self) -> int:
        """The number of elements."""
        return int(self.data.size)

    def item(self) -> float:
        """The value of a tensor of one element, as a Python number."""
        if self.data.size != 1:
            raise UserError(f"item() needs a tensor of one element; this one has shape {self.shape}.")
        return float(active().to_numpy(self.data).reshape(()))

    def numpy(self) -> Any:
        """The values as a NumPy array."""
        return active().to_numpy(self.data)

    def detach(self) -> Tensor:
        """A tensor of the same data that remembers nothing."""
        return Tensor(self.data)

    def backward(self, gradient: Array | None = None) -> None:
        """Add dL/dθ to `grad` of every leaf θ below, for L = this tensor (or Σ gradient ⊙ this tensor).

        The tape is freed as the gradient passes: a second call on the same graph is an error.

        Raises:
            UserError: this tensor is not a scalar and no `gradient` is given, or that has another shape,
                or nothing below needs a gradient, or the graph has been used already.
        """
        if gradient is None:
            if self.data.size != 1:
                raise UserError(f"backward() starts from a scalar; this tensor has shape {self.shape}. Sum it first.")
            gradient = active().xp.ones_like(self.data)
        elif tuple(gradient.shape) != self.shape:
            raise UserError(
                f"backward: a gradient of shape {tuple(gradient.shape)} for a tensor of shape {self.shape}."
            )
        if not self.requires_grad:
            raise UserError("Nothing below this tensor requires a gradient, so there is nothing to differentiate.")
        backward([self], [active().asarray(gradient)])

    def __repr__(self) -> str:
        suffix = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({active().to_numpy(self.data)!r}{suffix})"

    def __len__(self) -> int:
        return len(self.data)

    # Arithmetic and shapes: each is the op of the same name in ops.py.

    def __add__(self, other: Any) -> Tensor:
        return ops.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return ops.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return ops.subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return ops.subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return ops.multiply(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return ops.multiply(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return ops.divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return ops.divide(other, self)

    def __neg__(self) -> Tensor:
        return ops.multiply(self, -1.0)

    def __pow__(self, exponent: float) -> Tensor:
        return ops.power(self, exponent)

    def __matmul__(self, other: Tensor) -> Tensor:
        return ops.matmul(self, other)

    def __getitem__(self, index: Any) -> Tensor:
        return ops.getitem(self, index)

    @property
    def mT(self) -> Tensor:
        """The last two axes exchanged."""
        return ops.swapaxes(self, -1, -2)

    def reshape(self, *shape: int) -> Tensor:
        """The same elements in another shape; one length may be -1."""
        return ops.reshape(self, shape)

    def swapaxes(self, i: int, j: int) -> Tensor:
        """Axes i and j exchanged."""
        return ops.swapaxes(self, i, j)

    def transpose(self, *axes: int) -> Tensor:
        """The axes in the order given."""
        return ops.transpose(self, axes)

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """The sum over the axes given, or over all."""
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
        """The mean over the axes given, or over all."""
        return ops.mean(self, axis, keepdims)

    def max(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """The largest element along an axis, or of all; equal ones share the gradient."""
        return ops.max(self, axis, keepdims)

    def exp(self) -> Tensor:
        """e to the power of each element."""
        return ops.exp(self)

    def log(self) -> Tensor:
        """The natural logarithm."""
        return ops.log(self)

    def sqrt(self) -> Tensor:
        """The square root."""
        return ops.sqrt(self)

    def tanh(self) -> Tensor:
        """The hyperbolic tangent."""
        return ops.tanh(self)

    def relu(self) -> Tensor:
        """max(x, 0)."""
        return ops.relu(self)


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Inside, nothing is recorded and nothing is kept for a backward pass."""
    token = _grad_enabled.set(False)
    try:
        yield
    finally:
        _grad_enabled.reset(token)


def grad_enabled() -> bool:
    """Whether ops are being recorded here."""
    return _grad_enabled.get()


def record(value: Array, *edges: tuple[Any, Vjp]) -> Tensor:
    """The result of an op, with one edge `(parent, vjp)` a parent.

    A parent that is not a Tensor, or needs no gradient, is dropped together with what its vjp would have kept.
    A parent may be a tuple of Tensors with one joint vjp, which returns a tuple (None where none is needed).
    A vjp may return its gradient before broadcasting is undone: the tape sums it to the parent's shape.

    Raises:
        UserError: the result has another dtype than a parent that needs a gradient.
    """
    out = Tensor(value)
    if not _grad_enabled.get():
        return out
    kept: list[tuple[Target, Vjp]] = []
    for parent, vjp in edges:
        if isinstance(parent, tuple):
            targets = tuple(_target(p, out) for p in parent)
            if any(target is not None for target in targets):
                kept.append((targets, vjp))
        elif (target := _target(parent, out)) is not None:
            kept.append((target, vjp))
    if kept:
        out.requires_grad = True
        out.node = Node(kept, out.data)
    return out


def _target(parent: Any, out: Tensor | None = None) -> Node | Tensor | None:
    if not isinstance(parent, Tensor) or not parent.requires_grad:
        return None
    if out is not None and parent.dtype != out.dtype:
        raise UserError(
            f"An op turned a {parent.dtype} tensor into {out.dtype}: the other argument is of another dtype. "
            f"Convert it with .astype({str(parent.dtype)!r}); Python numbers need no conversion."
        )
    return parent.node if parent.node is not None else parent


from minipeft.autograd import ops  # noqa: E402  (ops needs Tensor; Tensor's operators need ops when they are called)

"""The tape: recorded ops as `Node`s, and `backward`, which walks them from the newest to the oldest."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from minipeft.backend import Array, active
from minipeft.errors import UserError

if TYPE_CHECKING:
    from minipeft.autograd.tensor import Tensor

_order = itertools.count()


class Partial(NamedTuple):
    """The gradient of x[index]: `value` there and zero elsewhere. `index` names no element twice."""

    index: Any
    value: Array


class Product(NamedTuple):
    """The gradient left @ right of a weight, not multiplied out yet, so that it can be written straight into its place."""

    left: Array
    right: Array

    def value(self) -> Array:
        """The product."""
        return active().matmul(self.left, self.right)


Vjp = Callable[[Array], Any]  # dL/d(output) -> dL/d(parent); for a tuple of parents, a tuple of them
Target = Any  # where a gradient goes: a Node, a leaf Tensor, or a tuple of these and None for a joint vjp


class Node:
    """One recorded op: its kept parents with their vjps, and what its gradient must look like."""

    __slots__ = ("dtype", "edges", "order", "shape")

    def __init__(self, edges: list[tuple[Target, Vjp]], value: Array) -> None:
        self.edges: list[tuple[Target, Vjp]] | None = edges  # None once the gradient has passed
        self.order = next(_order)  # parents are always made before their children
        self.shape, self.dtype = value.shape, value.dtype


def accumulate(leaf: Tensor, g: Any) -> None:
    """Add a gradient, an array, a `Partial` or a `Product`, to `leaf.grad`."""
    if leaf.grad is None:
        if not isinstance(g, Partial):
            leaf.grad = g.value() if isinstance(g, Product) else g.copy()  # g may belong to another tensor as well
            return
        leaf.grad = active().xp.zeros_like(leaf.data)
    if isinstance(g, Partial):
        _add_partial(leaf.grad, g)
    else:
        leaf.grad += g.value() if isinstance(g, Product) else g


def backward(
    tensors: Sequence[Tensor], gradients: Sequence[Array], sink: Callable[[Tensor, Any], None] = accumulate
) -> None:
    """Differentiate Σ gradient ⊙ tensor over all pairs; `sink(leaf, g)` takes each gradient that reaches a leaf.

    Nodes are visited from the newest to the oldest, so that each is complete when its turn comes; nothing recurses.
    """
    pending: dict[Node, Array] = {}
    owned: set[Node] = set()  # gradients that are ours to add to; others may be shared between two parents
    queue: list[tuple[int, Node]] = []

    def give(target: Node | Tensor, g: Any) -> None:
        if isinstance(g, Product) and isinstance(target, Node):
            g = g.value()
        if not isinstance(g, Partial | Product):
            g = _unbroadcast(g, target.shape)
            assert g.dtype == target.dtype, f"a vjp returned {g.dtype} for a parent of {target.dtype}"
        if not isinstance(target, Node):
            sink(target, g)
        elif target not in pending:
            heapq.heappush(queue, (-target.order, target))
            if isinstance(g, Partial):
                pending[target] = _add_partial(active().xp.zeros(target.shape, dtype=target.dtype), g)
                owned.add(target)
            else:
                pending[target] = g
        elif isinstance(g, Partial) and target in owned:
            _add_partial(pending[target], g)
        elif isinstance(g, Partial):
            pending[target] = _add_partial(pending[target].copy(), g)
            owned.add(target)
        elif target in owned:
            pending[target] += g
        else:
            pending[target] = pending[target] + g
            owned.add(target)

    for tensor, gradient in zip(tensors, gradients, strict=True):
        if tensor.requires_grad:
            give(tensor.node if tensor.node is not None else tensor, gradient)
    while queue:
        node = heapq.heappop(queue)[1]
        g = pending.pop(node)
        if node.edges is None:
            raise UserError("This graph has been differentiated already and is freed; run the forward pass again.")
        edges, node.edges = node.edges, None
        while edges:
            target, vjp = edges.pop()
            if not isinstance(target, tuple):
                give(target, vjp(g))
                continue
            for part, gradient in zip(target, vjp(g), strict=True):
                if part is not None:
                    give(part, gradient)


def _add_partial(total: Array, g: Partial) -> Array:
    total[g.index] += g.value
    return total


def _unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """Sum a gradient over the axes along which its parent was repeated: the one place where broadcasting is undone."""
    if g.shape == shape:
        return g
    if g.ndim > len(shape):
        g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    if repeated:
        g = g.sum(axis=repeated, keepdims=True)
    assert g.shape == shape, f"a vjp returned shape {g.shape} for a parent of shape {shape}"
    return g

"""Looking at a tape: what it holds for the backward pass, and how many ops it has recorded."""

from __future__ import annotations

from typing import Any

from minipeft.autograd.tape import Node, Target
from minipeft.autograd.tensor import Tensor
from minipeft.backend import Array


def saved_arrays(*roots: Tensor) -> list[Array]:
    """Every distinct array that the tape below `roots` holds for the backward pass, parameters included."""
    found: dict[int, Array] = {}
    nodes: dict[int, Node] = {}
    stack = [root.node for root in roots if root.node is not None]
    while stack:
        node = stack.pop()
        if id(node) in nodes:
            continue
        nodes[id(node)] = node
        for target, vjp in node.edges or ():
            _collect(vjp, found)
            stack.extend(_nodes(target))
    return list(found.values())


def count_nodes(root: Tensor) -> int:
    """The number of recorded ops below `root`, itself included."""
    seen: set[int] = set()
    stack = [root.node] if root.node is not None else []
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            stack.extend(n for target, _ in node.edges or () for n in _nodes(target))
    return len(seen)


def _nodes(target: Target) -> list[Node]:
    return [t for t in (target if isinstance(target, tuple) else (target,)) if isinstance(t, Node)]


def _collect(held: Any, found: dict[int, Array]) -> None:
    """Arrays inside a closure, a tuple or a Tensor; a view counts as the buffer it keeps alive."""
    if callable(held) and getattr(held, "__closure__", None):
        for cell in held.__closure__:
            _collect(cell.cell_contents, found)
    elif isinstance(held, tuple | list):
        for part in held:
            _collect(part, found)
    elif isinstance(held, Tensor):
        _collect(held.data, found)
    elif hasattr(held, "nbytes") and hasattr(held, "dtype") and held.ndim:
        held = buffer_of(held)
        found[id(held)] = held


def buffer_of(array: Array) -> Array:
    """The array that owns the memory of a view."""
    while getattr(array, "base", None) is not None and hasattr(array.base, "nbytes"):
        array = array.base
    return array

"""Lab 1: autograd. Read handout.md first.

This lab is NumPy and nothing else. A vector-Jacobian product (vjp) takes g = dL/d(output), an array of the output's shape,
and gives dL/d(input), an array of the input's shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def matmul_vjp(g: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Task 1. dL/da and dL/db of y = a @ b.

    a is (..., m, k). b is (k, n), a weight that every row of a shares, or (..., k, n) with the leading axes of a.
    g is (..., m, n). The answers have the shapes of a and of b.
    """
    raise NotImplementedError("Lab 1, task 1: return dL/da and dL/db of a @ b.")


def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """Task 2. The gradient of an input of `shape` that was broadcast to g.shape: sum g over every axis that was repeated.

    An axis was repeated if `shape` does not have it (NumPy adds axes on the left), or has it with length 1 where g has not.
    """
    raise NotImplementedError("Lab 1, task 2: sum g over the repeated axes.")


def multiply_vjp(g: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Task 2. dL/da and dL/db of y = a * b, where a and b may be broadcast against each other."""
    raise NotImplementedError("Lab 1, task 2: return dL/da and dL/db of a * b, each in the shape of its input.")


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """Task 3. The mean of -log softmax(logits)[target] over the rows, and its gradient with respect to the logits.

    logits is (n, classes), of any size: 1000 must not overflow, and -1000 must not become log 0. targets is (n,), whole
    numbers. The inputs are left as they are.
    """
    raise NotImplementedError("Lab 1, task 3: return the loss and dL/dlogits, without overflow.")


class Var:
    """A value on the tape. This class is complete; task 4 is the function below.

    Attributes:
        value: an array.
        parents: pairs (parent, vjp): where the value came from. `vjp(g)` gives the parent's part of the gradient.
        grad: dL/d(value); None until `backward` has come by.
        order: how many Vars were made before this one.
    """

    made = 0

    def __init__(self, value: Array, parents: list[tuple[Var, Callable[[Array], Array]]] | None = None) -> None:
        self.value = np.asarray(value, dtype=np.float64)
        self.parents = parents or []
        self.grad: Array | None = None
        self.order = Var.made
        Var.made += 1

    def __add__(self, other: Var) -> Var:
        return Var(self.value + other.value, [(self, lambda g: g), (other, lambda g: g)])

    def __mul__(self, other: Var) -> Var:
        x, y = self.value, other.value
        return Var(x * y, [(self, lambda g: g * y), (other, lambda g: g * x)])

    def sum(self) -> Var:
        """The sum of all elements."""
        shape = self.value.shape
        return Var(self.value.sum(), [(self, lambda g: np.broadcast_to(g, shape))])


def backward(root: Var) -> None:
    """Task 4. Put dL/d(value) into `grad` of `root`, a scalar L, and of every Var that it was made from.

    A Var may be used more than once: its gradient is the sum of what comes back along every way, and its vjps are called
    once, when that sum is complete. Parents are always made before their children, so going from the newest Var to the
    oldest (`order`) is enough. A chain of 100,000 Vars must work: do not recurse.
    """
    raise NotImplementedError("Lab 1, task 4: visit every Var once, from the newest to the oldest.")

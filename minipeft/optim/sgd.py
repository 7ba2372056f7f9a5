"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minipeft.nn import Parameter
from minipeft.optim.flat import Optimizer


class SGD(Optimizer):
    """u ← μu + g + wd·θ, θ ← θ - lr·u; as torch's SGD.

    Args:
        parameters: those that require a gradient are trained.
        lr: learning rate, unless `step` is given one.
        momentum: μ.
        weight_decay: wd, added to the gradient.
    """

    state_names = ("u",)

    def __init__(
        self, parameters: Iterable[Parameter], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr)
        self.momentum, self.weight_decay = momentum, weight_decay

    def update(self, lr: float, scale: Any, part: slice) -> None:
        """In place on θ and u."""
        theta, u = self.flat.theta[part], self.state["u"][part]
        u *= self.momentum
        u += scale * self.flat.grad[part]
        if self.weight_decay:
            u += self.weight_decay * theta
        theta -= lr * u

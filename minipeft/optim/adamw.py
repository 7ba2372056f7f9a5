"""AdamW (arXiv 1711.05101, algorithm 2): Adam with the weight decay applied to θ itself, not to the gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from minipeft.backend import active
from minipeft.errors import UserError
from minipeft.nn import Parameter
from minipeft.optim.flat import Optimizer


class AdamW(Optimizer):
    """m ← β₁m + (1-β₁)g, v ← β₂v + (1-β₂)g², θ ← θ - lr·wd·θ - lr·m̂ / (√v̂ + ε); defaults as torch's.

    Args:
        parameters: those that require a gradient are trained; the others get no state and do not move.
        lr: learning rate, unless `step` is given one.
        betas: (β₁, β₂).
        eps: ε.
        weight_decay: wd.
        rates: parameters that learn at another rate, and how many times as fast.
    """

    state_names = ("m", "v")

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        rates: Mapping[Parameter, float] | None = None,
    ) -> None:
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise UserError(f"betas={betas}: both are in [0, 1).")
        super().__init__(parameters, lr, rates)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def update(self, lr: float, scale: Any, part: slice) -> None:
        """One fused pass over θ, g, m and v."""
        active().adamw_step(
            self.flat.theta[part],
            self.flat.grad[part],
            self.state["m"][part],
            self.state["v"][part],
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            weight_decay=self.weight_decay,
            step=self.steps,
            scale=scale,
        )

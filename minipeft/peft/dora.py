"""DoRA: a weight is a direction, which LoRA changes, and a length a column, which is trained (arXiv 2402.09353, eq. 5).

W' = m ⊙ (W + s A B) / ‖W + s A B‖, with the norm of each column (the weights of one output) and m ∈ R^out, ‖W‖ at the
start, so that training starts from the base exactly. No gradient goes through the norm (section 4.3 there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minipeft.autograd import Tensor
from minipeft.backend import Array, active, random
from minipeft.nn import Linear, Module, Parameter
from minipeft.peft.lora import LoraConfig, LoRALinear, LoraMethod
from minipeft.peft.method import Method


@dataclass(frozen=True)
class DoraConfig(LoraConfig):
    """LoRA's r · (in + out) parameters a target, and out more. Saved as LoRA with PEFT's `use_dora`."""

    peft_type: ClassVar[str] = "DORA"

    def attach(self, model: Module) -> Method:
        """Put a `DoraLinear` in the place of every target. Raises UserError for a name that matches nothing."""
        return LoraMethod(model, self, DoraLinear)


class DoraLinear(LoRALinear):
    """Y = (X W + s · X A B) ⊙ m / ‖W + s A B‖ + b over a frozen `linear`."""

    def __init__(self, linear: Linear, config: LoraConfig, rng: random.Generator) -> None:
        super().__init__(linear, config, rng)
        self.magnitude = Parameter(self.norm())

    def norm(self) -> Array:
        """‖W + s A B‖ of each column, (out,), without forming A B: ‖w‖² + 2s wᵀA b + s² bᵀAᵀA b for columns w and b."""
        matmul, W, A, B = active().matmul, self.linear.weight.data, self.A.data, self.B.data
        square = (W * W).sum(axis=0) + 2 * self.scale * (matmul(A.T, W) * B).sum(axis=0)
        return active().xp.sqrt(square + self.scale**2 * (matmul(matmul(A.T, A), B) * B).sum(axis=0))

    def adapted(self, x: Tensor) -> Tensor:
        """The formula above."""
        y = (x @ self.linear.weight + self.branch(x)) * (self.magnitude / self.norm())
        return y if self.linear.bias is None else y + self.linear.bias

    def fold(self, W: Array, b: Array | None) -> None:
        """W ← m ⊙ (W₀ + s A B) / ‖W₀ + s A B‖."""
        ratio = self.magnitude.data / self.norm()
        super().fold(W, b)
        W *= ratio

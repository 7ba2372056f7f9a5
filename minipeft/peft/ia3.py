"""(IA)³: keys, values and the inner activations are each multiplied by a learned vector (arXiv 2205.05638, section 3.3).

K ← l_k ⊙ K, V ← l_v ⊙ V, and (l_ff ⊙ f(X W_up)) W_down; every l starts at 1, so that training starts from the base exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minipeft.autograd import Tensor
from minipeft.backend import Array
from minipeft.errors import UserError
from minipeft.nn import Linear, Module
from minipeft.nn.layers import constant
from minipeft.peft.method import Method, PeftConfig
from minipeft.peft.targets import match_modules
from minipeft.peft.wrap import Wrapper, WrappingMethod


@dataclass(frozen=True)
class IA3Config(PeftConfig):
    """2d + d_ff parameters a block.

    Attributes:
        target_modules: names of the linear layers.
        feedforward_modules: those among them whose input is scaled, in place of their output.
    """

    peft_type: ClassVar[str] = "MINIPEFT_IA3"

    target_modules: tuple[str, ...] = ("k_proj", "v_proj", "down_proj")
    feedforward_modules: tuple[str, ...] = ("down_proj",)

    def attach(self, model: Module) -> Method:
        """Put an `IA3Linear` in the place of every target. Raises UserError for a name that matches nothing."""
        targets = match_modules(model, self.target_modules, Linear, "all-linear")
        inputs = match_modules(model, self.feedforward_modules, Linear) if self.feedforward_modules else {}
        if inputs.keys() - targets.keys():
            raise UserError(f"feedforward_modules {self.feedforward_modules} are not all among the target_modules.")
        layers = {name: IA3Linear(m, name in inputs) for name, m in targets.items() if isinstance(m, Linear)}
        return WrappingMethod(model, layers)


class IA3Linear(Wrapper):
    """Y = l ⊙ (X W + b), or Y = (l ⊙ X) W + b, over a frozen `linear`."""

    def __init__(self, linear: Linear, scales_input: bool) -> None:
        super().__init__(linear)
        self.scales_input = scales_input
        self.l = constant((linear.weight.shape[0 if scales_input else 1],), 1.0)

    def adapted(self, x: Tensor) -> Tensor:
        """The formula above."""
        return self.linear(x * self.l) if self.scales_input else self.linear(x) * self.l

    def fold(self, W: Array, b: Array | None) -> None:
        """W ← diag(l) W; or W ← W diag(l) and b ← l ⊙ b."""
        W *= self.l.data[:, None] if self.scales_input else self.l.data
        if b is not None and not self.scales_input:
            b *= self.l.data

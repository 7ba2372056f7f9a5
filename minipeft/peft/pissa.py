"""PiSSA: LoRA that starts from the weight's own largest singular directions (arXiv 2404.02948, section 3).

With W = U S Vᵀ, s · A₀ B₀ = U_r S_r V_rᵀ, and A B starts there: Y = X (W - s A₀ B₀) + s · X A B. Here W stays what it is,
and the layer computes X W + s (X A B - X A₀ B₀): the base is never changed, and it starts from it exactly. A file holds the
change s (A B - A₀ B₀) = s (A | A₀) (B; -B₀), LoRA of rank 2r for the original base, which nobody has to decompose again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from minipeft.autograd import Tensor, functional
from minipeft.backend import Array, active, random
from minipeft.errors import UserError
from minipeft.nn import Linear, Module
from minipeft.peft.lora import LoraConfig, LoRALinear, LoraMethod, divisor
from minipeft.peft.method import Method, PeftConfig


@dataclass(frozen=True)
class PissaConfig(LoraConfig):
    """LoRA's r · (in + out) parameters a target; `init` has no meaning. What it saves is loaded as LoRA of rank 2r."""

    peft_type: ClassVar[str] = "PISSA"

    def attach(self, model: Module) -> Method:
        """Put a `PissaLinear` in the place of every target. Raises UserError for a name that matches nothing."""
        return PissaMethod(model, self, PissaLinear)


class PissaLinear(LoRALinear):
    """Y = X W + b + s (X A B - X A₀ B₀) over a frozen `linear`."""

    def __init__(self, linear: Linear, config: LoraConfig, rng: random.Generator) -> None:
        super().__init__(linear, config, rng)
        r, d = config.r, min(linear.weight.shape)
        if 2 * r > d:
            raise UserError(
                f"r={r}: PiSSA is saved as LoRA of rank 2r = {2 * r}, and this weight has rank {d} at most."
            )
        U, S, Vt = active().svd(linear.weight.data)
        root = active().xp.sqrt(S[:r] / self.scale)
        self.A.data[...] = U[:, :r] * root
        self.B.data[...] = root[:, None] * Vt[:r]
        self.A0, self.B0 = Tensor(self.A.data.copy()), Tensor(self.B.data.copy())  # no parameters: they stay

    def branch(self, x: Tensor) -> Tensor:
        """s (X A B - X A₀ B₀)."""
        x = functional.dropout(x, self.dropout, self.training)
        return ((x @ self.A) * self.scale) @ self.B - ((x @ self.A0) * self.scale) @ self.B0

    def fold(self, W: Array, b: Array | None) -> None:
        """W ← W₀ + s (A B - A₀ B₀)."""
        super().fold(W, b)
        W -= self.scale * active().matmul(self.A0.data, self.B0.data)


class PissaMethod(LoraMethod):
    """PiSSA on the chosen linear layers of a model."""

    def exported(self, config: PeftConfig, state: Mapping[str, Any]) -> tuple[PeftConfig, dict[str, Any]]:
        """LoRA of rank 2r with the same s: A next to A₀, B above -B₀."""
        assert isinstance(config, LoraConfig)
        concatenate, more = active().xp.concatenate, divisor(2, config.use_rslora)
        settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(LoraConfig)}
        settings |= {"r": 2 * config.r, "lora_alpha": more * config.lora_alpha}
        settings["rank_pattern"] = {name: 2 * r for name, r in config.rank_pattern.items()}
        settings["alpha_pattern"] = {name: more * alpha for name, alpha in config.alpha_pattern.items()}
        changed = dict(state)
        for name, layer in self.layers.items():
            assert isinstance(layer, PissaLinear)
            changed[f"{name}.A"] = concatenate([layer.A.data, layer.A0.data], axis=1)
            changed[f"{name}.B"] = concatenate([layer.B.data, -layer.B0.data])
        return LoraConfig(**settings), changed

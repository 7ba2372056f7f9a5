"""LoRA: the change of a weight is a product of two thin matrices, Y = X W + b + s · X A B (arXiv 2106.09685, section 4.1).

W ∈ R^{in × out} and b stay frozen; A ∈ R^{in × r} and B ∈ R^{r × out} are trained; s = α / r (or α / √r, rsLoRA, arXiv
2312.03732). B starts at zero, so that training starts from the base model exactly; A does not, or nothing would ever move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from minipeft.autograd import Tensor, functional
from minipeft.backend import Array, active, random
from minipeft.errors import UserError, unknown
from minipeft.nn import Linear, Module, Parameter
from minipeft.nn.layers import constant
from minipeft.peft.method import Method, PeftConfig
from minipeft.peft.targets import ends_with, match_modules
from minipeft.peft.wrap import Wrapper, WrappingMethod


@dataclass(frozen=True)
class LoraConfig(PeftConfig):
    """r · (in + out) parameters a target.

    Attributes:
        r: the rank.
        lora_alpha: α.
        lora_dropout: probability with which the branch's input is dropped, while training.
        target_modules: names of linear layers, or "all-linear" for every one outside the head.
        init: how A starts: "kaiming" uniform in ±1/√in as HF PEFT does, or "gaussian" N(0, (1/r)²).
        use_rslora: s = α / √r.
        bias: biases to train as well: "none", "all", or those of the targets, "lora_only".
        rank_pattern: other ranks for some of the targets, by name: {"blocks.0.q_proj": 4}; the first that fits counts.
        alpha_pattern: likewise, other values of α.
        modules_to_save: names of other modules that are trained whole, beside the head.
    """

    peft_type: ClassVar[str] = "LORA"

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ("q_proj", "v_proj")
    init: str = "kaiming"
    use_rslora: bool = False
    bias: str = "none"
    rank_pattern: Mapping[str, int] = field(default_factory=dict, hash=False)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict, hash=False)
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for r in (self.r, *self.rank_pattern.values()):
            if r < 1:
                raise UserError(f"r={r}: the rank of LoRA is 1 or more.")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora_dropout={self.lora_dropout}: a probability is in [0, 1).")
        if self.init not in ("kaiming", "gaussian"):
            raise unknown("LoRA init", self.init, ("kaiming", "gaussian"))
        if self.bias not in ("none", "all", "lora_only"):
            raise unknown("LoRA bias", self.bias, ("none", "all", "lora_only"))

    @property
    def scale(self) -> float:
        """s."""
        return self.lora_alpha / divisor(self.r, self.use_rslora)

    def at(self, name: str) -> LoraConfig:
        """The settings for one target: with the rank and the α that the patterns give it."""
        r = next((r for key, r in self.rank_pattern.items() if ends_with(name, key)), self.r)
        alpha = next((a for key, a in self.alpha_pattern.items() if ends_with(name, key)), self.lora_alpha)
        return replace(self, r=r, lora_alpha=alpha, rank_pattern={}, alpha_pattern={})

    def matched(self, model: Module) -> tuple[dict[str, Linear], dict[str, Module]]:
        """The targets, and the modules to train whole, by name. Raises UserError for a name that matches nothing."""
        targets = match_modules(model, self.target_modules, Linear, "all-linear")
        for key in (*self.rank_pattern, *self.alpha_pattern):
            if not match_modules(model, key, Linear, "all-linear").keys() & targets.keys():
                raise UserError(f"A pattern names {key!r}, which is not among the targets: {', '.join(targets)}.")
        whole = match_modules(model, self.modules_to_save) if self.modules_to_save else {}
        for key in whole:
            if key in targets or any(name.startswith(f"{key}.") for name in targets):
                raise UserError(f"{key!r} is among modules_to_save and holds a target: it is trained whole or by LoRA.")
        return {name: linear for name, linear in targets.items() if isinstance(linear, Linear)}, whole

    def attach(self, model: Module) -> Method:
        """Put a `LoRALinear` in the place of every target. Raises UserError for a name that matches nothing."""
        return LoraMethod(model, self, LoRALinear)


def divisor(r: int, use_rslora: bool) -> float:
    """What α is divided by: r, or √r (arXiv 2312.03732)."""
    return math.sqrt(r) if use_rslora else r


class LoRALinear(Wrapper):
    """Y = X W + b + s · X A B over a frozen `linear`."""

    def __init__(self, linear: Linear, config: LoraConfig, rng: random.Generator) -> None:
        super().__init__(linear)
        d_in, d_out = linear.weight.shape
        if config.r > min(d_in, d_out):
            raise UserError(f"r={config.r}: a {d_in} × {d_out} weight has rank {min(d_in, d_out)} at most.")
        if config.init == "gaussian":
            start = rng.standard_normal((d_in, config.r), dtype="float32") / config.r
        else:
            start = rng.uniform(-1, 1, (d_in, config.r)).astype("float32") / math.sqrt(d_in)
        self.A = Parameter(active().asarray(start))
        self.B = constant((config.r, d_out), 0.0)
        self.scale, self.dropout = config.scale, config.lora_dropout

    def branch(self, x: Tensor) -> Tensor:
        """s · X A B: (..., in) -> (..., r) -> (..., out); the product A B is never formed."""
        return ((functional.dropout(x, self.dropout, self.training) @ self.A) * self.scale) @ self.B

    def adapted(self, x: Tensor) -> Tensor:
        """X W + b + s · X A B."""
        return self.linear(x) + self.branch(x)

    def fold(self, W: Array, b: Array | None) -> None:
        """W ← W₀ + s · A B."""
        W += self.scale * active().matmul(self.A.data, self.B.data)


class LoraMethod(WrappingMethod):
    """LoRA, in a form of its own (`layer`), on the chosen linear layers of a model."""

    layers: Mapping[str, LoRALinear]

    def __init__(self, model: Module, config: LoraConfig, layer: type[LoRALinear]) -> None:
        targets, whole = config.matched(model)
        self.trains_base = config.bias != "none" or bool(whole)
        rng = random.stream("init")
        super().__init__(model, {name: layer(linear, config.at(name), rng) for name, linear in targets.items()})
        for wrapper in self.layers.values():
            if config.bias == "lora_only" and wrapper.linear.bias is not None:
                wrapper.linear.bias.requires_grad = True
        if config.bias == "all":
            for name, parameter in model.named_parameters():
                parameter.requires_grad |= name.endswith(".bias")
        for module in whole.values():
            for parameter in module.parameters():
                parameter.requires_grad = True

    def enable(self, on: bool) -> None:
        """Skip the branches X A B, or not."""
        if not on and self.trains_base:
            raise UserError("LoRA with bias or modules_to_save trains the base's own weights: it cannot be had back.")
        super().enable(on)

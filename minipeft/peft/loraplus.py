"""LoRA+: B learns faster than A, by a fixed ratio of learning rates (arXiv 2402.12354, section 4).

LoRA with one rate moves A and B by unlike parts of themselves as models widen; a B with λ times A's rate mends that. The
layers, the counts and the files are LoRA's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from minipeft.errors import UserError
from minipeft.nn import Module, Parameter
from minipeft.peft.lora import LoraConfig, LoRALinear, LoraMethod
from minipeft.peft.method import Method


@dataclass(frozen=True)
class LoraPlusConfig(LoraConfig):
    """LoRA's r · (in + out) parameters a target.

    Attributes:
        loraplus_lr_ratio: λ, the rate of B over the rate of A and of all else; 16 in the paper.
    """

    peft_type: ClassVar[str] = "LORA_PLUS"

    loraplus_lr_ratio: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.loraplus_lr_ratio > 0:
            raise UserError(f"loraplus_lr_ratio={self.loraplus_lr_ratio}: a ratio of rates is a positive number.")

    def attach(self, model: Module) -> Method:
        """As LoRA's."""
        return LoraPlusMethod(model, self, LoRALinear)


class LoraPlusMethod(LoraMethod):
    """LoRA whose every B has λ times the learning rate."""

    def __init__(self, model: Module, config: LoraPlusConfig, layer: type[LoRALinear]) -> None:
        super().__init__(model, config, layer)
        self.ratio = config.loraplus_lr_ratio

    def rates(self) -> Mapping[Parameter, float]:
        """λ for every B."""
        return {layer.B: self.ratio for layer in self.layers.values()}

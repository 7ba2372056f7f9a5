"""Full fine-tuning: every weight of the model is trained. The yardstick of all other methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minipeft.nn import Module
from minipeft.peft.method import Method, OwnWeights, PeftConfig


@dataclass(frozen=True)
class FullConfig(PeftConfig):
    """Train everything; there is nothing to set."""

    peft_type: ClassVar[str] = "FULL"

    def attach(self, model: Module) -> Method:
        """Unfreeze every parameter."""
        for parameter in model.parameters():
            parameter.requires_grad = True
        return OwnWeights()

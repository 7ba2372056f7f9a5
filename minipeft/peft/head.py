"""The linear probe: the classifier alone on frozen features. The floor of all other methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minipeft.errors import UserError
from minipeft.nn import Module, Parameter
from minipeft.peft.method import Method, OwnWeights, PeftConfig


@dataclass(frozen=True)
class HeadConfig(PeftConfig):
    """Train the last linear layer of the head and nothing else: d · classes + classes parameters."""

    peft_type: ClassVar[str] = "HEAD"

    def attach(self, model: Module) -> Method:
        """Nothing is added, nothing of the base unfrozen."""
        return OwnWeights()

    def head_parameters(self, model: Module) -> list[Parameter]:
        """The classifier's weight and bias; the pooler stays frozen."""
        classifier = getattr(getattr(model, "head", None), "classifier", None)
        if classifier is None:
            raise UserError("This model has no classifier to train; load it with task='classification'.")
        return list(classifier.parameters())

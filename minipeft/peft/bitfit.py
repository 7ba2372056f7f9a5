"""BitFit: the biases alone are trained, every matrix stays as it was pre-trained (arXiv 2106.10199, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minipeft.errors import UserError
from minipeft.nn import Module, Parameter
from minipeft.peft.method import Method, OwnWeights, PeftConfig
from minipeft.peft.targets import match_modules


@dataclass(frozen=True)
class BitFitConfig(PeftConfig):
    """11d parameters a block with d_ff = 4d: q, k, v, o, 4d + d of the feed-forward part, and two norms.

    Attributes:
        target_modules: names of the modules whose biases are trained, or "all" for every one outside the head. The paper's
            smaller variant is ("q_proj", "up_proj").
    """

    peft_type: ClassVar[str] = "BITFIT"

    target_modules: str | tuple[str, ...] = "all"

    def attach(self, model: Module) -> Method:
        """Unfreeze the biases. Raises UserError when the model has none there, as a Llama, or a name matches nothing."""
        found: dict[int, Parameter] = {}
        for module in match_modules(model, self.target_modules).values():
            found |= {id(p): p for name, p in module.named_parameters() if name.rpartition(".")[2] == "bias"}
        head = getattr(model, "head", None)
        for p in head.parameters() if isinstance(head, Module) else ():
            found.pop(id(p), None)
        if not found:
            raise UserError(
                f"BitFit trains biases, and this {type(model).__name__} has none in {self.target_modules!r}; (IA)³ or LoRA "
                "of rank 1 train about as few parameters."
            )
        return BitFitMethod(list(found.values()))


class BitFitMethod(OwnWeights):
    """The trained biases lie in the model; the base's are kept, so that it can be had back."""

    def __init__(self, biases: list[Parameter]) -> None:
        self.biases = tuple(biases)  # a tuple, so that they are not listed twice
        self.away = [p.data.copy() for p in biases]  # the base's, or the trained ones while it is switched off
        self.enabled = True
        for p in biases:
            p.requires_grad = True

    def enable(self, on: bool) -> None:
        """Exchange the trained biases and the base's."""
        if on != self.enabled:
            self.enabled = on
            for i, p in enumerate(self.biases):
                away, self.away[i] = self.away[i], p.data.copy()
                p.data[...] = away

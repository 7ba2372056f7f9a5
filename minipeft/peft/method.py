"""What a method is: its settings (`PeftConfig`), and what they have done to a model (`Method`).

A method of your own is one file: a config (a frozen dataclass over `PeftConfig`) whose `attach` changes the model and
returns a `Method` that can undo it. Nothing here needs to know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from minipeft.autograd import Tensor
from minipeft.errors import UserError
from minipeft.nn import Module, Parameter, Transformer
from minipeft.peft.targets import task_head


@dataclass(frozen=True)
class PeftConfig:
    """The settings of a method. `peft_type` names it in files, `version` the algorithm that rebuilds it from them."""

    peft_type: ClassVar[str] = ""
    version: ClassVar[int] = 1

    def attach(self, model: Module) -> Method:
        """Change `model`, all of whose parameters are frozen, so that the method's own can be trained."""
        raise NotImplementedError(f"{type(self).__name__} has no attach.")

    def head_parameters(self, model: Module) -> list[Parameter]:
        """The parameters of the task head to train beside the method's own: all of them, unless a method says otherwise."""
        head = task_head(model)
        return list(head.parameters()) if head is not None else []


class Method(Module):
    """What a config has done to a model, and how to switch it off, fold it in, and take it out again.

    This base has nothing to merge and no way to be switched off; methods that add something override what they can do.
    """

    def run(self, model: Module, *inputs: Any, **options: Any) -> Tensor:
        """The model's forward pass with the method in it."""
        return model(*inputs, **options)

    @property
    def virtual_tokens(self) -> int:
        """The positions that the method takes up before those of the text."""
        return 0

    def enable(self, on: bool) -> None:
        """Switch the method on or off; off, the model computes what the base does, to the last bit."""
        raise UserError(
            "This method trains the model's own weights: the base cannot be had back, so it cannot be switched off, or be "
            "one of several adapters."
        )

    def cut(self, model: Transformer) -> int:
        """The blocks below this index, and the embeddings, compute the same in every step; 0 when nobody can say."""
        return 0

    def rates(self) -> Mapping[Parameter, float]:
        """The parameters that learn at another rate than the rest, and how many times as fast."""
        return {}

    def exported(self, config: PeftConfig, state: Mapping[str, Any]) -> tuple[PeftConfig, dict[str, Any]]:
        """What `save_pretrained` writes: the settings, and values by the names that they have once these are attached."""
        return config, dict(state)

    def merge(self) -> None:
        """Fold the method into the weights; a second call changes nothing."""

    def unmerge(self) -> None:
        """Take it out of the weights again, exactly."""

    def unload(self) -> None:
        """Leave the model as a plain one again, with the weights it has now."""

    def install(self) -> None:
        """Put back what `unload` took out: another adapter has had its turn."""
        if type(self).unload is not Method.unload:
            raise NotImplementedError(f"{type(self).__name__} has an unload and no install.")


class OwnWeights(Method):
    """A method that trains some of the model's own weights and adds nothing."""

    def cut(self, model: Transformer) -> int:
        """The index of the lowest block with a weight that is trained."""
        trained = [any(p.requires_grad for p in part.parameters()) for part in (model.embed, *model.blocks)]
        if True not in trained:
            return len(model.blocks)
        return max(0, trained.index(True) - 1)


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters are trained, in the task head and by the method, and how many there are in all."""

    head: int
    method: int
    total: int

    @property
    def trainable(self) -> int:
        """Head and method together."""
        return self.head + self.method

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of all."""
        return 100 * self.trainable / self.total

    def __str__(self) -> str:
        return (
            f"head {self.head:,} + method {self.method:,} = {self.trainable:,} trainable "
            f"of {self.total:,} parameters ({self.percent:.3g} %)"
        )

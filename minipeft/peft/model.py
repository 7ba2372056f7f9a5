"""What all methods share: `PeftConfig`, `Method`, `PeftModel`, `get_peft_model`.

A method of your own is one file: a config (a frozen dataclass over `PeftConfig`) whose `attach` changes the model and
returns a `Method` that can undo it. Nothing here needs to know of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from minipeft.autograd import Tensor
from minipeft.autograd.tensor import grad_enabled
from minipeft.errors import UserError
from minipeft.nn import Module, Parameter, Transformer
from minipeft.peft import io
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

    def enable(self, on: bool) -> None:
        """Switch the method on or off; off, the model computes what the base does, to the last bit."""
        raise UserError(f"{type(self).__name__} changes the model's own weights: there is no adapter to switch off.")

    def cut(self, model: Transformer) -> int:
        """The blocks below this index, and the embeddings, compute the same in every step; 0 when nobody can say."""
        return 0

    def merge(self) -> None:
        """Fold the method into the weights; a second call changes nothing."""

    def unmerge(self) -> None:
        """Take it out of the weights again, exactly."""

    def unload(self) -> None:
        """Leave the model as a plain one again, with the weights it has now."""


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


class PeftModel(Module):
    """A model with a method attached: it is called as the model is."""

    def __init__(self, model: Module, config: PeftConfig) -> None:
        for parameter in model.parameters():
            parameter.requires_grad = False
            parameter.grad = None
        dtype = next((parameter.dtype for parameter in model.parameters()), None)
        self.base_shapes = io.base_shapes(model)
        self.model = model
        self.config = config
        self.method = config.attach(model)
        self.merged = False
        self.switched_off = False
        for parameter in config.head_parameters(model):
            parameter.requires_grad = True
        for parameter in self.parameters():
            if parameter.dtype != dtype:  # new ones are made as float32
                parameter.data = parameter.data.astype(dtype)
        vars(model)["carries_method"] = True

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """As the base model's."""
        if self.merged and self.training and grad_enabled():
            raise UserError(
                "The method is merged into the weights and cannot be trained; call unmerge_adapter() first."
            )
        return self.method.run(self.model, *inputs, **options)

    def prepared(self) -> contextlib.AbstractContextManager[Sequence[tuple[Tensor, Tensor]]]:
        """As the method's."""
        return self.method.prepared()

    def state_dict(self) -> dict[str, Any]:
        """As a module's. Raises UserError while merged: loaded and merged again, such a state would count twice."""
        if self.merged:
            raise UserError("The method is merged into the weights; unmerge_adapter() first, or use save_pretrained().")
        return super().state_dict()

    def trainable_parameters(self) -> dict[str, Parameter]:
        """The parameters that are trained, by name: those of the head, those of the method, and no others."""
        return {_base_name(name): p for name, p in self.named_parameters() if p.requires_grad}

    def saved_parameters(self) -> dict[str, Parameter]:
        """What `save_pretrained` keeps: the trainable parameters, and a head that was not trained but may be random."""
        named = ((_base_name(name), p) for name, p in self.named_parameters())
        return {name: p for name, p in named if p.requires_grad or self._in_head(name)}

    def count_parameters(self) -> ParameterCount:
        """Exact counts; tied parameters count once."""
        trainable = self.trainable_parameters()
        head = sum(p.numel() for name, p in trainable.items() if self._in_head(name))
        total = sum(p.numel() for p in self.parameters())
        return ParameterCount(head, sum(p.numel() for p in trainable.values()) - head, total)

    def _in_head(self, name: str) -> bool:
        return name.startswith("head.") and task_head(self.model) is not None

    def print_trainable_parameters(self) -> None:
        """Print the counts: head + method = trainable of total (percent)."""
        print(self.count_parameters())

    def merge_adapter(self) -> None:
        """Fold the method into the weights: inference costs what the base's does. A second call changes nothing."""
        self.method.merge()
        self.merged = True

    def unmerge_adapter(self) -> None:
        """Undo `merge_adapter`: the weights are the base's again, to the last bit."""
        self.method.unmerge()
        self.merged = False

    def merge_and_unload(self) -> Module:
        """Merge, remove every trace of the method, and return the plain model."""
        self.merge_adapter()
        return self.unload()

    def unload(self) -> Module:
        """Remove every trace of the method, with the weights as they are now, and return the plain model."""
        self.method.unload()
        vars(self.model).pop("carries_method", None)
        return self.model

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the model computes what its base does (with the head as trained), merged or not.

        Raises:
            UserError: the method trains the base's own weights, so there is no base left to go back to.
        """
        was_merged, was_off = self.merged, self.switched_off
        self.method.enable(False)
        self.switched_off = True
        try:
            if was_merged:
                self.unmerge_adapter()
            yield
        finally:
            if was_merged:
                self.merge_adapter()
            if not was_off:  # inside another `disable_adapter` it stays off
                self.method.enable(True)
                self.switched_off = False

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors: the method and the head, see `io.py`."""
        io.save(self, folder)

    @classmethod
    def from_pretrained(cls, model: Module, folder: str | Path) -> PeftModel:
        """Attach to `model` what `save_pretrained` wrote (for LoRA, also what Hugging Face PEFT wrote).

        Raises:
            UserError: the files are missing or damaged, or were made for another model. The model is as it was.
        """
        _refuse_second(model)
        kinds = {kind.peft_type: kind for kind in _subclasses(PeftConfig) if kind.peft_type}
        saved = io.read(model, folder, kinds)
        peft = get_peft_model(model, saved.config)
        try:
            io.load_weights(peft, saved)
        except UserError:
            peft.unload()
            raise
        return peft


def _subclasses(kind: type[PeftConfig]) -> list[type[PeftConfig]]:
    """Every config class there is, those of your own included."""
    return [k for direct in kind.__subclasses__() for k in (direct, *_subclasses(direct))]


def get_peft_model(model: Module, config: PeftConfig) -> PeftModel:
    """Freeze `model`, attach the method of `config` to it, and set the method's parameters and the head to train.

    The model is changed in place. New parameters are drawn from the random stream "init".

    Raises:
        UserError: the model carries a method already, or a setting does not fit it.
    """
    _refuse_second(model)
    return PeftModel(model, config)


def _refuse_second(model: Module) -> None:
    if isinstance(model, PeftModel) or vars(model).get("carries_method"):
        raise UserError("This model carries a method already; call merge_and_unload() on it first.")


def _base_name(name: str) -> str:
    """The name that a parameter has in the model itself."""
    return name.removeprefix("model.")

"""What all methods share: `PeftModel`, a model with a method attached, or with several by turns; and `get_peft_model`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minipeft.autograd import Tensor
from minipeft.autograd.tensor import grad_enabled
from minipeft.backend import Array
from minipeft.errors import UserError
from minipeft.nn import Module, Parameter
from minipeft.peft import io
from minipeft.peft.combine import combine
from minipeft.peft.method import ParameterCount, PeftConfig
from minipeft.peft.several import Adapters
from minipeft.peft.targets import task_head


class PeftModel(Module):
    """A model with a method attached: it is called as the model is.

    It may carry several adapters, one of which is active: the others' parameters are kept, and no part of `parameters()`.
    Each has a head of its own.
    """

    def __init__(self, model: Module, config: PeftConfig, adapter_name: str = "default") -> None:
        self.base_shapes = io.base_shapes(model)
        self.model = model
        self.merged = False
        self.switched_off = False
        self.adapters = Adapters(model, config, adapter_name)
        self._show_active()
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

    # ---- what is trained

    def trainable_parameters(self) -> dict[str, Parameter]:
        """The parameters that are trained, by name: those of the head, those of the method, and no others."""
        return {_base_name(name): p for name, p in self.named_parameters() if p.requires_grad}

    def saved_parameters(self) -> dict[str, Parameter]:
        """What `save_pretrained` keeps: the trainable parameters, and a head that was not trained but may be random."""
        named = ((_base_name(name), p) for name, p in self.named_parameters())
        return {name: p for name, p in named if p.requires_grad or self._in_head(name)}

    def exported(self) -> tuple[PeftConfig, dict[str, Array]]:
        """The settings and the arrays, by name, that `save_pretrained` writes; never merged ones.

        Raises:
            UserError: the adapter is switched off.
        """
        if self.switched_off:
            raise UserError("The adapter is switched off: leave `with disable_adapter()` before saving it.")
        return self.method.exported(self.config, {name: p.data for name, p in self.saved_parameters().items()})

    def count_parameters(self) -> ParameterCount:
        """Exact counts, of the active adapter alone; tied parameters count once."""
        trainable = self.trainable_parameters()
        head = sum(p.numel() for name, p in trainable.items() if self._in_head(name))
        total = sum(p.numel() for p in self.parameters())
        return ParameterCount(head, sum(p.numel() for p in trainable.values()) - head, total)

    def _in_head(self, name: str) -> bool:
        return name.startswith("head.") and task_head(self.model) is not None

    def print_trainable_parameters(self) -> None:
        """Print the counts: head + method = trainable of total (percent)."""
        print(self.count_parameters())

    # ---- merged, off, and away

    def merge_adapter(self, adapter: str | None = None) -> None:
        """Fold the active adapter, or the one named, into the weights: inference costs what the base's does.

        A second call changes nothing. Raises UserError while another is merged.
        """
        if adapter not in (None, self.active_adapter):
            self.set_adapter(str(adapter))
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

    # ---- several adapters

    @property
    def active_adapter(self) -> str:
        """The name of the adapter that is in the model."""
        return self.adapters.active

    def add_adapter(self, name: str, config: PeftConfig) -> None:
        """Add an adapter with a fresh head. The active one stays so; `set_adapter` makes the new one active.

        Raises:
            UserError: the name is taken; an adapter is merged; or the method of either trains the base's own weights, so
                that the two cannot share a base.
        """
        with self._plain():
            self.adapters.add(name, config)

    def load_adapter(self, folder: str | Path, name: str) -> None:
        """Add an adapter that `save_pretrained` wrote. Raises UserError as `from_pretrained` and `add_adapter` do."""
        with self._plain():
            saved = io.read(self.model, folder, _kinds())
            self.adapters.add(name, saved.config)
        before = self.active_adapter
        self.set_adapter(name)
        try:
            io.load_weights(self, saved)
        except UserError:
            self.set_adapter(before)
            self.delete_adapter(name)
            raise
        self.set_adapter(before)

    def set_adapter(self, name: str) -> None:
        """Make an adapter the active one, in milliseconds: nothing is read, and no weight of the base is copied.

        Raises:
            UserError: there is none of that name, or another is merged.
        """
        if self.adapters.find(name) is not self.adapters.find(self.active_adapter):
            with self._plain():
                self.adapters.active = name

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter. Raises UserError for the active one, and for a name that there is not."""
        self.adapters.delete(name)

    def add_weighted_adapter(self, adapters: Sequence[str], weights: Sequence[float], name: str) -> None:
        """Add the adapter whose ΔW is Σ wᵢ ΔWᵢ, exactly, see `combine.py`; its head is head₀ + Σ wᵢ (headᵢ - head₀).

        Raises:
            UserError: one of them is unknown or no LoRA, or their ranks add up to more than a layer can have.
        """
        with self._plain():
            combine(self.adapters, adapters, weights, name)

    @contextlib.contextmanager
    def _plain(self) -> Iterator[None]:
        """Inside, no adapter is in the model; afterwards the one that is active by then."""
        if self.merged:
            raise UserError(
                f"The adapter {self.active_adapter!r} is merged into the weights: call unmerge_adapter() first. To have "
                "two at once, combine them by add_weighted_adapter()."
            )
        if self.switched_off:
            raise UserError("The adapter is switched off: leave `with disable_adapter()` first.")
        try:
            with self.adapters.plain():
                yield
        finally:
            self._show_active()
            for part in (self.model, self.method):  # those that were away have missed a train() or an eval()
                part.train(self.model.training)

    def _show_active(self) -> None:
        slot = self.adapters.find(self.active_adapter)
        self.config, self.method = slot.config, slot.method
        dtype = next((p.dtype for p in self.adapters.base), None)
        for p in self.parameters():
            if p.dtype != dtype:  # new ones are made as float32
                p.data = p.data.astype(dtype)

    # ---- files

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors: the active adapter and its head, see `io.py`."""
        io.save(self, folder)

    @classmethod
    def from_pretrained(cls, model: Module, folder: str | Path, adapter_name: str = "default") -> PeftModel:
        """Attach to `model` what `save_pretrained` wrote (for LoRA, also what Hugging Face PEFT wrote).

        Raises:
            UserError: the files are missing or damaged, or were made for another model. The model is as it was.
        """
        _refuse_second(model)
        saved = io.read(model, folder, _kinds())
        peft = get_peft_model(model, saved.config, adapter_name)
        try:
            io.load_weights(peft, saved)
        except UserError:
            peft.unload()
            raise
        return peft


def get_peft_model(model: Module, config: PeftConfig, adapter_name: str = "default") -> PeftModel:
    """Freeze `model`, attach the method of `config` to it, and set the method's parameters and the head to train.

    The model is changed in place. New parameters are drawn from the random stream "init".

    Raises:
        UserError: the model carries a method already, or a setting does not fit it.
    """
    _refuse_second(model)
    return PeftModel(model, config, adapter_name)


def _refuse_second(model: Module) -> None:
    if isinstance(model, PeftModel) or vars(model).get("carries_method"):
        raise UserError("This model carries a method already: merge_and_unload() it first, or add_adapter() another.")


def _kinds() -> dict[str, type[PeftConfig]]:
    """Every config class by the name that it gives itself in files, those of your own included; the latest counts."""
    kinds = [PeftConfig]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.peft_type: kind for kind in kinds if kind.peft_type and "peft_type" in vars(kind)}


def _base_name(name: str) -> str:
    """The name that a parameter has in the model itself."""
    return name.removeprefix("model.")

"""Several adapters on one base: one is in the model, the others are away, each with a head of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from minipeft.backend import Array
from minipeft.errors import UserError, unknown
from minipeft.nn import Module, Parameter
from minipeft.peft.method import Method, PeftConfig
from minipeft.peft.targets import task_head


@dataclass
class Slot:
    """An adapter: its settings, its method, the base's own parameters that it trains, and its head while it is away."""

    config: PeftConfig
    method: Method
    trained: list[Parameter]
    head: list[Array] = field(default_factory=list)


class Adapters:
    """The adapters of `model` by name; the one called `active` is in it.

    Attributes:
        base: the parameters of the plain model.
        first_head: the task head's values as they came; every adapter's head starts from them.
    """

    def __init__(self, model: Module, config: PeftConfig, name: str) -> None:
        head = task_head(model)
        self.model, self.base = model, list(model.parameters())
        self.head = list(head.parameters()) if head is not None else []
        self.first_head = [p.data.copy() for p in self.head]
        self.active = name
        self.slots = {name: self._attach(config)}

    def find(self, name: str) -> Slot:
        """The adapter of that name. Raises UserError when there is none."""
        if name not in self.slots:
            raise unknown("adapter", name, self.slots)
        return self.slots[name]

    def add(self, name: str, config: PeftConfig) -> Slot:
        """Add an adapter and keep it away; the model is plain, before and after.

        Raises:
            UserError: the name is taken, a setting does not fit, or the method trains the base's own weights.
        """
        if name in self.slots:
            raise UserError(f"There is an adapter {name!r} already; delete_adapter() it, or choose another name.")
        slot = self._attach(config)
        self._take_out(slot)
        slot.method.enable(False)
        self.slots[name] = slot
        return slot

    def delete(self, name: str) -> None:
        """Forget an adapter. Raises UserError for the active one, and for a name that there is not."""
        self.find(name)
        if name == self.active:
            raise UserError(f"{name!r} is the active adapter: set_adapter() another first, or unload().")
        del self.slots[name]

    @contextlib.contextmanager
    def plain(self) -> Iterator[None]:
        """Inside, the model is the plain base; afterwards it has the adapter that is active by then.

        Raises:
            UserError: the active one trains the base's own weights, which cannot be had back.
        """
        slot = self.find(self.active)
        slot.method.enable(False)
        self._take_out(slot)
        try:
            yield
        finally:
            slot = self.find(self.active)
            for p, values in zip(self.head, slot.head, strict=True):
                p.data[...] = values
            for p in slot.trained:
                p.requires_grad = True
            slot.method.install()
            slot.method.enable(True)

    def _attach(self, config: PeftConfig) -> Slot:
        """Attach a method to the plain model, whose head is as it came, and set to train what is to be trained."""
        for p in self.base:
            p.requires_grad, p.grad = False, None
        for p, first in zip(self.head, self.first_head, strict=True):
            p.data[...] = first
        method = config.attach(self.model)
        for p in config.head_parameters(self.model):
            p.requires_grad = True
        return Slot(config, method, [p for p in self.base if p.requires_grad])

    def _take_out(self, slot: Slot) -> None:
        """Leave the plain model behind, and keep the head."""
        slot.head = [p.data.copy() for p in self.head]
        slot.method.unload()
        for p in slot.trained:
            p.requires_grad, p.grad = False, None

"""Methods that wrap linear layers: `Wrapper` stands in the place of one, `WrappingMethod` for all that a model has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.autograd import Tensor
from minipeft.backend import Array
from minipeft.nn import Linear, Module
from minipeft.peft.method import Method


class Wrapper(Module):
    """A layer in the place of a frozen `linear`, Y = X W + b. A method says what it computes instead, in `adapted`."""

    def __init__(self, linear: Linear) -> None:
        self.linear = linear
        self.enabled = True
        self.W0: Any = None  # the base's W, and its b, while the method is merged into `linear`
        self.b0: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.adapted(x) if self.enabled and self.W0 is None else self.linear(x)

    def adapted(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) with the method."""
        raise NotImplementedError(f"{type(self).__name__} has no adapted.")

    def fold(self, W: Array, b: Array | None) -> None:
        """Change W (in, out) and b (out,), in place, so that X W + b is what `adapted` computes."""
        raise NotImplementedError(f"{type(self).__name__} has no fold.")

    def merge(self) -> None:
        """Fold the method into W and b, which are kept, so that `unmerge` is exact; a second call changes nothing."""
        if self.W0 is None:
            W, b = self.linear.weight.data, None if self.linear.bias is None else self.linear.bias.data
            self.W0, self.b0 = W.copy(), None if b is None else b.copy()
            self.fold(W, b)

    def unmerge(self) -> None:
        """W and b are the base's again, to the last bit."""
        if self.W0 is not None:
            self.linear.weight.data[...] = self.W0
            if self.linear.bias is not None:
                self.linear.bias.data[...] = self.b0
            self.W0 = self.b0 = None


class WrappingMethod(Method):
    """`layers`, by the names of the linear layers whose place they take."""

    layers: Mapping[str, Wrapper]

    def __init__(self, model: Module, layers: Mapping[str, Wrapper]) -> None:
        self.owner = (model,)  # a tuple, so that the model's parameters are not listed twice
        self.layers = dict(layers)
        self.install()

    def enable(self, on: bool) -> None:
        """Compute with the method, or as the linear layers alone."""
        for layer in self.layers.values():
            layer.enabled = on

    def merge(self) -> None:
        """Merge every layer."""
        for layer in self.layers.values():
            layer.merge()

    def unmerge(self) -> None:
        """Unmerge every layer."""
        for layer in self.layers.values():
            layer.unmerge()

    def unload(self) -> None:
        """Put the linear layers back, with the weights they have now."""
        for name, layer in self.layers.items():
            self.owner[0].set_submodule(name, layer.linear)

    def install(self) -> None:
        """Put every wrapper in the place of its linear layer."""
        for name, layer in self.layers.items():
            self.owner[0].set_submodule(name, layer)

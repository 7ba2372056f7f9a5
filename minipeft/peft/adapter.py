"""Adapters: small bottlenecks inserted into every block, Y = h + f(h W_down + b_down) W_up + b_up.

W_down ∈ R^{d × R} narrows to R numbers, W_up ∈ R^{R × d} widens again, and the residual connection carries h past it.
W_up and both biases start at zero, so that training starts from the base model exactly (arXiv 1902.00751, section 2.1).
Houlsby puts one after attention and one after the feed-forward part, each before the residual sum (figure 2 there);
Pfeiffer keeps the second alone (arXiv 2005.00247, section 3.2); parallel feeds the second from the input of the
feed-forward part in place of its output (arXiv 2110.04366, table 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from minipeft.autograd import Tensor, functional
from minipeft.backend import random
from minipeft.errors import UserError, unknown
from minipeft.nn import Block, Linear, Module, Transformer
from minipeft.nn.layers import constant
from minipeft.peft.method import Method, PeftConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": functional.gelu, "relu": Tensor.relu, "tanh": Tensor.tanh}
PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


@dataclass(frozen=True)
class AdapterConfig(PeftConfig):
    """2dR + R + d parameters an adapter; two adapters a block for "houlsby", one for the others.

    Attributes:
        bottleneck: R.
        placement: "houlsby", "pfeiffer" or "parallel".
        activation: f: "gelu", "relu" or "tanh".
        train_norms: train the blocks' layer norms too, as Houlsby et al. do.
    """

    peft_type: ClassVar[str] = "ADAPTER"

    bottleneck: int = 64
    placement: str = "houlsby"
    activation: str = "gelu"
    train_norms: bool = False

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise UserError(f"bottleneck={self.bottleneck}: an adapter needs a width of 1 or more.")
        if self.placement not in PLACEMENTS:
            raise unknown("adapter placement", self.placement, PLACEMENTS)
        if self.activation not in ACTIVATIONS:
            raise unknown("adapter activation", self.activation, ACTIVATIONS)

    def attach(self, model: Module) -> Method:
        """Put an `AdapterBlock` in the place of every block."""
        if not isinstance(model, Transformer):
            raise UserError(f"Adapters need a Transformer with blocks, not a {type(model).__name__}.")
        return AdapterMethod(model, self)


class Adapter(Module):
    """f(h W_down + b_down) W_up + b_up, which the residual connection adds to h."""

    def __init__(self, d: int, config: AdapterConfig, rng: random.Generator) -> None:
        self.down = Linear(d, config.bottleneck, rng=rng)
        self.up = Linear(config.bottleneck, d, rng=rng)
        self.up.weight = constant((config.bottleneck, d), 0.0)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, h: Tensor) -> Tensor:
        """(..., d) -> (..., R) -> (..., d)."""
        return self.up(self.activation(self.down(h)))


class AdapterBlock(Block):
    """A block with the same parts under the same names, and adapters on its two sub-layers."""

    def __init__(self, block: Block, config: AdapterConfig, rng: random.Generator) -> None:
        vars(self).update(vars(block))  # the very same layers: nothing is copied
        self.parallel = config.placement == "parallel"
        self.enabled = True
        d = block.config.d_model
        self.attn_adapter = Adapter(d, config, rng) if config.placement == "houlsby" else None
        self.mlp_adapter = Adapter(d, config, rng)

    def attend(self, *inputs: Any, **options: Any) -> Tensor:
        """h + adapter(h) for h = attention(x)."""
        h = super().attend(*inputs, **options)
        return h + self.attn_adapter(h) if self.attn_adapter is not None and self.enabled else h

    def feed_forward(self, x: Tensor) -> Tensor:
        """h + adapter(h) for h = feed_forward(x); h + adapter(x) in parallel."""
        h = super().feed_forward(x)
        return h + self.mlp_adapter(x if self.parallel else h) if self.enabled else h


class AdapterMethod(Method):
    """Adapters in every block of a model. They are not linear, so they cannot be merged into the weights."""

    def __init__(self, model: Transformer, config: AdapterConfig) -> None:
        self.owner = (model,)
        self.train_norms = config.train_norms
        rng = random.stream("init")
        self.plain = tuple(model.blocks)  # tuples, so that no block is listed twice
        self.adapted = tuple(AdapterBlock(block, config, rng) for block in model.blocks)
        self.install()
        if config.train_norms:
            for block in model.blocks:
                for parameter in (*block.attn_norm.parameters(), *block.mlp_norm.parameters()):
                    parameter.requires_grad = True

    def enable(self, on: bool) -> None:
        """Skip the adapters, or not."""
        if not on and self.train_norms:
            raise UserError("Adapters with train_norms train the base's own norms: the base cannot be had back.")
        for block in self.adapted:
            block.enabled = on

    def merge(self) -> None:
        """Always an error: f is not linear."""
        raise UserError(
            "An adapter has a nonlinearity inside and cannot be merged; use disable_adapter() for the base."
        )

    def unmerge(self) -> None:
        """Nothing was merged."""

    def unload(self) -> None:
        """Put the plain blocks back."""
        self.owner[0].blocks = list(self.plain)

    def install(self) -> None:
        """Put the blocks with adapters in their place."""
        self.owner[0].blocks = list(self.adapted)

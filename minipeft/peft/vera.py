"""VeRA: one pair of random frozen matrices for all layers, and two trained vectors a layer (arXiv 2310.11454, section 3.1).

Y = X W + b + ((X A ⊙ d) B) ⊙ b_v with A ∈ R^{in × r} and B ∈ R^{r × out} cut from matrices that all layers share, d ∈ R^r
and b_v ∈ R^out trained. b_v starts at zero, so that training starts from the base exactly. A and B are never saved: the
seed rebuilds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from minipeft.autograd import Tensor, functional
from minipeft.backend import Array, active, random
from minipeft.errors import UserError
from minipeft.nn import Linear, Module
from minipeft.nn.layers import constant
from minipeft.peft.method import Method, PeftConfig
from minipeft.peft.targets import match_modules
from minipeft.peft.wrap import Wrapper, WrappingMethod


@dataclass(frozen=True)
class VeraConfig(PeftConfig):
    """r + out parameters a target.

    Attributes:
        r: the rank; as A and B cost nothing to train or keep, it is large.
        target_modules: names of linear layers, or "all-linear" for every one outside the head.
        vera_dropout: probability with which the branch's input is dropped, while training.
        d_initial: what d starts at.
        projection_prng_key: the seed of A and B.
    """

    peft_type: ClassVar[str] = "MINIPEFT_VERA"

    r: int = 256
    target_modules: str | tuple[str, ...] = ("q_proj", "v_proj")
    vera_dropout: float = 0.0
    d_initial: float = 0.1
    projection_prng_key: int = 0

    def __post_init__(self) -> None:
        if self.r < 1:
            raise UserError(f"r={self.r}: the rank of VeRA is 1 or more.")
        if not 0 <= self.vera_dropout < 1:
            raise UserError(f"vera_dropout={self.vera_dropout}: a probability is in [0, 1).")
        if self.projection_prng_key < 0:
            raise UserError(f"projection_prng_key={self.projection_prng_key}: a seed is 0 or more.")

    def attach(self, model: Module) -> Method:
        """Put a `VeraLinear` in the place of every target. Raises UserError for a name that matches nothing."""
        targets = match_modules(model, self.target_modules, Linear, "all-linear")
        linears = {name: m for name, m in targets.items() if isinstance(m, Linear)}
        d_in, d_out = (max(m.weight.shape[axis] for m in linears.values()) for axis in (0, 1))
        rng = random.generator("vera", root=self.projection_prng_key)
        A, B = (  # uniform, of variance 2 / fan-in (Kaiming's)
            active().asarray(rng.uniform(-1, 1, shape).astype("float32")) * math.sqrt(6 / shape[0])
            for shape in ((d_in, self.r), (self.r, d_out))
        )
        return WrappingMethod(model, {name: VeraLinear(m, A, B, self) for name, m in linears.items()})


class VeraLinear(Wrapper):
    """Y = X W + b + ((X A ⊙ d) B) ⊙ b_v over a frozen `linear`; A and B are cut from the shared ones."""

    def __init__(self, linear: Linear, A: Array, B: Array, config: VeraConfig) -> None:
        super().__init__(linear)
        d_in, d_out = linear.weight.shape
        self.A, self.B = Tensor(A[:d_in]), Tensor(B[:, :d_out])  # no parameters: neither trained nor saved
        self.d = constant((config.r,), config.d_initial)
        self.b = constant((d_out,), 0.0)
        self.dropout = config.vera_dropout

    def adapted(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., r) -> (..., out)."""
        narrow = functional.dropout(x, self.dropout, self.training) @ self.A
        return self.linear(x) + ((narrow * self.d) @ self.B) * self.b

    def fold(self, W: Array, b: Array | None) -> None:
        """W ← W₀ + A diag(d) B diag(b_v)."""
        W += active().matmul(self.A.data * self.d.data, self.B.data) * self.b.data

"""Intrinsic dimension: all parameters move, but inside a random d-dimensional subspace, θ = θ₀ + θ_d M.

θ₀ ∈ R^D are the pre-trained weights, frozen; θ_d ∈ R^d, zero at the start, is all that is trained; M ∈ R^{d × D} is random
and fixed, and its seed is enough to rebuild it (arXiv 1804.08838, eq. 2; arXiv 2012.13255, eq. 1). The structure-aware
form (SAID, eq. 4 there) gives each parameter tensor a strength of its own, θ_i = θ₀_i + λ_i (θ_{d-m} M)_i; the m strengths
are counted in d. The smallest d that reaches 90 % of full fine-tuning's score is the task's intrinsic dimension d₉₀.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from minipeft.autograd import Tensor
from minipeft.autograd.tensor import grad_enabled, record
from minipeft.backend import Array, active
from minipeft.errors import UserError, unknown
from minipeft.nn import Module, Parameter
from minipeft.nn.layers import constant
from minipeft.peft.method import Method, PeftConfig
from minipeft.peft.projection import PROJECTIONS, Projection
from minipeft.peft.targets import match_modules, task_head


@dataclass(frozen=True)
class IntrinsicConfig(PeftConfig):
    """d parameters, whatever the model.

    Attributes:
        d: the dimension of the subspace.
        projection: M as "fastfood" (any size of model), "sparse", or "dense" (d · D numbers: small models alone).
        structure_aware: SAID rather than DID.
        seed: of M, and of nothing else.
        scope: "all" for every parameter outside the head, or names of modules to move.
    """

    peft_type: ClassVar[str] = "INTRINSIC"

    d: int
    projection: str = "fastfood"
    structure_aware: bool = False
    seed: int = 0
    scope: str | tuple[str, ...] = "all"

    def __post_init__(self) -> None:
        if self.d < 1:
            raise UserError(f"d={self.d}: the subspace has 1 dimension or more.")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: a seed is 0 or more.")
        if self.projection not in PROJECTIONS:
            raise unknown("projection", self.projection, PROJECTIONS)

    def attach(self, model: Module) -> Method:
        """Collect θ₀, draw M. Raises UserError when d does not fit the scope."""
        return IntrinsicMethod(model, self)


class IntrinsicMethod(Method):
    """θ_d (and the λ of SAID), M, and the places of θ in the model."""

    def __init__(self, model: Module, config: IntrinsicConfig) -> None:
        self.owner = (model,)
        self.places = _places(model, config.scope)  # θ₀ and its (module, attribute), of each parameter tensor
        self.D = sum(p.numel() for p, _ in self.places)
        m = len(self.places) if config.structure_aware else 0
        if config.d <= m:
            raise UserError(f"d={config.d}: SAID spends one of d on each of {m} parameter tensors; choose d > {m}.")
        if config.d - m > self.D:
            raise UserError(f"d={config.d}: the scope has only {self.D:,} parameters; choose a smaller d.")
        self.theta_d = constant((config.d - m,), 0.0)
        self.strength = constant((m,), 1.0) if m else None
        self.projection: Projection = PROJECTIONS[config.projection](config.d - m, self.D, config.seed)
        self.theta_0: list[Array] | None = None  # copies of θ₀, kept while θ is merged into the weights
        self.enabled = True
        self.is_prepared = False
        self._cache: tuple[bytes, list[Tensor]] | None = None

    def run(self, model: Module, *inputs: Any, **options: Any) -> Tensor:
        """The forward pass with θ in the place of θ₀."""
        if not self.enabled or self.theta_0 is not None or self.is_prepared:
            return model(*inputs, **options)
        with self._installed(self._theta()):
            return model(*inputs, **options)

    @contextlib.contextmanager
    def prepared(self) -> Iterator[Sequence[tuple[Tensor, Tensor]]]:
        """Project once for all passes inside: they see θ as leaves, whose gradients then go through M together."""
        if not self.enabled or self.theta_0 is not None:
            yield ()
            return
        theta = self._theta()
        leaves = [Tensor(tensor.data, requires_grad=tensor.requires_grad) for tensor in theta]
        self.is_prepared = True
        try:
            with self._installed(leaves):
                yield list(zip(theta, leaves, strict=True)) if grad_enabled() else ()
        finally:
            self.is_prepared = False

    def _theta(self) -> list[Tensor]:
        """θ₀ + θ_d M, cut into the parameter tensors. Without gradients, an unchanged θ_d gives the same tensors again."""
        if grad_enabled():
            self._cache = None
            return self._compute()
        state = b"".join(active().to_numpy(p.data).tobytes() for p in (self.theta_d, self.strength) if p is not None)
        if self._cache is None or self._cache[0] != state:
            self._cache = (state, self._compute())
        return self._cache[1]

    def _compute(self) -> list[Tensor]:
        M = self.projection
        change = record(M.forward(self.theta_d.data), (self.theta_d, M.backward))  # (D,)
        theta, start = [], 0
        for i, (theta_0, _) in enumerate(self.places):
            piece = change[start : start + theta_0.numel()].reshape(*theta_0.shape)
            if self.strength is not None:
                piece = piece * self.strength[i]
            theta.append(theta_0 + piece)
            start += theta_0.numel()
        return theta

    @contextlib.contextmanager
    def _installed(self, theta: list[Tensor]) -> Iterator[None]:
        self._install(theta)
        try:
            yield
        finally:
            self._install([theta_0 for theta_0, _ in self.places])

    def _install(self, tensors: Sequence[Tensor]) -> None:
        for (_, homes), tensor in zip(self.places, tensors, strict=True):
            for module, name in homes:
                setattr(module, name, tensor)

    def enable(self, on: bool) -> None:
        """Compute with θ, or with θ₀."""
        self.enabled = on

    def merge(self) -> None:
        """Write θ into the weights. Copies of θ₀ are kept for `unmerge`; a second call changes nothing."""
        if self.theta_0 is None:
            theta = [tensor.data for tensor in self._compute()]
            self.theta_0 = [parameter.data.copy() for parameter, _ in self.places]
            for (parameter, _), values in zip(self.places, theta, strict=True):
                parameter.data[...] = values

    def unmerge(self) -> None:
        """Write θ₀ back, to the last bit."""
        if self.theta_0 is not None:
            for (parameter, _), values in zip(self.places, self.theta_0, strict=True):
                parameter.data[...] = values
            self.theta_0 = None


def _places(model: Module, scope: str | tuple[str, ...]) -> list[tuple[Parameter, list[tuple[Module, str]]]]:
    """Each parameter of the scope, in the model's order, and where it hangs: in several places when it is tied."""
    roots = [model] if scope == "all" else list(match_modules(model, scope).values())
    head = task_head(model)
    outside = {id(p) for p in head.parameters()} if head is not None else set()
    places: dict[int, tuple[Parameter, list[tuple[Module, str]]]] = {
        id(p): (p, []) for root in roots for p in root.parameters() if id(p) not in outside
    }
    if not places:
        raise UserError(f"The scope {scope!r} holds no parameters to move.")
    for _, module in model.named_modules():
        for name, value in vars(module).items():
            if id(value) in places:
                places[id(value)][1].append((module, name))
    return list(places.values())

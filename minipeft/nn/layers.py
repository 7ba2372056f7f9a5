"""The layers that hold weights: Linear, Embedding, LayerNorm, RMSNorm; and Dropout."""

from __future__ import annotations

from typing import Any

from minipeft.autograd import Tensor, functional
from minipeft.backend import active, random
from minipeft.nn.module import Module, Parameter


def normal(shape: tuple[int, ...], std: float, rng: random.Generator | None) -> Parameter:
    """A float32 parameter drawn from N(0, std²) on the host: every backend starts from the same bits."""
    rng = rng or random.stream("init")
    return Parameter(active().asarray(rng.standard_normal(shape, dtype="float32") * std))


def constant(shape: tuple[int, ...], value: float) -> Parameter:
    """A float32 parameter whose entries all are `value`."""
    xp = active().xp
    return Parameter(xp.full(shape, value, dtype=xp.float32))


class Linear(Module):
    """Y = X W + b with W ∈ R^{in × out}, as the lecture writes it; W ~ N(0, 0.02²), b = 0 (BERT, arXiv 1810.04805, A.2).

    Args:
        d_in: the length of X's last axis.
        d_out: the length of Y's last axis.
        bias: whether there is a b.
        rng: draws W; the stream "init" when it is None.
    """

    def __init__(self, d_in: int, d_out: int, bias: bool = True, rng: random.Generator | None = None) -> None:
        self.weight = normal((d_in, d_out), 0.02, rng)
        self.bias = constant((d_out,), 0.0) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return functional.linear(x, self.weight, self.bias)


class Embedding(Module):
    """A table of `count` rows of length `d`, drawn from N(0, 0.02²)."""

    def __init__(self, count: int, d: int, rng: random.Generator | None = None) -> None:
        self.weight = normal((count, d), 0.02, rng)

    def forward(self, ids: Any) -> Tensor:
        """Integer array (...) -> (..., d)."""
        return functional.embedding(self.weight, ids)


class LayerNorm(Module):
    """Y = x̂ ⊙ weight + bias, x̂ of mean 0 and variance 1 along the last axis (arXiv 1607.06450)."""

    def __init__(self, d: int, eps: float = 1e-5) -> None:
        self.weight = constant((d,), 1.0)
        self.bias = constant((d,), 0.0)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        return functional.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """Y = x̂ ⊙ weight, x̂ = x / √(mean(x²) + eps) along the last axis (arXiv 1910.07467)."""

    def __init__(self, d: int, eps: float = 1e-5) -> None:
        self.weight = constant((d,), 1.0)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        return functional.rms_norm(x, self.weight, self.eps)


class Dropout(Module):
    """Each element zero with probability p while training, the others divided by 1 - p."""

    def __init__(self, p: float) -> None:
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return functional.dropout(x, self.p, self.training)

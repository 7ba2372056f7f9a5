"""The intrinsic dimension in torch, for the peer: θ = θ₀ + θ_d M with M by Fastfood, as in `minipeft.peft.projection`.

Written as a torch user would: autograd differentiates the transform, and `functional_call` puts θ in θ₀'s place. M is drawn
from torch's own random numbers: the same distribution, other draws.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.func import functional_call


class Subspace(nn.Module):
    """θ_d of length d, which moves the frozen parameters of a model; those that it trains otherwise are not in θ."""

    def __init__(self, model: nn.Module, d: int) -> None:
        super().__init__()
        self.theta_0 = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        device = next(iter(self.theta_0.values())).device
        self.sizes = [p.numel() for p in self.theta_0.values()]
        self.d, self.D = d, sum(self.sizes)
        self.theta_d = nn.Parameter(torch.zeros(d, device=device))
        bits = max(1, (d - 1).bit_length())
        self.a, self.b = 1 << (bits // 2), 1 << (bits - bits // 2)
        shape = (-(-self.D // (self.a * self.b)), self.a * self.b)  # blocks, n
        self.signs = torch.randint(0, 2, shape, device=device).float() * 2 - 1
        self.source = torch.rand(shape, device=device).argsort(dim=1)
        gauss = torch.randn(shape, device=device)
        self.gauss = gauss / (math.sqrt(d) * gauss.norm(dim=1, keepdim=True))
        self.H_a, self.H_b = (_hadamard(n).to(device) for n in (self.a, self.b))

    def transform(self, x: torch.Tensor) -> torch.Tensor:
        """H along the last axis: (blocks, n) -> the same."""
        right = (x.reshape(-1, self.b) @ self.H_b).reshape(-1, self.a, self.b)
        return (self.H_a @ right).reshape(x.shape)

    def change(self) -> torch.Tensor:
        """θ_d M: (D,)."""
        padded = nn.functional.pad(self.theta_d, (0, self.a * self.b - self.d))
        x = self.transform(padded * self.signs).gather(1, self.source) * self.gauss
        return self.transform(x).flatten()[: self.D]

    def call(self, model: nn.Module, *inputs: Any, **options: Any) -> Any:
        """The model's output with θ in the place of θ₀."""
        pieces = self.change().split(self.sizes)
        theta = {name: p + piece.view_as(p) for (name, p), piece in zip(self.theta_0.items(), pieces, strict=True)}
        return functional_call(model, theta, inputs, options)


def _hadamard(n: int) -> torch.Tensor:
    H = torch.ones(1, 1)
    while H.shape[0] < n:
        H = torch.cat([torch.cat([H, H], dim=1), torch.cat([H, -H], dim=1)])
    return H

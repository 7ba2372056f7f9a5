"""A weighted sum of LoRA adapters as one adapter: Σ wᵢ sᵢ Aᵢ Bᵢ = (A₁ | A₂ | ...) (w₁s₁B₁; w₂s₂B₂; ...), with s = 1.

The ranks add up and nothing is rounded off; adding the A's and the B's themselves would give cross terms Aᵢ Bⱼ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from minipeft.backend import active
from minipeft.errors import UserError
from minipeft.peft.lora import LoraConfig, LoRALinear, LoraMethod
from minipeft.peft.several import Adapters


def combine(adapters: Adapters, names: Sequence[str], weights: Sequence[float], name: str) -> None:
    """Add the sum to `adapters`, none of which is in the model; its head is head₀ + Σ wᵢ (headᵢ - head₀).

    Raises:
        UserError: one of them is unknown or no LoRA, or their ranks add up to more than a layer can have.
    """
    if len(weights) != len(names) or not names:
        raise UserError(f"{len(names)} adapters and {len(weights)} weights: give each adapter one.")
    parts: list[tuple[LoraMethod, float]] = []
    for given, weight in zip(names, weights, strict=True):
        slot = adapters.find(given)
        method = slot.method
        if not isinstance(method, LoraMethod) or any(type(layer) is not LoRALinear for layer in method.layers.values()):
            raise UserError(f"Only LoRA adapters can be combined, and {given!r} is of {type(slot.config).__name__}.")
        parts.append((method, weight))
    ranks: Counter[str] = Counter()
    for lora, _ in parts:
        ranks.update({target: layer.A.shape[1] for target, layer in lora.layers.items()})
    r = max(ranks.values())
    pattern = {target: rank for target, rank in ranks.items() if rank != r}
    config = LoraConfig(r, r, target_modules=tuple(ranks), rank_pattern=pattern, alpha_pattern=pattern)
    slot = adapters.add(name, config)
    assert isinstance(slot.method, LoraMethod)
    for target, layer in slot.method.layers.items():
        there = [(lora.layers[target], weight) for lora, weight in parts if target in lora.layers]
        layer.A.data[...] = active().xp.concatenate([part.A.data for part, _ in there], axis=1)
        layer.B.data[...] = active().xp.concatenate([weight * part.scale * part.B.data for part, weight in there])
    for i, values in enumerate(slot.head):
        for given, weight in zip(names, weights, strict=True):
            values += weight * (adapters.find(given).head[i] - adapters.first_head[i])

"""Clipping a gradient by its norm."""

from __future__ import annotations

from minipeft.backend import Array


def clip_factor(norm: Array, max_norm: float) -> Array:
    """max_norm / (norm + 10⁻⁶), at most 1, as in torch; for a 0-d array a 0-d array, so that nothing waits for a device."""
    return (max_norm / (norm + 1e-6)).clip(max=1.0)


def clip_grad_norm(grad: Array, max_norm: float) -> Array:
    """Scale a flat gradient, in place, to a norm of `max_norm` where it is longer; returns the norm it had, a 0-d array."""
    norm = (grad @ grad) ** 0.5
    grad *= clip_factor(norm, max_norm)
    return norm

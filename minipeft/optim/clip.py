"""Clipping a gradient by its norm."""

from __future__ import annotations

from minipeft.backend import Array, active
from minipeft.backend.workers import parallel_map, parallel_slices


def clip_grad_norm(grad: Array, max_norm: float) -> Array:
    """Scale a flat gradient, in place, to a norm of `max_norm` where it is longer; returns the norm it had (a 0-d array).

    The factor is max_norm / (norm + 10⁻⁶), at most 1, as in torch. Nothing here waits for the device.
    """
    cuts = parallel_slices(grad.size)
    norm = (
        sum(parallel_map(lambda cut: grad[cut] @ grad[cut], cuts), start=active().xp.zeros((), dtype=grad.dtype)) ** 0.5
    )
    factor = (max_norm / (norm + 1e-6)).clip(max=1.0)

    def scale(cut: slice) -> None:
        part = grad[cut]
        part *= factor

    parallel_map(scale, cuts)
    return norm

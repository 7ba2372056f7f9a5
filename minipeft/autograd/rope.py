"""Rotary positions: each query and key is turned by angles that grow with its position, so that q·k depends on distance."""

from __future__ import annotations

from minipeft.autograd.tensor import Tensor, record
from minipeft.backend import Array, active
from minipeft.errors import UserError


def rope(x: Tensor, heads: int, positions: Array, base: float) -> Tensor:
    """Rotary positions (arXiv 2104.09864, eq. 34): in each head, the pair (x_i, x_{i + d_h/2}) is turned by the angle
    p · base^(-2i/d_h) at position p. This is the half-split form of the Llama files; the paper pairs neighbours.

    Args:
        x: (batch, seq, heads · d_h), d_h even.
        heads: how many heads lie side by side in the last axis.
        positions: integers, (seq,) or (batch, seq).
        base: of the angles' geometric series.
    """
    xp = active().xp
    shape, half = x.shape, x.shape[-1] // heads // 2
    if half * heads * 2 != shape[-1]:
        raise UserError(f"rope: {heads} heads of an even width do not fit a last axis of {shape[-1]}.")
    angles = active().asarray(positions)[..., None] * base ** (-xp.arange(half) / half)  # (seq, d_h/2), in float64
    cos, sin = (f(angles).astype(x.dtype)[..., None, :] for f in (xp.cos, xp.sin))  # (seq, 1, d_h/2)

    def turn(a: Array, sin: Array) -> Array:
        pairs = a.reshape(*shape[:-1], heads, 2, half)
        one, two = pairs[..., 0, :], pairs[..., 1, :]
        turned = xp.empty_like(pairs)
        turned[..., 0, :] = one * cos - two * sin
        turned[..., 1, :] = two * cos + one * sin
        return turned.reshape(shape)

    return record(turn(x.data, sin), (x, lambda g: turn(g, -sin)))

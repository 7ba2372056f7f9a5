"""The cache of keys and values: in a causal model they depend on earlier tokens alone, so each is computed once."""

from __future__ import annotations

from typing import Any

from minipeft.autograd import Tensor
from minipeft.backend import Array, active


class LayerCache:
    """The keys and values of one block.

    Attributes:
        start: how many slots were filled before the tokens that are being read.
        positions: of these tokens: (seq,), or (batch, seq) when padding has put the rows out of step.
        seen: the tokens of the longest row, these included.
    """

    start = 0
    seen = 0
    positions: Array = None

    def __init__(self) -> None:
        self.k: Array = None  # (batch, capacity, d_kv)
        self.v: Array = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (batch, seq, d_kv); returns all so far, (batch, start + seq, d_kv), as views."""
        end = self.start + k.shape[1]
        if self.k is None or end > self.k.shape[1]:
            self.k, self.v = (_grown(old, new.data, self.start, 2 * end) for old, new in ((self.k, k), (self.v, v)))
        self.k[:, self.start : end] = k.data
        self.v[:, self.start : end] = v.data
        return Tensor(self.k[:, :end]), Tensor(self.v[:, :end])


class KVCache:
    """What a model has read so far: pass the same one to each call, with the new tokens alone.

    Args:
        layers: the model's blocks.

    Rows may differ in length: mark the padding in `attention_mask`. A padded slot is never looked at, and does not count
    as a position.
    """

    def __init__(self, layers: int) -> None:
        self.layers = [LayerCache() for _ in range(layers)]
        self.mask: Array = None  # (batch, slots) of 0 and 1; None while every slot counts
        self.slots = 0

    def advance(self, shape: tuple[int, int], mask: Any = None) -> Array:
        """Make room for tokens of shape (batch, seq), `mask` 0 at padding; returns the mask over all slots, or None."""
        xp = active().xp
        batch, seq = shape
        if mask is not None or self.mask is not None:
            before = xp.ones((batch, self.slots), dtype=bool) if self.mask is None else self.mask
            now = xp.ones(shape, dtype=bool) if mask is None else mask != 0
            self.mask = xp.concatenate([before, now], axis=1)
            counted = xp.cumsum(self.mask, axis=1)[:, self.slots :] - 1
            positions, seen = xp.maximum(counted, 0), int(counted.max()) + 1
        else:
            positions, seen = xp.arange(self.slots, self.slots + seq), self.slots + seq
        for layer in self.layers:
            layer.start, layer.positions, layer.seen = self.slots, positions, seen
        self.slots += seq
        return self.mask

    def repeat(self, count: int) -> KVCache:
        """A cache of `count` rows that all continue the one row of this, which stays as it is."""
        return self._with(lambda array: active().xp.repeat(array, count, axis=0))

    def rows(self, indices: Any) -> KVCache:
        """A cache of some of the rows."""
        return self._with(lambda array: array[indices])

    def _with(self, change: Any) -> KVCache:
        other = KVCache(len(self.layers))
        other.slots = self.slots
        other.mask = None if self.mask is None else change(self.mask)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if mine.k is not None:
                theirs.k, theirs.v = change(mine.k[:, : self.slots]), change(mine.v[:, : self.slots])
        return other


def _grown(old: Array, new: Array, used: int, capacity: int) -> Array:
    """An array of `capacity` slots that begins with the `used` ones of `old`."""
    grown = active().xp.empty((new.shape[0], capacity, new.shape[2]), dtype=new.dtype)
    if old is not None:
        grown[:, :used] = old[:, :used]
    return grown

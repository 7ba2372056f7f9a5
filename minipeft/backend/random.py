"""Random numbers: one root seed, and a named stream for each purpose. NumPy's global state is never touched.

`generator(name, *index)` is a pure function of the root seed, the name and the index: epoch 3's order of the data is
`generator("data", 3)` whatever was drawn before, which is why a resumed run needs no saved random state.
`stream(name)` is one generator that goes on from draw to draw, for initialisation.
Dropout takes a key a layer and step from `dropout_key()`; the trainer tells the step with `at_step`.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from minipeft.errors import UserError

Generator = np.random.Generator


class _State:
    def __init__(self) -> None:
        self.root = 0
        self.streams: dict[str, Generator] = {}
        self.only: Any = None  # a generator that stands in for all


class _Place(threading.local):
    """Where in the training this thread is: a worker that has a shard of the batch draws masks of its own."""

    step = 0
    shard = 0
    calls = 0


_state = _State()
_place = _Place()


def seed(root: int) -> None:
    """Set the root seed (a non-negative integer) and start every stream afresh."""
    if not isinstance(root, int) or root < 0:
        raise UserError(f"A seed is an integer of 0 or more, not {root!r}.")
    _state.root = root
    _state.streams = {}
    at_step(0)


def root() -> int:
    """The root seed."""
    return _state.root


def generator(name: str, *index: int, root: int | None = None) -> Generator:
    """A fresh generator that depends on (root, name, index) alone; without a `root`, on the root seed."""
    if _state.only is not None:
        return _state.only
    words = (zlib.crc32(name.encode()), *index)
    return np.random.default_rng(np.random.SeedSequence(_state.root if root is None else root, spawn_key=words))


def permutations(rng: Generator, count: int, n: int) -> np.ndarray:
    """`count` random orders of 0..n-1, one a row: (count, n)."""
    return rng.permuted(np.broadcast_to(np.arange(n), (count, n)), axis=1)


def layers_without_repeats(rows: list[np.ndarray]) -> tuple[list[tuple[np.ndarray, ...]], np.ndarray]:
    """Share the numbers in `rows` (each of k distinct places) out to layers, so that no layer names a place twice.

    Returns the layers, each as (its places in rising order, the row of each, its index in all rows end to end), and for
    the numbers of all rows end to end where the layers, end to end, have them.
    """
    if _state.only is not None:  # shapes have no values to compare: one layer stands for all
        flat = _state.only.integers(0, 1, len(rows) * len(rows[0]))
        return [(flat, flat, flat)], flat
    places = np.concatenate(rows)
    order = np.argsort(places, kind="stable")
    new = np.concatenate(([True], places[order][1:] != places[order][:-1]))
    first = np.flatnonzero(new)[np.cumsum(new) - 1]
    turn = np.arange(len(order)) - first  # how many rows have named the same place before
    order = order[np.argsort(turn, kind="stable")]
    ends = np.cumsum(np.bincount(turn))
    layers: list[tuple[np.ndarray, ...]] = [
        (
            places[part],
            part // len(rows[0]),
            part,
        )  # of the type that NumPy indexes with: others take three times as long
        for part in np.split(order, ends[:-1])
    ]
    where = np.empty(len(order), dtype=np.intp)
    where[order] = np.arange(len(order))
    return layers, where


def stream(name: str) -> Generator:
    """The generator of that name; it continues where the last draw left it."""
    if _state.only is not None:
        return _state.only
    if name not in _state.streams:
        _state.streams[name] = generator(name)
    return _state.streams[name]


@contextlib.contextmanager
def drawn_from(source: Any) -> Iterator[None]:
    """Inside, every stream and generator is `source`; afterwards each goes on as if nothing had been drawn."""
    before, _state.only = _state.only, source
    try:
        yield
    finally:
        _state.only = before


def at_step(step: int, shard: int = 0) -> None:
    """Say which training step, and which shard of its batch, this thread runs now.

    Dropout masks depend on these two, not on what ran before.
    """
    _place.step, _place.shard, _place.calls = step, shard, 0


def dropout_key() -> int:
    """A new 64-bit key, a function of (root seed, step, shard, number of keys drawn for these)."""
    words = (zlib.crc32(b"dropout"), _place.step, _place.shard, _place.calls)
    _place.calls += 1
    return int(np.random.SeedSequence(_state.root, spawn_key=words).generate_state(1, np.uint64)[0])

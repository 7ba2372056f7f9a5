"""A pool of threads for pieces of work that do not depend on each other, with BLAS on one thread in each.

Two threads inside every matrix product wait for each other hundreds of times a step; two threads with half the batch each
wait once. NumPy lets go of the interpreter inside its loops, so plain threads do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import TracebackType
from typing import TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")


class _Inside(threading.local):
    worker = False


_inside = _Inside()
_current: Workers | None = None


class Workers:
    """`count` threads that live as long as the `with` block; with one, everything runs in the calling thread as it is."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> Workers:
        global _current
        _keep_freed_memory()
        self._before, _current = _current, self
        self._pool = ThreadPoolExecutor(self.count) if self.count > 1 else None
        self._limit = _blas().limit(limits=1, user_api="blas") if self.count > 1 else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _current
        _current = self._before
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._limit is not None:
            self._limit.restore_original_limits()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The results in the order of the items. An error of any worker is raised here, once all have stopped."""
        if self._pool is None or _inside.worker:
            return [function(item) for item in items]

        def run(item: T) -> R:
            _inside.worker = (
                True  # a worker that maps in its turn does so by itself, or it might wait for its own thread
            )
            return function(item)

        futures = [self._pool.submit(run, item) for item in items]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]


def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Map with the workers of the `with Workers(...)` block around, or one after the other outside of any."""
    return _current.map(function, items) if _current is not None else [function(item) for item in items]


def parallel_slices(size: int) -> list[slice]:
    """range(size) cut into one slice a worker; one slice for what is too small to be worth it."""
    count = _current.count if _current is not None and size >= 1 << 18 else 1
    step = max(1, -(-size // count))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def default_workers() -> int:
    """The processors that this process may use, at most 4: with more, the shards of a usual batch get too small."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 4)


@cache
def _keep_freed_memory() -> None:
    """Ask glibc not to hand freed memory back to the system after every large array.

    A training step frees and allocates the same sizes over and over; getting each page afresh, filled with zeros, costs a
    fifth of a small model's step. Other C libraries go without.
    """
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # names in malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 1 << 25)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(arena_max, 1)


@cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries of this process; looking them up takes milliseconds, so it is done once."""
    return ThreadpoolController()

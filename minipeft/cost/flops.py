"""Counting floating-point operations: 2·m·k·n for every (m, k) @ (k, n) that is really multiplied.

The backend adds them up from the shapes of the operands, so what a frozen weight or a cut saves is not in the count, and a
method of your own is counted like the built-in ones. Element-wise work (norms, GELU, softmax) is left out, as is usual.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from minipeft.backend import active


class FlopCount:
    """`flops`: the operations of the matrix products inside the `with` block, so far or in all."""

    def __init__(self) -> None:
        self._start = active().flops
        self._end: int | None = None

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return (active().flops if self._end is None else self._end) - self._start


@contextlib.contextmanager
def count_flops() -> Iterator[FlopCount]:
    """Count the operations of the matrix products inside the block."""
    count = FlopCount()
    yield count
    count._end = active().flops

"""Learning-rate schedules: the factor in [0, 1] by which the peak rate is multiplied at a step."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int, int, int], float]


def linear(step: int, total: int, warmup: int) -> float:
    """Up from 0 to 1 in `warmup` steps, then down to 0 at step `total`, both in a line; `step` counts from 0."""
    if step < warmup:
        return step / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def cosine(step: int, total: int, warmup: int) -> float:
    """Up from 0 to 1 in a line, then down along half a cosine (arXiv 1608.03983, eq. 5, without restarts)."""
    if step < warmup:
        return step / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1 + math.cos(math.pi * done))


def constant(step: int, total: int, warmup: int) -> float:
    """Up from 0 to 1 in a line, then 1."""
    return step / warmup if step < warmup else 1.0


SCHEDULES: dict[str, Schedule] = {"linear": linear, "cosine": cosine, "constant": constant}

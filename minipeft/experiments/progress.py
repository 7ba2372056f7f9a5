"""What a running experiment tells whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minipeft.backend import active
from minipeft.experiments.cell import OnStep
from minipeft.experiments.methods import MethodSpec

LOG_EVERY = 10  # steps between two looks at the loss, which may have to wait for the device


@dataclass(frozen=True)
class Progress:
    """Where the comparison is: cell `index` of `cells`, `step` of `steps`, with that step's loss where it is known.

    With `trial`, it is a trial of the search for learning rates.
    """

    spec: MethodSpec
    seed: int
    index: int
    cells: int
    step: int
    steps: int
    loss: float | None
    row: dict[str, Any] | None = None  # set when the cell is finished
    trial: bool = False


Listener = Callable[[Progress], None]


def teller(
    listener: Listener | None, spec: MethodSpec, seed: int, index: int, cells: int, trial: bool = False
) -> OnStep | None:
    """What the trainer is to call after each step, so that the listener hears of it."""
    if listener is None:
        return None

    def on_step(step: int, steps: int, loss: Any) -> None:
        looked = float(active().to_numpy(loss)) if step % LOG_EVERY == 1 or step == steps else None
        listener(Progress(spec, seed, index, cells, step, steps, looked, trial=trial))

    return on_step

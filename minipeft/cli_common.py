"""What the commands share: where they print, how a bar looks, and how a run that was stopped says good-bye."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

out, err = Console(), Console(stderr=True)
LINE: Any = {"soft_wrap": True, "highlight": False}


def progress_bars(elapsed: bool = False) -> Progress:
    """Bars on stderr, shown on a terminal alone: what, how far, and the time that remains, or has passed."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    time = TimeElapsedColumn() if elapsed else TimeRemainingColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), time)
    return Progress(*columns, console=err, disable=not err.is_terminal)


@contextlib.contextmanager
def resumable(folder: Path, what: str = "Everything so far") -> Iterator[None]:
    """Ctrl-C inside: one line that says how to go on, and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"Stopped. {what} is in {folder}: run the same command again to go on.", soft_wrap=True)
        raise typer.Exit(130) from None

"""The table that grows on the terminal while `minipeft compare` runs, and the one that stays when it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from minipeft.experiments.methods import MethodSpec
from minipeft.experiments.progress import Progress
from minipeft.report.summary import Summary, family_name


class LiveTable:
    """Shows every cell of a comparison as waiting, running (a bar, the loss, the time left) or done (its results).

    Where the output is not a terminal, a line is printed for every cell that is finished.
    """

    def __init__(self, console: Console, specs: Sequence[MethodSpec], seeds: int) -> None:
        self.console = console
        self.cells = [(spec, seed) for seed in range(seeds) for spec in specs]
        self.state: dict[int, Progress] = {}
        self.losses: dict[int, float] = {}
        self.began: dict[int, tuple[float, int]] = {}
        self.search = ""
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self.show, transient=True)

    def __enter__(self) -> LiveTable:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def update(self, progress: Progress) -> None:
        """Take in what the comparison tells."""
        if progress.trial:
            self._note(progress)
            return
        self.search = ""
        self.state[progress.index] = progress
        self.began.setdefault(progress.index, (time.monotonic(), progress.step))
        if progress.loss is not None:
            self.losses[progress.index] = progress.loss
        if progress.row is not None and not self.console.is_terminal:
            row = progress.row
            self.console.print(
                f"[{progress.index + 1}/{progress.cells}] {progress.spec.name}, seed {progress.seed}: "
                f"{'accuracy ' * (row['accuracy'] is not None)}{score_of(row)}, {row['trainable_params']:,} trainable, "
                f"{row['train_seconds']:.0f} s",
                highlight=False,
                soft_wrap=True,
            )

    def _note(self, progress: Progress) -> None:
        """A trial of the search for learning rates: one line above the table, or a line for each that is finished."""
        name = f"[{progress.index + 1}/{progress.cells}] search: {progress.spec.name} at {progress.spec.lr:g}"
        self.search = f"{name}, step {progress.step}/{progress.steps}"
        if progress.row is not None and not self.console.is_terminal:
            accuracy = progress.row["accuracy"]
            found = "diverged" if accuracy is None else f"{100 * accuracy:.1f} % of the validation rows"
            self.console.print(f"{name}: {found}", highlight=False, soft_wrap=True, markup=False)

    def show(self) -> RenderableType:
        """What stands on the terminal now."""
        return Group(Text(self.search), self.table()) if self.search else self.table()

    def table(self) -> Table:
        """The table as it stands."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("method", "seed", "trainable", "progress", "loss", "score", "step"):
            table.add_column(name, justify="left" if name in ("method", "progress") else "right")
        for index, (spec, seed) in enumerate(self.cells):
            progress = self.state.get(index)
            label = Text(f"{family_name(spec.family)} {spec.setting}".rstrip())
            if progress is None:
                table.add_row(label, str(seed), *[Text("·", style="dim")] * 5, style="dim")
            elif progress.row is None:
                loss = f"{self.losses[index]:.3f}" if index in self.losses else ""
                bar = Table.grid(padding=(0, 1, 0, 0))
                bar.add_row(ProgressBar(total=progress.steps, completed=progress.step, width=24), self._left(progress))
                table.add_row(label, str(seed), "", bar, loss, "", "")
            else:
                row = progress.row
                table.add_row(
                    label,
                    str(seed),
                    f"{row['trainable_params']:,}",
                    Text(f"done in {row['train_seconds']:.0f} s", style="green"),
                    row["loss_curve"].rpartition(":")[2][:5],
                    score_of(row),
                    f"{row['step_ms']:.0f} ms",
                )
        return table

    def _left(self, progress: Progress) -> str:
        began, first = self.began[progress.index]
        steps = progress.step - first
        if steps < 2:
            return f"{progress.step}/{progress.steps}"
        left = (progress.steps - progress.step) * (time.monotonic() - began) / steps
        return f"{progress.step}/{progress.steps}, {left:.0f} s left"


def score_of(row: Mapping[str, Any]) -> str:
    """A finished cell's accuracy, or the bits per byte where the task is a text."""
    return f"{row['bits_per_byte']:.3f} bits/byte" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"


def narrow_table(title: str | None) -> Table:
    """A table without frames, a blank between its columns: many of them fit into 80 characters."""
    return Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )


def _megabytes(size: float) -> str:
    return f"{size:,.0f}" if size >= 100 else f"{size:.1f}"


def results_table(cells: Sequence[Summary]) -> Table:
    """The results, a row for each method and setting, averaged over seeds; at most 80 characters wide."""
    seeds = max(cell.n for cell in cells)
    title = f"mean over {seeds} seeds ± standard deviation" if seeds > 1 else None
    table = narrow_table(title)
    of_text = any(cell.of_text for cell in cells)
    table.add_column("method", no_wrap=True)
    score = ("perpl.", "bits/\nbyte") if of_text else ("accuracy %",)
    for name in ("trainable", "%", *score, "step\nms", "activ.\nMB", "optim.\nMB"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        mean: Any = cell.mean
        column, factor, digits = ("bits_per_byte", 1, 3) if of_text else ("accuracy", 100, 1)
        spread = f" ± {factor * cell.sd[column]:.{digits}f}" if cell.n > 1 else ""
        table.add_row(
            cell.label,
            f"{mean['trainable_params']:,.0f}",
            f"{mean['trainable_percent']:.3g}",
            *([f"{mean['perplexity']:.1f}"] if of_text else []),
            f"{factor * mean[column]:.{digits}f}{spread}",
            f"{mean['step_ms']:.0f}",
            _megabytes(mean["activation_mb"]),
            _megabytes(mean["optimizer_mb"]),
        )
    return table

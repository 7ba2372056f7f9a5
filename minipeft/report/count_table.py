"""`minipeft count`: tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from minipeft.cost.count import Count
from minipeft.cost.papers import Row
from minipeft.errors import UserError
from minipeft.report.live import narrow_table

PARAMETERS, MEMORY = ("head", "method", "%"), ("AdamW\nMB", "saved\nMB")
FIGURES = (*PARAMETERS, *MEMORY, "forw.\nGFLOP", "backw.\nGFLOP", "activ.\nMB")


def count_table(counts: Mapping[str, Count | UserError], title: str) -> Table:
    """A line a method: parameters exactly, and to four digits memory in MB (10⁶ bytes, float32) and a step's GFLOP.

    Below it stands why a method does not fit the architecture, and why no step of that could be counted.
    """
    reasons = [f"{name}: {count}" for name, count in counts.items() if isinstance(count, UserError)]
    reasons += dict.fromkeys(count.note for count in counts.values() if isinstance(count, Count) and count.note)
    table = narrow_table(title)
    table.caption = Text("\n".join(reasons)) if reasons else None
    table.add_column("method", no_wrap=True)
    for name in FIGURES:
        table.add_column(name, justify="right", overflow="fold")  # on a narrow terminal too, no digit is left out
    for name, count in counts.items():
        if isinstance(count, UserError):
            table.add_row(name, *["–"] * len(FIGURES))
            continue
        p, step = count.parameters, count.step
        sizes = [_short(size / 1e6) for size in (count.optimizer, count.saved)]
        work = ["–"] * 3
        if step is not None:
            work = [_short(x) for x in (step.forward_flops / 1e9, step.backward_flops / 1e9, step.activations / 1e6)]
        table.add_row(name, f"{p.head:,}", f"{p.method:,}", f"{p.percent:.3g}", *sizes, *work)
    return table


def _short(value: float) -> str:
    """To four digits, and to one at least: 1,047,626; 75.50; 0.1966."""
    decimals = 0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 10 else 3 if value >= 1 else 4
    return f"{value:,.{decimals}f}"


def paper_table(rows: Iterable[Row]) -> Table:
    """A line a figure: the paper's, the formula's with all its digits, and whether they agree."""
    table = Table("figure", "of what", title="The papers' figures beside their formulas", title_justify="left")
    table.add_column("paper", justify="right", no_wrap=True)
    table.add_column("formula", justify="right", no_wrap=True)
    table.add_column("agrees")
    for row in rows:
        exact = f"{row.value:,.0f}" if row.unit > 1 else f"{row.value:.2f} {row.suffix}"
        table.add_row(row.what, row.setting, f"{row.printed} {row.suffix}", exact, row.verdict)
    return table

"""`minipeft count`: tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table

from minipeft.cost.count import Count
from minipeft.cost.papers import Row


def count_table(counts: Mapping[str, Count], title: str) -> Table:
    """A line a method: parameters exactly, memory in MB (10⁶ bytes, float32), operations of a step in GFLOP."""
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    for name in ("head", "method", "trained %", "gradient MB", "AdamW MB", "saved MB"):
        table.add_column(name, justify="right")
    for name in ("forward GFLOP", "backward GFLOP", "activations MB"):
        table.add_column(name, justify="right")
    for name, count in counts.items():
        p, step = count.parameters, count.step
        sizes = [f"{size / 1e6:,.3f}" for size in (count.gradient, count.optimizer, count.saved)]
        work = ["–"] * 3
        if step is not None:
            work = [f"{x:,.3f}" for x in (step.forward_flops / 1e9, step.backward_flops / 1e9, step.activations / 1e6)]
        table.add_row(name, f"{p.head:,}", f"{p.method:,}", f"{p.percent:.3g}", *sizes, *work)
    return table


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

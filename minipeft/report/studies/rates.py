"""The result of `minipeft study rates`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from minipeft.report.studies.drawing import curve, legend, log_ticks
from minipeft.report.studies.writing import (
    Result,
    Rows,
    bars_text,
    best_text,
    group,
    markdown,
    name,
    ratio_text,
    stat,
    title,
)
from minipeft.report.style import blank_figure, family_looks


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """The best rate of each method, and LoRA's over full's."""
    accuracy = group(rows, _cell)
    methods, rates = list(dict.fromkeys(m for m, _ in accuracy)), sorted({lr for _, lr in accuracy})
    best = {m: max((lr for lr in rates if (m, lr) in accuracy), key=lambda lr: accuracy[m, lr].mean) for m in methods}
    sentences = [
        f"{title(m)}: {best_text(rows, _cell, [(m, lr) for lr in rates], lambda cell: f'{cell[1]:g}')}."
        for m in methods
    ]
    edges = [m for m in methods if best[m] in (rates[0], rates[-1])]
    if edges:
        sentences.append(
            f"At the edge of the grid, so that the true best may lie outside: {', '.join(map(title, edges))}."
        )
    lora = next((m for m in methods if m.startswith("lora")), None)
    if lora and "full" in best:
        ratios = []
        for seed in sorted({row["seed"] for row in rows}):
            own = {_cell(row): row["accuracy"] for row in rows if row["seed"] == seed}
            if all((m, lr) in own for m in (lora, "full") for lr in rates):
                top = {m: max(rates, key=lambda lr: own[m, lr] or 0.0) for m in (lora, "full")}  # None has diverged
                ratios.append(top[lora] / top["full"])
        step = rates[1] / rates[0] if len(rates) > 1 else 1
        sentences.append(
            f"LoRA's best is {best[lora] / best['full']:.3g} times full fine-tuning's, on a grid of steps of about "
            f"{step:.2g}." + _by_seed(ratios, step)
        )
    heads = ["method", *(f"{lr:g}" for lr in rates)]
    table = [
        [title(m), *(accuracy[m, lr].percent if (m, lr) in accuracy else "diverged" for lr in rates)] for m in methods
    ]
    return Result(sentences, {"rates": _figure(rows, methods, rates)}, [markdown(heads, table)])


def _cell(row: Mapping[str, Any]) -> tuple[str, float]:
    return name(row), row["lr"]


def _by_seed(ratios: list[float], step: float) -> str:
    """The ratio of each seed, their mean, and whether ten is among what they allow."""
    if len(ratios) < 2:
        return ""
    logs = stat([math.log(ratio) for ratio in ratios])
    near = abs(logs.mean - math.log(10)) <= logs.error + math.log(step)
    return (
        f" Seed by seed: {', '.join(f'{ratio:.3g}' for ratio in ratios)}; geometric mean {ratio_text(logs)}. Ten times "
        f"lies {'within' if near else 'outside'} this interval and one step of the grid."
    )


def _figure(rows: Rows, methods: list[str], rates: list[float]) -> Figure:
    accuracy = group(rows, _cell)
    figure = blank_figure(9, 5.2, "Accuracy against the learning rate", f"Validation rows; {bars_text(rows)}")
    axes = figure.add_subplot()
    looks = family_looks(m.split(":")[0] for m in methods)
    for m in methods:
        points = {lr: accuracy[m, lr] for lr in rates if (m, lr) in accuracy}
        curve(axes, points, looks[m.split(":")[0]], title(m))
        top = max(points, key=lambda lr: points[lr].mean)
        axes.plot(
            top, 100 * points[top].mean, "o", markersize=19, fillstyle="none", color=looks[m.split(":")[0]].colour
        )
    log_ticks(axes, rates)
    axes.set_xlabel("Learning rate (log scale); a ring marks each method's best")
    axes.set_ylabel("Validation accuracy (%)")
    legend(axes)
    return figure

"""The result of `minipeft study adapters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minipeft.report.studies.drawing import curve, heat_map, log_ticks
from minipeft.report.studies.writing import (
    Result,
    Rows,
    Stat,
    bars_text,
    best_text,
    group,
    markdown,
    paired,
    seeds_text,
    stat,
    verdict,
)
from minipeft.report.style import LOOKS, blank_figure


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """Accuracy by width, and what is lost when adapters are switched off."""
    sweep, ablated = [row for row in rows if "spans" not in row], [row for row in rows if row.get("spans")]
    sentences, figures, tables = [], {}, []
    if any(row["accuracy"] is not None for row in sweep):
        width = lambda row: int(row["setting"])
        accuracy = group(sweep, width)
        parameters, rate = group(sweep, width, "method_params"), group(sweep, width, "lr")
        sentences.append(f"{best_text(sweep, width, accuracy, lambda r: f'Width {r}')}.")
        least, most = min(accuracy), max(accuracy)
        gap = paired(sweep, width, least, most)
        if gap is not None and least != most:
            sentences.append(
                f"A width of {least} is {gap.points} points from one of {most} ({verdict(gap)}) with "
                f"{parameters[least].mean / parameters[most].mean:.1%} of its parameters."
            )
        figures["widths"] = _widths(sweep, accuracy, parameters)
        tables.append(
            markdown(
                ["width R", "adapter parameters", "learning rate", "accuracy %"],
                [[str(r), f"{parameters[r].mean:,.0f}", f"{rate[r].mean:g}", accuracy[r].percent] for r in accuracy],
            )
        )
    if ablated:
        drops = _drops(ablated)
        layers = 1 + max(last for _, last in drops)
        single = {i: drops[i, i] for i in range(layers)}
        worst, mildest = min(single, key=lambda i: single[i].mean), max(single, key=lambda i: single[i].mean)
        whole = stat([row["accuracy"] for row in ablated])
        sentences.append(
            f"With adapters of width {ablated[0]['ablated']} in every block the accuracy is {whole.percent} %. Switching "
            f"off those of one block without training again changes it by {single[mildest].points} points (block "
            f"{mildest}) to {single[worst].points} points (block {worst})."
        )
        half = layers // 2
        sentences.append(
            f"Without the lower half (blocks 0 to {half - 1}) it changes by {drops[0, half - 1].points} points, without "
            f"the upper half by {drops[half, layers - 1].points}, without all by {drops[0, layers - 1].points} points."
        )
        figures["ablation"] = _ablation(ablated, drops, layers)
        tables.append(
            markdown(
                ["blocks switched off", "change, points"],
                [[f"{a} to {b}", drop.points] for (a, b), drop in drops.items()],
            )
        )
    return Result(sentences, figures, tables)


def _drops(ablated: Rows) -> dict[tuple[int, int], Stat]:
    """(first, last) -> the change of accuracy when the adapters of these blocks are off."""
    spans: dict[tuple[int, int], list[float]] = {}
    for row in ablated:
        for first, last, accuracy in row["spans"]:
            spans.setdefault((first, last), []).append(accuracy - row["accuracy"])
    return {span: stat(changes) for span, changes in spans.items()}


def _widths(rows: Rows, accuracy: Mapping[int, Stat], parameters: Mapping[int, Stat]) -> Figure:
    figure = blank_figure(8, 4.8, "How wide an adapter must be", f"Test set; {bars_text(rows)}")
    axes = figure.add_subplot()
    curve(axes, {float(r): accuracy[r] for r in sorted(accuracy)}, LOOKS["adapter"], "Adapters")
    ticks = sorted(accuracy)
    log_ticks(axes, ticks, [f"{r}\n{parameters[r].mean / 1e3:,.0f}k" for r in ticks])
    axes.set_xlabel("Width R of the bottleneck; below it, parameters of all adapters")
    axes.set_ylabel("Test accuracy (%)")
    return figure


def _ablation(rows: Rows, drops: Mapping[tuple[int, int], Stat], layers: int) -> Figure:
    seeds = seeds_text(rows)
    figure = blank_figure(
        7.5, 5.6, "Adapters switched off, without training again", f"Accuracy lost, points; mean of {seeds}"
    )
    axes = figure.add_subplot()
    lost = np.full((layers, layers), np.nan)
    for (first, last), drop in drops.items():
        lost[first, last] = round(-100 * drop.mean, 1) + 0.0  # no -0.0
    names = [str(i) for i in range(layers)]
    heat_map(axes, lost.tolist(), names, names, 0, max(5.0, float(np.nanmax(lost))))
    axes.set_xlabel("Last block whose adapters are off")
    axes.set_ylabel("First block whose adapters are off")
    return figure

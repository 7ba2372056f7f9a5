"""The figures of language models, drawn from the files of their runs alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from minipeft.errors import UserError
from minipeft.report.labels import Label, label_ends, label_points
from minipeft.report.style import GREY, blank_figure, family_looks, ink, marker, save_figure, styled
from minipeft.report.summary import Summary

TRAIN, HELD_OUT = "#0072B2", "#D55E00"


def draw_pretraining(run: Path) -> list[Path]:
    """Draw the loss curve of a run of `minipeft pretrain` into RUN/figures; returns the paths.

    Raises:
        UserError: the run has no log, or the folder cannot be written to.
    """
    with styled():
        return save_figure(loss_figure(read_log(run / "log.jsonl")), run / "figures" / "loss")


def read_log(path: Path) -> dict[int, dict[str, float]]:
    """step -> what was measured there. Steps that were done again after a kill count once; a line cut short, not at all.

    Raises:
        UserError: there is no such file.
    """
    if not path.exists():
        raise UserError(f"There is no {path}: nothing has been trained here.")
    steps: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        steps.setdefault(row.pop("step"), {}).update(row)
    return dict(sorted(steps.items()))


def loss_figure(log: dict[int, dict[str, float]]) -> Figure:
    """Cross-entropy in nats a token against the step: of the batches, and of the held-out text once an epoch."""
    figure = blank_figure(
        9, 5, "Pre-training", "Loss on the training batches, and on samples of the text that is held out"
    )
    axes = figure.add_subplot()
    ends = []
    for name, text, colour, look in (
        ("loss", "Training", TRAIN, {"linewidth": 1.2}),
        ("held_out", "Held out", HELD_OUT, {"marker": "o", "linestyle": "--", "linewidth": 1.2}),
    ):
        points = [(step, row[name]) for step, row in log.items() if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, **look)
            ends.append(Label(float(points[-1][0]), points[-1][1], f"{text} {points[-1][1]:.2f}", ink(colour)))
    axes.set_xlabel("Step")
    axes.set_ylabel("Loss (nats a token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)
    label_ends(axes, ends)
    return figure


def bits_vs_parameters(cells: Sequence[Summary]) -> Figure:
    """Bits per byte of the held-out text against trainable parameters on a log axis; lower is better."""
    seeds = max(cell.n for cell in cells)
    note = f"mean of {seeds} seeds, bars: ± one standard deviation" if seeds > 1 else "one seed"
    figure = blank_figure(
        9, 5.6, "Bits per byte against trainable parameters", f"Held-out text, lower is better; {note}"
    )
    axes = figure.add_subplot()
    looks = family_looks(cell.method for cell in cells)
    points = [(cell.mean["trainable_params"], cell.mean["bits_per_byte"]) for cell in cells]
    handles = []
    for method in dict.fromkeys(cell.method for cell in cells):
        look = looks[method]
        own = [(cell, point) for cell, point in zip(cells, points, strict=True) if cell.method == method]
        axes.plot(
            *zip(*(point for _, point in own), strict=True), color=look.colour, linestyle=look.line, linewidth=1.6
        )
        for cell, point in own:
            if cell.n > 1:
                axes.errorbar(*point, cell.sd["bits_per_byte"], color=look.colour, capsize=3, elinewidth=1)
            axes.plot(*point, linestyle="none", **marker(look), zorder=4)
        handles.append(Line2D([], [], linestyle=look.line, **marker(look), label=own[0][0].family))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=5, handlelength=3.2)
    untrained = cells[0].mean["untrained"]
    if not math.isnan(untrained):
        axes.axhline(untrained, color=GREY, linewidth=1, linestyle=(0, (6, 2)))
        axes.text(
            *(1.01, untrained, f"Before training\n{untrained:.3f}"),
            color=GREY,
            fontsize=9,
            va="center",
            transform=axes.get_yaxis_transform(),
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 1k, 10M
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel("Trainable parameters (log scale)")
    axes.set_ylabel("Bits per byte")
    labels = [
        Label(*p, c.setting_label or c.family, ink(looks[c.method].colour)) for c, p in zip(cells, points, strict=True)
    ]
    label_points(axes, labels, points=points, avoid=[])
    return figure


def draw_tuning(run: Path) -> list[Path]:
    """Draw what a run of `minipeft train --task instruct` found into RUN/figures; returns the paths.

    Raises:
        UserError: the run is not finished, or the folder cannot be written to.
    """
    try:
        row = json.loads((run / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{run} holds no finished run of instruction tuning.") from None
    with styled():
        return save_figure(tuning_figure(row), run / "figures" / "tuning")


def tuning_figure(row: dict[str, Any]) -> Figure:
    """Exact match before and after for each source, a dash for guessing; and the loss of the training batches."""
    figure = blank_figure(10, 4.6, "Instruction tuning", f"{row['method']}; {row['test_rows']} rows held out")
    left, right = figure.subplots(1, 2)
    sources = list(row["after"]["sources"])
    for shift, what, colour in ((-0.2, "before", GREY), (0.2, "after", TRAIN)):
        heights = [100 * row[what]["sources"][name] for name in sources]
        left.bar([i + shift for i in range(len(sources))], heights, 0.38, color=colour, label=what.capitalize())
    guesses = [(i, 100 * row["guess"][name]) for i, name in enumerate(sources) if row["guess"][name] is not None]
    for number, (i, height) in enumerate(guesses):
        label = "Commonest output" if number == 0 else None
        left.plot([i - 0.42, i + 0.42], [height, height], color=HELD_OUT, linewidth=1.6, label=label)
    left.set_xticks(range(len(sources)), sources)
    left.set_ylim(0, 100)
    left.set_ylabel("Written word for word (%)")
    left.grid(visible=False, axis="x")
    left.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3)
    points = [pair.split(":") for pair in row["loss_curve"].split(";") if pair]
    right.plot([int(step) for step, _ in points], [float(loss) for _, loss in points], color=TRAIN, linewidth=1.2)
    right.set_xlabel("Step")
    right.set_ylabel("Loss of the outputs (nats a token)")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure

"""The figures of language models, drawn from the files of their runs alone."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minipeft.errors import UserError
from minipeft.report.labels import Label, label_ends
from minipeft.report.style import blank_figure, ink, save_figure, styled

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
    figure = blank_figure(9, 5, "Pre-training", "Loss on the training batches, and on text that is held out")
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

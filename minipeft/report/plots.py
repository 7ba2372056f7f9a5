"""The figures of a run, drawn from results.csv alone. The same file gives the same bytes of SVG.

Figures are made with matplotlib's objects, without pyplot; the style holds while they are drawn, and no longer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mode

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from minipeft.report.labels import Label, label_ends, label_points
from minipeft.report.language_plots import bits_vs_parameters
from minipeft.report.style import BLANK, GREY, INK, blank_figure, family_looks, ink, marker, save_figure, styled, tint
from minipeft.report.summary import MEMORY, Row, Summary, read_results, summarise

__all__ = ["FIGURES", "Row", "draw_all", "figures_of", "read_results", "styled"]


def draw_all(results_csv: str | os.PathLike[str], folder: str | os.PathLike[str]) -> list[Path]:
    """Draw every figure of `figures_of` into `folder` as NAME.png and NAME.svg; returns the paths.

    Raises:
        UserError: results.csv cannot be read (see `read_results`) or the folder cannot be written to.
    """
    cells = summarise(read_results(results_csv))
    paths = []
    with styled():
        for name, draw in figures_of(cells).items():
            figure = draw(cells)
            paths += save_figure(figure, Path(folder) / name)
    return paths


def accuracy_vs_parameters(cells: Sequence[Summary]) -> Figure:
    """Test accuracy against trainable parameters on a log axis: a curve a family, a point a setting."""
    shown = [cell for cell in cells if cell.mean["trainable_params"] > 0]  # a log axis has no zero
    figure = blank_figure(9, 5.6, "Accuracy against trainable parameters", f"Test set; {_seeds(cells, 'bars')}")
    axes = figure.add_subplot()
    looks = family_looks(cell.method for cell in cells)
    handles = []
    for method in dict.fromkeys(cell.method for cell in shown):
        family, look = [cell for cell in shown if cell.method == method], looks[method]
        for variant in dict.fromkeys(variant_of(cell) for cell in family):
            curve = [_point(cell) for cell in family if variant_of(cell) == variant]
            axes.plot(*zip(*curve, strict=True), color=look.colour, linestyle=look.line, linewidth=1.6, zorder=3)
        for cell in family:
            if cell.n > 1:
                sd = 100 * cell.sd["accuracy"]
                axes.errorbar(*_point(cell), sd, color=look.colour, capsize=3, elinewidth=1, zorder=3)
            axes.plot(*_point(cell), linestyle="none", **marker(look), zorder=4, clip_on=False)
        if any(cell.setting for cell in family):  # a family of one nameless setting is labelled at its point
            handles.append(Line2D([], [], linestyle=look.line, **marker(look), label=family[0].family))
    if handles:
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=5, handlelength=3.2)
    axes.set_xlabel("Trainable parameters, head included (log scale)")
    axes.set_ylabel("Test accuracy (%)")
    heads = [cell.mean["head_params"] for cell in shown if cell.method != "head"] or [0.0]
    _accuracy_axes(axes, shown, head := mode(heads))
    notes = [_head_line(axes, head)] if head else []
    labels = [
        Label(*_point(cell), cell.setting_label or cell.family, ink(looks[cell.method].colour))
        for cell in shown
        if (cell.method, cell.setting) != ("full", "")  # its line is labelled
    ]
    label_points(axes, labels, points=[_point(cell) for cell in shown], avoid=notes)
    return figure


def _accuracy_axes(axes: Axes, cells: Sequence[Summary], head: float) -> None:
    """Limits with room for every point, at least a decade by ten points of accuracy; the lines of full fine-tuning."""
    full = [100 * cell.mean["accuracy"] for cell in cells if cell.method == "full"][:1]
    xs = [cell.mean["trainable_params"] for cell in cells] + [head] * (head > 0) or [1.0]
    spread = [100 * cell.sd["accuracy"] if cell.n > 1 else 0.0 for cell in cells]
    ys = [_point(cell)[1] + sign * sd for cell, sd in zip(cells, spread, strict=True) for sign in (-1, 1)] or [50.0]
    ys += [share * level for level in full for share in (1, 0.9)]
    pad = max(1.35, (10 * min(xs) / max(xs)) ** 0.5)
    axes.set_xscale("log")
    axes.set_xlim(min(xs) / pad, max(xs) * pad)
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if max(xs) > 1000 * min(xs) else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    middle, height = (min(ys) + max(ys)) / 2, max(10.0, max(ys) - min(ys))
    bottom, top = middle - 0.64 * height, middle + 0.58 * height  # below: room for the note on the head
    axes.set_yticks([tick for tick in MaxNLocator(7).tick_values(bottom, top) if 0 <= tick <= 100])
    axes.set_ylim(bottom, top)
    for level in full:
        apart = level > height  # 10 % of it is over a tenth of the height: two notes of two lines fit
        for share, text, dashes, side in ((1, "Full fine-tuning", 6, "bottom"), (0.9, "90 % of full", 2, "top")):
            axes.axhline(share * level, color=GREY, linewidth=1, linestyle=(0, (dashes, 2)), zorder=2)
            note = axes.text(1.01, share * level, f"{text}\n{share * level:.1f} %", color=GREY, fontsize=9)
            note.set(transform=axes.get_yaxis_transform(), verticalalignment="center" if apart else side)


def _head_line(axes: Axes, head: float) -> Text:
    """A line at the parameters of the task head: most methods train it whole, so their points crowd to its right."""
    axes.axvline(head, color="#999999", linewidth=0.8, zorder=1)
    low, high = np.log(axes.get_xlim())
    left = np.log(head) < 0.3 * low + 0.7 * high  # there is room to the right of the line
    return axes.annotate(
        f"head alone: {_short(head)}",
        (head, 0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4 if left else -4, 4),
        textcoords="offset points",
        ha="left" if left else "right",
        color=GREY,
        fontsize=9,
        bbox=BLANK,
    )


def time_and_memory(cells: Sequence[Summary]) -> Figure:
    """Milliseconds a step, and the memory that training adds to the weights, a bar a cell."""
    note = f"One training step; {_seeds(cells)}"
    figure = blank_figure(10.5, 2.0 + 0.34 * len(cells), "Step time and training memory", note)
    left, right = figure.subplots(1, 2, sharey=True)
    _bars(left, cells, {"Step time": "step_ms"}, "Step time (ms)")
    cached = any(cell.mean["cache_mb"] for cell in cells)
    parts = {name: column for name, column in MEMORY.items() if cached or column != "cache_mb"}
    _bars(right, cells, parts, "Memory added to the weights (MB)")
    return figure


def flops(cells: Sequence[Summary]) -> Figure:
    """Forward and backward work of one step, a bar a cell."""
    figure = blank_figure(8, 2.0 + 0.34 * len(cells), "Work of one training step", "Forward and backward pass")
    axes = figure.add_subplot()
    _bars(axes, cells, {"Forward": "forward_gflop", "Backward": "backward_gflop"}, "GFLOP per step")
    return figure


def loss_curves(cells: Sequence[Summary]) -> Figure:
    """Training loss against step: a line a cell, the mean over its seeds with a band of one standard deviation."""
    shown = [cell for cell in cells if any(cell.curves)]
    note = _seeds(cells, "band").capitalize()
    figure = blank_figure(9, max(5.0, 1.6 + 0.2 * len(shown)), "Training loss at each step", note)
    axes = figure.add_subplot()
    looks = family_looks(cell.method for cell in cells)
    ends: list[Label] = []
    for cell in shown:
        steps, mean, sd = mean_curve(cell)
        look = looks[cell.method]
        settings = [c.setting for c in shown if c.method == cell.method]  # more parameters, stronger colour
        colour = tint(look.colour, 0.4 + 0.6 * (settings.index(cell.setting) + 1) / len(settings))
        axes.plot(steps, mean, color=colour, linestyle=look.line, linewidth=1.6)
        if cell.n > 1:
            axes.fill_between(steps, mean - sd, mean + sd, color=colour, alpha=0.15, linewidth=0)
        finite = np.flatnonzero(np.isfinite(mean))
        if len(finite):
            last = finite[-1]
            ends.append(Label(float(steps[last]), float(mean[last]), cell.label, ink(look.colour)))
    axes.set_xlabel("Step")
    axes.set_ylabel("Training loss (cross-entropy)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)
    starts = [curve[0][1] for cell in shown for curve in cell.curves if curve and np.isfinite(curve[0][1])]
    if starts and axes.get_ylim()[1] > 3 * max(starts) > 0:  # a diverged run would press the others flat: it is cut off
        axes.set_ylim(0, 2 * max(starts))
    label_ends(axes, ends)
    return figure


FIGURES: Mapping[str, Callable[[Sequence[Summary]], Figure]] = {
    "accuracy_vs_parameters": accuracy_vs_parameters,
    "time_and_memory": time_and_memory,
    "loss_curves": loss_curves,
    "flops": flops,
}


def figures_of(cells: Sequence[Summary]) -> Mapping[str, Callable[[Sequence[Summary]], Figure]]:
    """FIGURES; where the task is a text, bits per byte stand in the place of accuracy."""
    if not any(cell.of_text for cell in cells):
        return FIGURES
    others = {name: draw for name, draw in FIGURES.items() if draw is not accuracy_vs_parameters}
    return {"bits_vs_parameters": bits_vs_parameters, **others}


def _bars(axes: Axes, cells: Sequence[Summary], parts: Mapping[str, str], unit: str) -> None:
    """Horizontal bars, one a cell, stacked from the named measures; the total (and the parts) printed at the end."""
    looks = family_looks(cell.method for cell in cells)
    strengths = {1: (1.0,), 2: (1.0, 0.45), 3: (1.0, 0.6, 0.3), 4: (1.0, 0.7, 0.4, 0.2)}[len(parts)]
    longest = max(sum(cell.mean[name] for name in parts.values()) for cell in cells) or 1.0
    for place, cell in enumerate(cells):
        start = 0.0
        for strength, name in zip(strengths, parts.values(), strict=True):
            colour = tint(looks[cell.method].colour, strength)
            axes.barh(place, cell.mean[name], 0.68, left=start, color=colour, edgecolor="white", linewidth=0.6)
            start += cell.mean[name]
        text = _number(start)
        axes.annotate(
            text,
            (start, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=9,
            bbox=BLANK,
        )
    axes.set_yticks(range(len(cells)), [cell.label for cell in cells])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_xlim(0, 1.16 * longest)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(unit)
    if len(parts) > 1:
        patches = [
            Patch(color=tint(INK, strength), label=part) for strength, part in zip(strengths, parts, strict=True)
        ]
        axes.legend(
            handles=patches,
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=2 if len(parts) > 3 else 3,
            handlelength=1.2,
        )


def mean_curve(cell: Summary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean and standard deviation of the loss over seeds, on the steps of the shortest curve."""
    curves = [np.array(curve, float).T for curve in cell.curves if curve]
    steps = min(curves, key=lambda curve: curve[0, -1])[0]
    losses = np.array([np.interp(steps, *curve) for curve in curves])  # (seeds, steps)
    losses[~np.isfinite(losses)] = np.nan  # a diverged run: its line ends
    return steps, losses.mean(0), losses.std(0, ddof=1) if len(losses) > 1 else np.zeros(len(steps))


def variant_of(cell: Summary) -> str:
    """What follows the number in a setting ("8:dense" -> "dense"): a curve joins settings of one variant."""
    return cell.setting.partition(":")[2]


def _point(cell: Summary) -> tuple[float, float]:
    """Where a cell stands in the main figure: trainable parameters and accuracy in %."""
    return cell.mean["trainable_params"], 100 * cell.mean["accuracy"]


def _seeds(cells: Sequence[Summary], spread: str = "") -> str:
    """How many seeds the figure shows, and what its bars or band mean."""
    low, high = min(cell.n for cell in cells), max(cell.n for cell in cells)
    if high == 1:
        return "one seed"
    counts = f"{high}" if low == high else f"{low} to {high}"
    return f"mean of {counts} seeds" + (f", {spread}: ± one standard deviation" if spread else "")


def _short(value: float) -> str:
    """1000 -> "1k", 148610 -> "149k", 22700000 -> "22.7M"."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _number(value: float) -> str:
    """As many digits as a bar can tell apart: 0.12, 1.2, 12, 1,234."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"

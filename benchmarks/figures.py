"""The benchmarks' figures, in the style of the library's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.cases import SHAPES
from minipeft.files import atomic_path
from minipeft.report.style import GREY, INK, LIGHT, LOOKS, SPARE, marker, styled

PEER_LOOKS = {"torch": LOOKS["adapter"], "peft": LOOKS["topk"], "autograd": LOOKS["lora"], "mygrad": LOOKS["intrinsic"]}
SMALL = ("autograd", "mygrad")
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 3, 5, 10)


def ratio_figure(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Ours / peer, a panel a shape, a line a method; behind them the spread of ours against ours.

    The small engines are in a panel of their own, since its axis is another.
    """
    panels: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell in cells:
        small = cell["peer"] in SMALL
        panel, line = (
            ("small engines", f"{cell['shape']} {cell['method']}") if small else (cell["shape"], cell["method"])
        )
        panels.setdefault(panel, {}).setdefault(line, []).append(cell)
    if not panels:
        return
    panels |= {"small engines": panels.pop("small engines")} if "small engines" in panels else {}  # the last one
    with styled():
        heights = [0.8 + len(lines) for lines in panels.values()]
        figure = _figure(7.6, 1.5 + 0.35 * len(panels) + 0.42 * sum(heights), "Time of a training step, ours / peer")
        all_axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        large = [cell for cell in cells if cell["peer"] not in SMALL]
        for axes, (panel, lines) in zip(all_axes, panels.items(), strict=True):
            _ratios(axes, lines)
            shared = [cell for own in lines.values() for cell in own] if panel == "small engines" else large
            ends = [end for cell in shared for end in (*cell["ratio"], *cell["control"])]
            _ratio_axis(axes, min(ends) / 1.05, max(ends) * 1.05)
            about = SHAPES[panel].about if panel in SHAPES else ""
            axes.set_title(f"{panel}   {about}", loc="left", fontsize=10, color=GREY)
        all_axes[-1].set_xlabel("Below 1: ours is faster (log scale)")
        peers = [peer for peer in PEER_LOOKS if any(cell["peer"] == peer for cell in cells)]
        handles: list[Any] = [Line2D([], [], linestyle="none", **marker(PEER_LOOKS[p]), label=p) for p in peers]
        handles.append(Patch(color=LIGHT, label="ours / ours"))
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
        _save(figure, path)


def _ratios(axes: Any, lines: dict[str, list[dict[str, Any]]]) -> None:
    axes.axvline(1, color=INK, linewidth=1, zorder=2)
    for place, own in enumerate(lines.values()):
        _, low, high = own[0]["control"]
        axes.fill_betweenx([place - 0.32, place + 0.32], low, high, color=LIGHT, linewidth=0, zorder=1)
        for turn, cell in enumerate(own):
            middle, low, high = cell["ratio"]
            look = PEER_LOOKS.get(cell["peer"], SPARE[0])
            y = place + 0.3 * (turn - (len(own) - 1) / 2)
            bars = [[middle - low], [high - middle]]
            axes.errorbar(middle, y, xerr=bars, color=look.colour, capsize=3, elinewidth=1.2, zorder=3)
            axes.plot(middle, y, linestyle="none", **marker(look), zorder=4)
    axes.set_yticks(range(len(lines)), list(lines))
    axes.set_ylim(len(lines) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)


def _ratio_axis(axes: Any, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    if high > 6 * low:
        ticks = [tick for tick in ticks if tick not in (0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 1.25, 1.5, 3)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def scaling_figure(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Time, and memory, against what is changed, a column each; log-log. Dashed: the operations, and the activations."""
    what = list(dict.fromkeys(row["changed"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with styled():
        figure = _figure(2.7 * len(what) + 1.2, 6.4, "How a step grows")
        panels = figure.subplots(2, len(what), sharex="col", sharey="row", squeeze=False)
        for method in methods:
            look = LOOKS.get(method.split(":")[0], SPARE[0])
            rate = _rate([row for row in rows if row["method"] == method])
            for column, changed in enumerate(what):
                own = [row for row in rows if row["changed"] == changed and row["method"] == method]
                x = [row["value"] for row in own]
                above = ([row["step_ms"] for row in own], [rate * row["gflop"] for row in own])
                below = ([row["peak_mb"] for row in own], [row["activation_mb"] for row in own])
                for axes, (solid, dashed) in zip(panels[:, column], (above, below), strict=True):
                    axes.plot(x, dashed, color=look.colour, linewidth=1.2, linestyle=(0, (4, 2)), zorder=2)
                    axes.plot(x, solid, color=look.colour, linewidth=1.6, zorder=3)
                    axes.plot(x, solid, linestyle="none", **marker(look), zorder=4, clip_on=False)
        for column, changed in enumerate(what):
            for axes in panels[:, column]:
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_minor_locator(NullLocator())
                    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.xaxis.set_major_locator(
                    FixedLocator(sorted({row["value"] for row in rows if row["changed"] == changed}))
                )
            panels[1, column].set_xlabel(changed)
        panels[0, 0].set_ylabel("ms a step")
        panels[1, 0].set_ylabel("MB")
        handles: list[Any] = []
        for method in methods:
            look = LOOKS.get(method.split(":")[0], SPARE[0])
            handles.append(Line2D([], [], linestyle="-", **marker(look), label=method))
        note = "above: operations at one rate; below: what the tape holds"
        handles.append(Line2D([], [], color=GREY, linestyle=(0, (4, 2)), label=note))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=3)
        _save(figure, path)


def _rate(rows: Sequence[dict[str, Any]]) -> float:
    """Milliseconds a GFLOP: the geometric mean over a method's points."""
    return float(np.exp(np.mean([np.log(row["step_ms"] / row["gflop"]) for row in rows])))


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    return figure


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")

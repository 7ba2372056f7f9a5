"""What the figures of the studies have in common: curves with bars, and heat maps that read in greyscale too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from minipeft.report.studies.writing import Stat
from minipeft.report.style import INK, Look, marker

# From white over blue to nearly black: lightness falls all the way.
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#9ecae1", "#0072B2", "#08204a"])


def curve(
    axes: Axes, points: Mapping[float, Stat], look: Look, label: str, factor: float = 100, shift: float = 1.0
) -> None:
    """A line through the means, a bar of one standard deviation at each; `shift` parts curves on a log axis."""
    xs = [x * shift for x in points]
    ys = [factor * point.mean for point in points.values()]
    axes.plot(xs, ys, linestyle=look.line, linewidth=1.6, label=label, zorder=3, **marker(look))
    for x, point in zip(xs, points.values(), strict=True):
        if point.n > 1:
            axes.errorbar(x, factor * point.mean, factor * point.sd, color=look.colour, capsize=3, elinewidth=1)


def log_ticks(axes: Axes, ticks: Sequence[float], texts: Sequence[str] | None = None) -> None:
    """A log x-axis with a tick at each of the values that were tried."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    named = dict(zip(ticks, texts or [f"{tick:g}" for tick in ticks], strict=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: named.get(value, "")))


def heat_map(
    axes: Axes,
    values: Sequence[Sequence[float]],
    columns: Sequence[str],
    rows: Sequence[str],
    low: float,
    high: float,
    form: str | None = ".1f",
) -> None:
    """Values as shades, written into their cells unless `form` is None; NaN, and a name that is "", stay empty."""
    array = np.array(values, float)
    image = axes.imshow(array, cmap=HEAT, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    image.set_rasterized(True)
    axes.grid(visible=False)
    axes.set_xticks([place for place, text in enumerate(columns) if text], [text for text in columns if text])
    axes.set_yticks([place for place, text in enumerate(rows) if text], [text for text in rows if text])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if form is None:
        return
    for i, j in zip(*np.nonzero(np.isfinite(array)), strict=True):
        dark = array[i, j] > low + 0.55 * (high - low)
        axes.text(j, i, format(array[i, j], form), ha="center", va="center", color="white" if dark else INK, fontsize=9)


def legend(axes: Axes, columns: int = 4) -> None:
    """The names of the curves, in a line above the axes."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, names, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, handlelength=3.2)

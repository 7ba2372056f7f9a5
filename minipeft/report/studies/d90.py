"""The result of `minipeft study d90`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from minipeft.experiments.studies.d90 import best_model
from minipeft.report.studies.drawing import curve, legend, log_ticks
from minipeft.report.studies.writing import Result, Rows, Stat, group, markdown, seeds_text, stat
from minipeft.report.style import GREY, LOOKS, SPARE, Look, blank_figure

LOOK: list[Look] = [LOOKS["intrinsic"], LOOKS["topk"], LOOKS["adapter"], LOOKS["lora"], *SPARE]


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """d₉₀ of each model and variant, at the bar of the model's own full fine-tuning and at that of the best model."""
    models, variants = list(dict.fromkeys(row["model"] for row in rows)), _variants(rows)
    bars, share = _bars(rows, config["share"]), config["share"]
    best = best_model(bars)
    sentences, lines = [], []
    for model in models:
        full = stat([bar / share for (name, _), bar in bars.items() if name == model])
        bar = stat([bar for (name, _), bar in bars.items() if name == model])
        size, majority = next((row["D"], row["majority"]) for row in rows if row["model"] == model)
        sentences.append(
            f"{_short(model)}: {size:,} parameters outside the head; full fine-tuning reaches {full.percent} % of the "
            f"validation rows, so its bar is {bar.percent} %; the larger class alone makes {100 * majority:.1f} %."
            + (" That is no less than the bar, which says nothing then." if majority >= bar.mean else "")
        )
        for variant in variants:
            own = _search(rows, model, variant, {s: b for (m, s), b in bars.items() if m == model})
            if own:
                lines.append([_short(model), variant, _d90_text(own), _at_best(rows, model, variant, bars, share)])
    for variant in variants:
        found = {model: _at_best(rows, model, variant, bars, share) for model in models}
        texts = [f"{_short(model)} {text}" for model, text in found.items() if text]
        if texts:
            sentences.append(f"{variant}, dimensions to the bar of {_short(best)}: {'; '.join(texts)}.")
    heads = ["model", "variant", "d₉₀, own bar", f"d at the bar of {_short(best)}"]
    figures = {"d90": _figure(rows, models, variants, bars)}
    if len(models) > 2:
        figures["models"] = _by_model(rows, models, variants, bars, share)
    return Result(sentences, figures, [markdown(heads, lines)] if lines else [])


def _variants(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in rows if "variant" in row))


def _bars(rows: Rows, share: float) -> dict[tuple[str, int], float]:
    """(model, seed) -> the accuracy to reach: a share of full fine-tuning's, at the best of its rates."""
    best: dict[tuple[str, int], float] = {}
    for row in rows:
        if row["d"] is None and row["accuracy"] is not None:
            key = row["model"], row["seed"]
            best[key] = max(best.get(key, 0.0), row["accuracy"])
    return {key: share * accuracy for key, accuracy in best.items()}


def _search(rows: Rows, model: str, variant: str, bars: Mapping[int, float]) -> list[tuple[int | None, int]]:
    """For each seed the smallest d that reached the bar (None: none did), and the largest that was tried."""
    found: list[tuple[int | None, int]] = []
    for seed, bar in bars.items():
        tried = [r for r in rows if (r["model"], r.get("variant"), r["seed"]) == (model, variant, seed)]
        if tried:
            reached = [row["d"] for row in tried if (row["accuracy"] or 0.0) >= bar]
            found.append((min(reached, default=None), max(row["d"] for row in tried)))
    return found


def _at_best(rows: Rows, model: str, variant: str, bars: Mapping[tuple[str, int], float], share: float) -> str:
    """As `_d90_text`, at the bar of the best model; for the seeds whose full fine-tuning reaches it."""
    best = best_model(bars)
    wanted = {seed: bar for (name, seed), bar in bars.items() if name == best and (model, seed) in bars}
    within = {seed: bar for seed, bar in wanted.items() if bar <= bars[model, seed] / share}
    found = _search(rows, model, variant, within)
    short = len(wanted) - len(within)
    if not short:
        return _d90_text(found) if found else ""
    note = f"full fine-tuning falls short with {short} of {len(wanted)} seeds"
    return f"{_d90_text(found)}; {note}" if found else note


def _d90_text(found: list[tuple[int | None, int]]) -> str:
    """The geometric mean over seeds, and each seed's; "> d" where no d that was tried reached the bar."""
    texts = [f"> {largest:,}" if d is None else f"{d:,}" for d, largest in found]
    if len(found) == 1 or len(set(texts)) == 1:
        return texts[0] + (f" ({len(found)} seeds alike)" if len(found) > 1 else "")
    reached = [d for d, _ in found if d is not None]
    mean = f"{geometric_mean(reached):,.0f}" if len(reached) == len(found) else "?"
    return f"{mean} ({', '.join(texts)})"


def _short(model: str) -> str:
    """A name as it is; of a folder, its last two parts."""
    prefix, _, name = model.rpartition(":")
    return f"{prefix}{':' * bool(prefix)}{'/'.join(Path(name).parts[-2:])}"


def _figure(rows: Rows, models: list[str], variants: list[str], bars: Mapping[tuple[str, int], float]) -> Figure:
    best, width = best_model(bars), max(1, min(3, len(models)))
    height = -(-len(models) // width)
    note = (
        f"Best epoch on the validation rows; {seeds_text(rows)}. Searched by halving: not every d ran with every seed"
    )
    figure = blank_figure(3 + 3.6 * width, 1.4 + 3.6 * height, "Accuracy against the dimension of the subspace", note)
    panels = figure.subplots(height, width, squeeze=False, sharey=True).ravel()
    grid = sorted({row["d"] for row in rows if row["d"]})
    for axes, model in zip(panels, models, strict=False):
        for look, variant in zip(LOOK, variants, strict=False):
            own = [row for row in rows if row["model"] == model and row.get("variant") == variant]
            points: dict[int, Stat] = group(own, lambda row: row["d"])
            if points:
                curve(axes, {float(d): points[d] for d in sorted(points)}, look, variant)
        own_bars = [bar for (name, _), bar in bars.items() if name == model]
        if own_bars:
            _bar_line(axes, stat(own_bars).mean, "90 % of its full")
        if model != best:
            _bar_line(axes, stat([bar for (name, _), bar in bars.items() if name == best]).mean, "of the best's")
        if grid:
            log_ticks(axes, grid, [_tick(d) for d in grid])
            axes.set_xlim(grid[0] / 1.4, grid[-1] * 1.4)
        axes.set_title(_short(model), fontsize=10, loc="left")
        axes.set_xlabel("d (log scale)")
    for axes in panels[len(models) :]:
        axes.set_visible(False)
    panels[0].set_ylabel("Validation accuracy (%)")
    if variants:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=4, handlelength=3.2)
    return figure


def _by_model(
    rows: Rows, models: list[str], variants: list[str], bars: Mapping[tuple[str, int], float], share: float
) -> Figure:
    """d at the bar of the best model, against the models in the order that they were given in."""
    best = best_model(bars)
    note = f"To 90 % of what full fine-tuning of {_short(best)} reaches; geometric mean of {seeds_text(rows)}"
    figure = blank_figure(9, 5.2, "The dimension that is needed, model by model", note)
    axes = figure.add_subplot()
    for look, variant in zip(LOOK, variants, strict=False):
        points: dict[float, Stat] = {}
        for place, model in enumerate(models):
            wanted = {s: bar for (m, s), bar in bars.items() if m == best and bar <= bars.get((model, s), 0.0) / share}
            reached = [d for d, _ in _search(rows, model, variant, wanted)]
            if reached and None not in reached:
                points[float(place)] = Stat(geometric_mean([d for d in reached if d is not None]), 0.0, 1)
        curve(axes, points, look, variant, factor=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator(sorted({row["d"] for row in rows if row["d"]})))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.set_xticks(range(len(models)), [_short(model).replace("/", "\n") for model in models])
    axes.set_ylabel("d (log scale)")
    legend(axes)
    return figure


def _bar_line(axes: Axes, level: float, text: str) -> None:
    axes.axhline(100 * level, color=GREY, linewidth=1, linestyle=(0, (6, 2)), zorder=1)
    axes.annotate(
        text, (0.99, 100 * level), xycoords=axes.get_yaxis_transform(), ha="right", va="bottom", color=GREY, fontsize=8
    )


def _tick(d: int) -> str:
    """Only the powers of ten are written."""
    digits = str(d)
    return f"{d:,}" if digits.strip("0") == "1" else ""

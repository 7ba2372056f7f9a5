"""The result of `minipeft study d90`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minipeft.experiments.studies.bases import RANDOM
from minipeft.experiments.studies.dimension import bar_model, best_model
from minipeft.report.studies.dimension import (
    LOOK,
    MARKS,
    Dimensions,
    dimension_axis,
    draw_needed,
    fewer_text,
    needed_text,
    short_name,
    stats_of,
)
from minipeft.report.studies.drawing import curve, log_ticks
from minipeft.report.studies.writing import Result, Rows, Stat, group, markdown, seeds_text, stat
from minipeft.report.style import GREY, blank_figure

NOTES = [
    "d₉₀ is the smallest d of the grid that reaches the bar: ≤ d where the smallest that was tried does, > d where the "
    "largest does not, 0 where the classifier alone does. Of several seeds the middle one comes first, then all.",
    "A bar is a share of the accuracy of full fine-tuning with the same seed, at the best of its learning rates; a "
    "subspace reaches it when it does at one of its rates.",
]


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """d₉₀ of each model and variant, at the bars of the model itself, of the best, and of its shape with random weights."""
    found = Dimensions(rows, config)
    of = ", ".join(map(short_name, found.models))
    if not found.full:
        return Result(["Full fine-tuning has diverged everywhere: there is no bar to reach."], of=of)
    sentences = [_model_text(found, model) for model in found.models if stats_of(found.full, model)]
    best = best_model(found.full)
    for variant in found.variants:
        for model in found.models:
            sentences += _fall(found, model, variant)
        texts = [f"{short_name(m)} {text}" for m in found.models if (text := found.text(m, variant, "best"))]
        if len(texts) > 2:
            sentences.append(f"{variant}, dimensions to the bar of {short_name(best)}: {'; '.join(texts)}.")
    heads = ["model", "variant", *(_bar_name(bar, best) for bar in config["bars"])]
    lines = [
        [
            short_name(model),
            variant,
            *(_cell(found, model, variant, bar) for bar in config["bars"]),
        ]
        for model in found.models
        for variant in found.variants
        if any(found.needed(model, variant, bar) for bar in config["bars"])
    ]
    figures = {"d90": _curves(rows, found), "models": _by_model(rows, found)}
    return Result(sentences, figures, [markdown(heads, lines)] if lines else [], NOTES, of)


def _model_text(found: Dimensions, model: str) -> str:
    full, head = stats_of(found.full, model), stats_of(found.head, model)
    assert full is not None
    bar = stat(found.bars(model, "own").values())
    size, majority = next((row["D"], row["majority"]) for row in found.all if row["model"] == model)
    text = (
        f"{short_name(model)}: {size:,} parameters outside the head; full fine-tuning reaches {full.percent} % of the "
        f"validation rows, so its bar is {bar.percent} %; "
    )
    if head is not None:
        text += f"the classifier alone reaches {head.percent} %, "
    text += f"the larger class alone makes {100 * majority:.1f} %."
    reached = [seed for seed, level in found.bars(model, "own").items() if found.head.get((model, seed), 0) >= level]
    if reached:
        text += f" The classifier alone is enough with {len(reached)} of {full.n}: d₉₀ is 0 there."
    return text + (" That is no less than the bar, which says nothing then." if majority >= bar.mean else "")


def _fall(found: Dimensions, model: str, variant: str) -> list[str]:
    """Whether pre-training makes d fall: a trained model against its shape with random weights, at each bar in common."""
    twin = bar_model(model, "random", found.full)
    if model.startswith(RANDOM) or twin is None:
        return []
    searched = [row["what"] for row in found.rows if row["model"] == twin]
    if variant not in (searched or found.variants[:1]):
        return []  # models with random weights are not searched in every variant
    sentences = []
    for bar in dict.fromkeys((best_model(found.full), twin)):
        which = "random" if bar == twin else "best"
        a, b = found.needed(model, variant, which), found.needed(twin, variant, which)
        level = stat(found.bars(model, which).values())
        text = f"{variant}, at the bar of {short_name(bar)} ({level.percent} %): "
        short = {name: found.short(name, which) for name in (model, twin)}
        for name, seeds in short.items():
            full = stats_of(found.full, name)
            if seeds and full is not None:
                text += (
                    f"with {seeds} of {level.n} seeds it cannot be compared, because full fine-tuning of "
                    f"{short_name(name)} does not reach it ({full.percent} %). "
                )
        if compared := fewer_text(a, b):
            text += f"{short_name(model)} needs {needed_text(a)}, {short_name(twin)} {needed_text(b)}: {compared}."
        elif not any(short.values()):
            continue  # the search has not come so far
        sentences.append(text.rstrip())
    return sentences


def _cell(found: Dimensions, model: str, variant: str, bar: str) -> str:
    return found.text(model, variant, bar) if bar == "own" or bar_model(model, bar, found.full) != model else "its own"


def _bar_name(bar: str, best: str) -> str:
    return {"own": "d₉₀, own bar", "best": f"d at the bar of {short_name(best)}"}.get(
        bar, "d at the bar of random weights"
    )


def _curves(rows: Rows, found: Dimensions) -> Figure:
    best, models = best_model(found.full), found.models
    width = max(1, min(3, len(models)))
    height = -(-len(models) // width)
    note = (
        f"Best epoch on the validation rows; {seeds_text(rows)}. Searched by halving: not every d ran with every seed"
    )
    figure = blank_figure(3 + 3.6 * width, 1.4 + 3.6 * height, "Accuracy against the dimension of the subspace", note)
    panels = figure.subplots(height, width, squeeze=False, sharey=True).ravel()
    grid = sorted({row["d"] for row in found.rows})
    for axes, model in zip(panels, models, strict=False):
        for look, variant in zip(LOOK, found.variants, strict=False):
            own = [row for row in found.rows if (row["model"], row["what"]) == (model, variant)]
            points: dict[int, Stat] = group(own, lambda row: row["d"])
            if points:
                curve(axes, {float(d): points[d] for d in sorted(points)}, look, variant)
        for name, level in (("90 % of its full", found.bars(model, "own")), ("of the best's", found.bars(best, "own"))):
            if level and (model != best or name != "of the best's"):
                _level(axes, stat(level.values()).mean, name.replace("90", f"{100 * found.share:g}"))
        if (head := stats_of(found.head, model)) is not None:
            _level(axes, head.mean, "the classifier alone")
        if grid:
            log_ticks(axes, grid, [_tick(d) for d in grid])
            axes.set_xlim(grid[0] / 1.4, grid[-1] * 1.4)
        axes.set_title(short_name(model), fontsize=10, loc="left")
        axes.set_xlabel("d (log scale)")
    for axes in panels[len(models) :]:
        axes.set_visible(False)
    panels[0].set_ylabel("Validation accuracy (%)")
    if any(names := panels[0].get_legend_handles_labels()):
        figure.legend(*names, loc="outside lower left", ncols=4, handlelength=3.2)
    return figure


def _by_model(rows: Rows, found: Dimensions) -> Figure:
    """d of every model, a panel for each bar."""
    bars, models, best = found.config["bars"], found.models, best_model(found.full)
    grid = found.config["grid"]
    zero = grid[0] / 3
    figure = blank_figure(2 + 3.4 * len(bars), 5.2, "The dimension that is needed, model by model", MARKS)
    panels = figure.subplots(1, len(bars), squeeze=False, sharey=True)[0]
    for axes, bar in zip(panels, bars, strict=True):
        for place, (look, variant) in enumerate(zip(LOOK, found.variants, strict=False)):
            points = {float(x): found.needed(model, variant, bar) for x, model in enumerate(models)}
            aside = {x + 0.08 * place: by_seed for x, by_seed in points.items() if by_seed}
            draw_needed(axes, aside, look, variant, zero, 1.0)
        dimension_axis(axes, grid, zero)
        axes.set_ylabel("")
        axes.set_xlim(-0.4, len(models) - 0.4)
        axes.set_xticks(
            range(len(models)), [short_name(model).replace("/", "\n").replace(":", ":\n") for model in models]
        )
        axes.set_title(_bar_name(bar, best), fontsize=10, loc="left")
    panels[0].set_ylabel("d (log scale)")
    if any(names := panels[0].get_legend_handles_labels()):
        figure.legend(*names, loc="outside lower left", ncols=4, handlelength=3.2)
    return figure


def _level(axes: Axes, level: float, text: str) -> None:
    axes.axhline(100 * level, color=GREY, linewidth=1, linestyle=(0, (6, 2)), zorder=1)
    axes.annotate(
        text, (0.99, 100 * level), xycoords=axes.get_yaxis_transform(), ha="right", va="bottom", color=GREY, fontsize=8
    )


def _tick(d: int) -> str:
    """Only the powers of ten are written."""
    digits = str(d)
    return f"{d:,}" if digits.strip("0") == "1" else ""

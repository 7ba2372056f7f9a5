"""The result of `minipeft study growth`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from minipeft.experiments.studies.bases import RANDOM
from minipeft.experiments.studies.dimension import best_model
from minipeft.report.studies.d90 import NOTES
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
from minipeft.report.studies.drawing import legend, log_ticks
from minipeft.report.studies.writing import Result, Rows, markdown, stat
from minipeft.report.style import LOOKS, Look, blank_figure

BAR_LOOK: dict[str, Look] = dict(zip(("best", "random", "own"), LOOK, strict=False))


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """d along the states of one model's pre-training, and by size, at each bar."""
    made = {row["model"]: row for row in rows if "kept" in row}
    found = Dimensions(rows, config)
    sizes = ", ".join(f"{short_name(name)} ({row['parameters'] / 1e6:.2g} M parameters)" for name, row in made.items())
    of = f"Llamas pre-trained on {config['corpus']}, {sizes}"
    sentences = [
        f"{short_name(name)} was pre-trained for {row['steps']:,} steps, to a loss of {row['held_out_loss']:.2f} nats a "
        f"token of the held-out text; full fine-tuning reaches {_percent(found, name)} % of the validation rows, and "
        f"{_percent(found, RANDOM + name)} % from random weights."
        for name, row in made.items()
    ]
    if not found.full:
        return Result(sentences, of=of)
    variant, line = found.variants[0], config["model"]
    states = _states(made, line)
    for bar in config["bars"]:
        texts = [f"step {step:,}: {text}" for step, name in states.items() if (text := found.text(name, variant, bar))]
        if texts:
            sentences.append(
                f"{short_name(line)} as pre-training goes on, at {_bar(found, line, bar)}: {'; '.join(texts)}."
            )
        by_step = {step: needed for step, name in states.items() if (needed := found.needed(name, variant, bar))}
        if len(by_step) > 1:
            first, last = min(by_step), max(by_step)
            sentences.append(
                f"Step {last:,}, against step {first:,}, the first that reaches this bar: "
                f"{fewer_text(by_step[last], by_step[first]) or 'no seed in common'}."
            )
    for bar in ("own", "best"):
        by_size = {name: needed for name in made if (needed := found.needed(name, variant, bar))}
        if len(by_size) > 1:
            small, *_, large = by_size
            texts = [f"{short_name(name)} {needed_text(needed)}" for name, needed in by_size.items()]
            sentences.append(
                f"By size after pre-training, at {_bar(found, small, bar)}: {'; '.join(texts)}. {short_name(large)} "
                f"against {short_name(small)}: {fewer_text(by_size[large], by_size[small]) or 'no seed in common'}."
            )
    heads = ["model", "full %", "classifier alone %", *(f"d, {_bar(found, '', bar)}" for bar in config["bars"])]
    table = [
        [
            short_name(model),
            _percent(found, model),
            _percent(found, model, head=True),
            *(found.text(model, variant, bar) for bar in config["bars"]),
        ]
        for model in found.models
    ]
    return Result(sentences, {"growth": _figure(found, made, states, variant)}, [markdown(heads, table)], NOTES, of)


def _states(made: Mapping[str, Mapping[str, Any]], line: str) -> dict[int, str]:
    """Step -> the model's name as it was then; at step 0, with random weights."""
    if line not in made:
        return {}
    row = made[line]
    return {0: RANDOM + line, **{step: f"{line}@{step}" for step in row["kept"]}, row["steps"]: line}


def _percent(found: Dimensions, model: str, head: bool = False) -> str:
    found_stat = stats_of(found.head if head else found.full, model)
    return "?" if found_stat is None else found_stat.percent


def _bar(found: Dimensions, model: str, bar: str) -> str:
    """The bar by name, with its height where it is the same for all states of a model."""
    if bar == "own":
        return f"{100 * found.share:g} % of its own full fine-tuning"
    name = short_name(best_model(found.full)) if bar == "best" else "random weights"
    levels = found.bars(model, bar) if model else {}
    return f"the bar of {name}" + (f" ({stat(levels.values()).percent} %)" if levels else "")


def _figure(
    found: Dimensions, made: Mapping[str, Mapping[str, Any]], states: Mapping[int, str], variant: str
) -> Figure:
    figure = blank_figure(11, 5.4, "The dimension that is needed, as pre-training goes on and by size", MARKS)
    left, right = figure.subplots(1, 2, sharey=True)
    grid = found.config["grid"]
    zero = grid[0] / 3
    steps = [step for step in states if step]
    start = min(steps, default=1) / 2  # the place of step 0 on a log axis
    for place, (bar, look) in enumerate(BAR_LOOK.items()):
        if bar not in found.config["bars"]:
            continue
        shift, label = 1.04 ** (place - 1), _bar(found, "", bar)
        draw_needed(
            left, _points(found, {s or start: m for s, m in states.items()}, variant, bar), look, label, zero, shift
        )
        if bar == "random":
            continue  # another height for each size
        by_size = {float(row["parameters"]): name for name, row in made.items()}
        draw_needed(right, _points(found, by_size, variant, bar), look, f"pre-trained, {label}", zero, shift)
        if bar == "own":
            fresh = {size: RANDOM + name for size, name in by_size.items()}
            draw_needed(
                right, _points(found, fresh, variant, bar), LOOKS["head"], f"random weights, {label}", zero, shift
            )
    log_ticks(left, [start, *steps], ["0", *(f"{step:,}" for step in steps)])
    sizes = [float(row["parameters"]) for row in made.values()]
    log_ticks(right, sizes, [f"{size / 1e6:.2g} M" for size in sizes])
    left.set_xlabel(f"Steps of pre-training (log scale), {short_name(found.config['model'])}")
    right.set_xlabel("Parameters of the model (log scale)")
    for axes in (left, right):
        dimension_axis(axes, grid, zero)
        legend(axes, 1)
    right.set_ylabel("")
    return figure


def _points(found: Dimensions, models: Mapping[float, str], variant: str, bar: str) -> dict[float, Any]:
    needed = {x: found.needed(model, variant, bar) for x, model in models.items()}
    return {float(x): by_seed for x, by_seed in needed.items() if by_seed}

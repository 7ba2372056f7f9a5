"""The result of `minipeft study topk`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from minipeft.report.studies.drawing import curve
from minipeft.report.studies.writing import (
    Result,
    Rows,
    Stat,
    bars_text,
    group,
    markdown,
    name,
    paired,
    title,
    verdict,
    within_a_point,
)
from minipeft.report.style import GREY, LOOKS, blank_figure, tint

MEMORY = {
    "Activations": "activation_mb",
    "Gradients": "gradient_mb",
    "Optimizer": "optimizer_mb",
    "Cached activations": "cache_mb",
}
STRENGTHS = (1.0, 0.7, 0.45, 0.2)
NOTES = [
    "What enters the lowest block that is trained is computed once for each training row and kept: the time of a step is "
    "that of training on these cached activations, without the time of filling the cache; the cache counts as memory."
]


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """Accuracy, time and memory for each K."""
    accuracy, time = group(rows, name), group(rows, name, "step_ms")
    memory = {part: group(rows, name, column) for part, column in MEMORY.items()}
    settings = [setting for setting in accuracy if setting.startswith("topk:")]
    total = {setting: sum(part[setting].mean for part in memory.values()) for setting in accuracy}
    sentences = []
    if "full" in accuracy and settings:
        gaps = {s: gap for s in settings if (gap := paired(rows, name, s, "full")) is not None}
        near = next((s for s in settings if within_a_point(rows, s)), None)
        least = (
            f"The smallest K that is not more than a point below it is {near.split(':')[1]}: it "
            f"{within_a_point(rows, near)}."
            if near
            else "Every K is more than a point below it."
        )
        sentences.append(f"Full fine-tuning reaches {accuracy['full'].percent} %. {least}")
        ends = {settings[0]: "the head alone", settings[-1]: "all blocks without the embeddings"}
        sentences += [
            f"{title(s)}, {text}, is {gaps[s].points} points from it ({verdict(gaps[s])})."
            for s, text in ends.items()
            if s in gaps
        ]
        one = settings[min(1, len(settings) - 1)]
        sentences.append(
            f"A step of {title(one)} on cached activations takes {time[one].mean / time['full'].mean:.0%} of full's time, "
            f"and training adds {total[one] / total['full']:.0%} of the memory that full adds to the weights, "
            f"{memory['Cached activations'][one].mean:,.1f} MB of it the cache."
        )
    table = markdown(
        ["method", "learning rate", "trainable", "accuracy %", "step ms", *(f"{part.lower()} MB" for part in MEMORY)],
        [
            [
                title(setting),
                f"{group(rows, name, 'lr')[setting].mean:g}",
                f"{group(rows, name, 'trainable_params')[setting].mean:,.0f}",
                accuracy[setting].percent,
                time[setting].text(0),
                *(f"{part[setting].mean:,.1f}" for part in memory.values()),
            ]
            for setting in accuracy
        ],
    )
    return Result(sentences, {"topk": _figure(rows, accuracy, time, memory)}, [table], NOTES)


def _figure(
    rows: Rows, accuracy: Mapping[str, Stat], time: Mapping[str, Stat], memory: Mapping[str, Mapping[str, Stat]]
) -> Figure:
    figure = blank_figure(11, 4.6, "Training the top K blocks alone", f"Test set; {bars_text(rows)}")
    left, middle, right = figure.subplots(1, 3)
    places = {setting: float(place) for place, setting in enumerate(accuracy)}
    labels = ["full" if setting == "full" else setting.split(":")[1] for setting in accuracy]
    blocks = {places[s]: s for s in accuracy if s.startswith("topk:")}
    for axes, values, factor in ((left, accuracy, 100.0), (middle, time, 1.0)):
        curve(axes, {x: values[s] for x, s in blocks.items()}, LOOKS["topk"], "Top-K", factor)
        if "full" in accuracy:
            curve(axes, {places["full"]: values["full"]}, LOOKS["full"], "Full", factor)
            axes.axhline(factor * values["full"].mean, color=GREY, linewidth=1, linestyle=(0, (6, 2)), zorder=1)
    middle.set_ylim(0)
    for setting, x in places.items():
        base, colour = 0.0, LOOKS["full" if setting == "full" else "topk"].colour
        for strength, part in zip(STRENGTHS, memory.values(), strict=True):
            right.bar(x, part[setting].mean, 0.7, base, color=tint(colour, strength), edgecolor="white", linewidth=0.6)
            base += part[setting].mean
    patches = [Patch(color=tint("#222222", s), label=part) for s, part in zip(STRENGTHS, memory, strict=True)]
    right.legend(handles=patches, loc="upper left", handlelength=1.2)
    right.margins(y=0.45)  # room for it
    for axes, text in (
        (left, "Test accuracy (%)"),
        (middle, "Time of a step, cached (ms)"),
        (right, "Memory added (MB)"),
    ):
        axes.set_xticks(list(places.values()), labels)
        axes.set_xlabel("K, blocks trained")
        axes.set_ylabel(text)
        axes.grid(visible=False, axis="x")
    return figure

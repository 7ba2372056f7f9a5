"""The result of `minipeft study topk`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from minipeft.report.studies.drawing import curve
from minipeft.report.studies.writing import Result, Rows, Stat, bars_text, group, markdown, name, paired, title, verdict
from minipeft.report.style import GREY, LOOKS, blank_figure, tint

MEMORY = {"Activations": "activation_mb", "Gradients": "gradient_mb", "Optimizer": "optimizer_mb"}


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """Accuracy, time and memory for each K."""
    accuracy, time = group(rows, name), group(rows, name, "step_ms")
    memory = {part: group(rows, name, column) for part, column in MEMORY.items()}
    settings = [setting for setting in accuracy if setting.startswith("topk:")]
    total = {setting: sum(part[setting].mean for part in memory.values()) for setting in accuracy}
    sentences = []
    if "full" in accuracy and settings:
        gaps = {s: gap for s in settings if (gap := paired(rows, name, s, "full")) is not None}
        near = [s for s, gap in gaps.items() if gap.mean > -0.01]
        least = (
            f"The smallest K within one point of it is {near[0].split(':')[1]}." if near else "No K is within a point."
        )
        sentences.append(f"Full fine-tuning reaches {accuracy['full'].percent} %. {least}")
        first, last = settings[0], settings[-1]
        sentences.append(
            f"The head alone (K = 0) is {gaps[first].points} points from it ({verdict(gaps[first])}); all blocks without "
            f"the embeddings (K = {last.split(':')[1]}) {gaps[last].points} points ({verdict(gaps[last])})."
        )
        one = settings[min(1, len(settings) - 1)]
        sentences.append(
            f"A step of {title(one)} takes {time[one].mean / time['full'].mean:.0%} of full's time, and training adds "
            f"{total[one] / total['full']:.0%} of the memory that full adds to the weights."
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
    return Result(sentences, {"topk": _figure(rows, accuracy, time, memory)}, [table])


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
        for strength, part in zip((1.0, 0.6, 0.3), memory.values(), strict=True):
            right.bar(x, part[setting].mean, 0.7, base, color=tint(colour, strength), edgecolor="white", linewidth=0.6)
            base += part[setting].mean
    patches = [Patch(color=tint("#222222", s), label=part) for s, part in zip((1.0, 0.6, 0.3), memory, strict=True)]
    right.legend(handles=patches, loc="upper left", handlelength=1.2)
    for axes, text in ((left, "Test accuracy (%)"), (middle, "Time of a step (ms)"), (right, "Memory added (MB)")):
        axes.set_xticks(list(places.values()), labels)
        axes.set_xlabel("K, blocks trained")
        axes.set_ylabel(text)
        axes.grid(visible=False, axis="x")
    return figure

"""The result of `minipeft study forgetting`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from minipeft.experiments.studies.frame import OWN
from minipeft.report.labels import Label, label_points
from minipeft.report.studies.writing import (
    Result,
    Rows,
    bars_text,
    group,
    markdown,
    name,
    paired,
    title,
    within_a_point,
)
from minipeft.report.style import blank_figure, family_looks, ink, marker

NOTES = [
    "The old text is read by the fine-tuned body with the language head from before (a tied one is the word table as it is "
    "now). MiniLM has no part in this: its file holds no head for masked words, so no loss on its old text is known."
]


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """The loss on the pre-training text before and after, and the accuracy that it was given up for."""
    own, of = config["corpus"] == OWN, _model_text(rows, config)
    before = next((row for row in rows if row["cell"] == "before"), None)
    if before is None:
        return Result(["Nothing has been measured yet."], of=of)
    trained = [
        {**row, "forgot": None if row.get("loss") is None else row["loss"] - before["loss"]}
        for row in rows
        if "method" in row
    ]
    text = "text that the model wrote" if own else f"the held-out part of {config['corpus']}"
    sentences = [
        f"Before fine-tuning the loss on {before['tokens']:,} tokens of {text} is {before['loss']:.3f} nats a token "
        f"(perplexity {math.exp(before['loss']):,.1f})."
        + (" What is added is the divergence of the model before from the one after, KL a token." if own else "")
    ]
    accuracy, forgot = group(trained, name), group(trained, name, "forgot")
    if not forgot:
        return Result(sentences, notes=NOTES, of=of)
    order = sorted(forgot, key=lambda method: forgot[method].mean)
    for method, word in ((order[-1], "Most"), (order[0], "Least")):
        gaps = {m: paired(trained, name, method, m, "forgot") for m in order if m != method}
        near = [title(m) for m, gap in gaps.items() if gap is None or not gap.differs]
        alike = f", which cannot be told apart from {', '.join(near)}" if near and forgot[method].n > 1 else ""
        sentences.append(
            f"{word} is forgotten by {title(method)}: {forgot[method].text(3, 1, '+')} nats a token{alike}."
        )
    for method in order:
        if method != "full" and "full" in forgot and (where := within_a_point(trained, method)):
            sentences.append(
                f"{title(method)} {where} ({accuracy[method].percent} against {accuracy['full'].percent} %) and forgets "
                f"{forgot[method].text(3, 1, '+')} against {forgot['full'].text(3, 1, '+')}."
            )
    sentences += _switched_off(trained, before["loss"])
    heads = ["method", "learning rate", "trainable", "accuracy %", "loss after", "forgotten, nats a token"]
    rate = group(trained, name, "lr")
    trainable, loss = group(trained, name, "trainable_params"), group(trained, name, "loss")
    table = [
        [
            title(m),
            f"{rate[m].mean:g}",
            f"{trainable[m].mean:,.0f}",
            accuracy[m].percent,
            loss[m].text(3),
            forgot[m].text(3, 1, "+"),
        ]
        for m in forgot
    ]
    return Result(sentences, {"forgetting": _figure(trained)}, [markdown(heads, table)], NOTES, of)


def _model_text(rows: Rows, config: Mapping[str, Any]) -> str:
    made = next((row for row in rows if "kept" in row), None)
    if made is None:
        return str(config["model"])
    size, loss = made["parameters"] / 1e6, made["held_out_loss"]
    return (
        f"a Llama of {size:.2g} M parameters, pre-trained on {config['corpus']} for {made['steps']:,} steps (held-out loss "
        f"{loss:.3f})"
    )


def _switched_off(trained: Rows, before: float) -> list[str]:
    """What was found with the methods switched off that can be."""
    off = [row for row in trained if row.get("loss_off") is not None]
    if not off:
        return []
    furthest = max(abs(row["loss_off"] - before) for row in off)
    found = "is the one from before to all six decimals" if furthest == 0 else f"is {furthest:.6f} from before at most"
    names = ", ".join(dict.fromkeys(title(name(row)) for row in off))
    return [f"With the method switched off, where it can be ({names}), the loss {found}, in {len(off)} cells."]


def _figure(trained: Rows) -> Figure:
    accuracy, forgot = group(trained, name), group(trained, name, "forgot")
    figure = blank_figure(9, 5.4, "What is learnt and what is forgotten", f"{bars_text(trained).capitalize()}")
    axes = figure.add_subplot()
    looks = family_looks(method.split(":")[0] for method in accuracy)
    labels, points = [], []
    for method, y in forgot.items():
        x, look = accuracy[method], looks[method.split(":")[0]]
        if x.n > 1:
            axes.errorbar(100 * x.mean, y.mean, y.sd, 100 * x.sd, color=look.colour, capsize=3, elinewidth=1)
        axes.plot(100 * x.mean, y.mean, linestyle="none", **marker(look))
        points.append((100 * x.mean, y.mean))
        labels.append(Label(*points[-1], title(method), ink(look.colour)))
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.margins(0.12)
    axes.set_xlabel("Test accuracy of the new task (%)")
    axes.set_ylabel("Loss added on the old text (nats a token)")
    label_points(axes, labels, points, [])
    return figure

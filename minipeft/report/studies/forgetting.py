"""The result of `minipeft study forgetting`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from minipeft.experiments.studies.forgetting import OWN
from minipeft.report.labels import Label, label_points
from minipeft.report.studies.writing import Result, Rows, bars_text, group, markdown, name, title
from minipeft.report.style import blank_figure, family_looks, ink, marker


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """The loss on the pre-training text before and after, and the accuracy that it was given up for."""
    before = next(row for row in rows if row["cell"] == "before")
    trained = [{**row, "forgot": row["loss"] - before["loss"]} for row in rows if "method" in row]
    own = config["corpus"] == OWN
    text = "text that the model wrote" if own else f"the held-out part of {config['corpus']}"
    sentences = [
        f"Before fine-tuning the loss on {before['tokens']:,} tokens of {text} is {before['loss']:.3f} nats a token "
        f"(perplexity {math.exp(before['loss']):,.1f})."
        + (" What is added is the divergence of the model before from the one after, KL a token." if own else "")
    ]
    if not trained:
        return Result(sentences)
    accuracy, forgot = group(trained, name), group(trained, name, "forgot")
    order = sorted(forgot, key=lambda method: forgot[method].mean)
    sentences.append(
        f"Most is forgotten by {title(order[-1])}: {forgot[order[-1]].text(3, 1, '+')} nats a token; "
        f"least by {title(order[0])}: {forgot[order[0]].text(3, 1, '+')}."
    )
    if "full" in accuracy:
        near = [m for m in order if m != "full" and accuracy[m].mean > accuracy["full"].mean - 0.01]
        for method in near:
            sentences.append(
                f"{title(method)} is within a point of full fine-tuning ({accuracy[method].percent} against "
                f"{accuracy['full'].percent} %) and forgets {forgot[method].text(3, 1, '+')} against "
                f"{forgot['full'].text(3, 1, '+')}."
            )
    sentences.append(
        "LoRA, adapters and a subspace can be switched off: then the loss is the one from before, exactly."
    )
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
        for m in accuracy
    ]
    return Result(sentences, {"forgetting": _figure(trained)}, [markdown(heads, table)])


def _figure(trained: Rows) -> Figure:
    accuracy, forgot = group(trained, name), group(trained, name, "forgot")
    figure = blank_figure(9, 5.4, "What is learnt and what is forgotten", f"{bars_text(trained).capitalize()}")
    axes = figure.add_subplot()
    looks = family_looks(method.split(":")[0] for method in accuracy)
    labels, points = [], []
    for method, x in accuracy.items():
        y, look = forgot[method], looks[method.split(":")[0]]
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

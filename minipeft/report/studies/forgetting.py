"""The result of `minipeft study forgetting`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

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

LINEAR = 0.01  # below it the axis is linear, and has a place for 0
NOTES = [
    "The old text is read by the fine-tuned body with the language head from before (a tied one is the word table as it is "
    "now). MiniLM has no part in this: its file holds no head for masked words, so no loss on its old text is known."
]


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """The loss on the pre-training text before and after, and the accuracy that it was given up for."""
    of = _model_text(rows, config)
    before = next((row for row in rows if row["cell"] == "before"), None)
    if before is None:
        return Result(["Nothing has been measured yet."], of=of)
    trained = [
        {**row, "forgot": None if row.get("loss") is None else row["loss"] - before["loss"]}
        for row in rows
        if "method" in row
    ]
    sentences, own = [_before(before, config)], [row for row in trained if row["own_rate"]]
    accuracy, forgot = group(own, name), group(own, name, "forgot")
    if not forgot:
        return Result(sentences, notes=NOTES, of=of)
    order = sorted(forgot, key=lambda method: forgot[method].mean)
    for method, word in ((order[-1], "most"), (order[0], "least")):
        gaps = {m: paired(own, name, method, m, "forgot") for m in order if m != method}
        near = [title(m) for m, gap in gaps.items() if gap is None or not gap.differs]
        alike = f", which cannot be told apart from {', '.join(near)}" if near and forgot[method].n > 1 else ""
        sentences.append(
            f"With each method at its own learning rate, {word} is forgotten by {title(method)}: "
            f"{forgot[method].text(3, 1, '+')} nats a token{alike}."
        )
    for method in order:
        if method != "full" and "full" in forgot and (where := within_a_point(own, method)):
            sentences.append(
                f"{title(method)} {where} ({accuracy[method].percent} against {accuracy['full'].percent} %) and forgets "
                f"{forgot[method].text(3, 1, '+')} against {forgot['full'].text(3, 1, '+')}."
            )
    sentences += [*_of_the_rate(trained, order), *_switched_off(trained, before["loss"])]
    heads = ["method", "learning rate", "trainable", "accuracy %", "loss after", "forgotten, nats a token"]
    rate = group(own, name, "lr")
    trainable, loss = group(own, name, "trainable_params"), group(own, name, "loss")
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
    tables = [markdown(heads, table), _by_rate(trained)]
    return Result(sentences, {"forgetting": _figure(trained)}, tables, NOTES, of)


def _before(before: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    own = config["corpus"] == OWN
    text = "text that the model wrote" if own else f"the held-out part of {config['corpus']}"
    return (
        f"Before fine-tuning the loss on {before['tokens']:,} tokens of {text} is {before['loss']:.3f} nats a token "
        f"(perplexity {math.exp(before['loss']):,.1f})."
    ) + (" What is added is the divergence of the model before from the one after, KL a token." if own else "")


def _cell(row: Mapping[str, Any]) -> tuple[str, float]:
    return name(row), row["lr"]


def _of_the_rate(trained: Rows, methods: Sequence[str]) -> list[str]:
    """What each forgets at the same rate: the lowest, and the highest, of those that are some method's own."""
    forgot = group(trained, _cell, "forgot")
    moved = [m for m in methods if any(forgot[cell].mean for cell in forgot if cell[0] == m)]  # not so the head alone
    own = sorted({row["lr"] for row in trained if row["own_rate"] and name(row) in moved})
    rates = [lr for lr in own if all((m, lr) in forgot for m in moved)]
    if len(rates) < 2:
        return []
    parts = []
    for lr in (rates[0], rates[-1]):
        least, most = (pick(moved, key=lambda m: forgot[m, lr].mean) for pick in (min, max))
        texts = [f"{forgot[m, lr].text(3, 1, '+')} ({title(m)})" for m in (least, most)]
        parts.append(f"at {lr:g} from {' to '.join(texts)}")
    return [f"What is added, at the same learning rate for every method that moves the body: {'; '.join(parts)}."]


def _by_rate(trained: Rows) -> str:
    accuracy, forgot = group(trained, _cell), group(trained, _cell, "forgot")
    rates = sorted({lr for _, lr in accuracy})
    heads = ["accuracy % / forgotten, at a learning rate of", *(f"{lr:g}" for lr in rates)]
    text = lambda cell: f"{100 * accuracy[cell].mean:.1f} / {forgot[cell].mean:+.3f}" if cell in forgot else "diverged"
    methods = dict.fromkeys(m for m, _ in accuracy)
    return markdown(heads, [[title(m), *(text((m, lr)) for lr in rates)] for m in methods])


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
    accuracy, forgot = group(trained, _cell), group(trained, _cell, "forgot")
    below = f"Lines: a method's learning rates, to the one above its own, which is large; {bars_text(trained)}"
    figure = blank_figure(9, 5.8, "What is learnt and what is forgotten", below)
    axes = figure.add_subplot()
    methods = list(dict.fromkeys(m for m, _ in forgot))
    looks = family_looks(m.split(":")[0] for m in methods)
    own = {name(row): row["lr"] for row in trained if row["own_rate"]}
    labels: list[Label] = []
    points: list[tuple[float, float]] = []
    for m in methods:
        look = looks[m.split(":")[0]]
        rates = sorted(lr for method, lr in forgot if method == m)
        shown = rates[: 2 + sum(lr < own[m] for lr in rates)]  # to the first that is too high
        places = {lr: (100 * accuracy[m, lr].mean, forgot[m, lr].mean) for lr in shown}
        points += places.values()
        axes.plot(*zip(*places.values(), strict=True), color=look.colour, linewidth=1, alpha=0.6)
        small = {**marker(look), "markersize": 0.55 * marker(look)["markersize"]}
        axes.plot(*zip(*places.values(), strict=True), linestyle="none", **small)
        if (lr := own[m]) in places:
            x, y = accuracy[m, lr], forgot[m, lr]
            if x.n > 1:
                axes.errorbar(100 * x.mean, y.mean, y.sd, 100 * x.sd, color=look.colour, capsize=3, elinewidth=1)
            axes.plot(*places[lr], linestyle="none", zorder=4, **marker(look))
            labels.append(Label(*places[lr], title(m), ink(look.colour)))
    axes.set_yscale("symlog", linthresh=LINEAR)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.margins(0.06)
    axes.set_xlabel("Test accuracy of the new task (%)")
    axes.set_ylabel(f"Loss added on the old text (nats a token; linear below {LINEAR:g})")
    label_points(axes, labels, points, [])
    return figure

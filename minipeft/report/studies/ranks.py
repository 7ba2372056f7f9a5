"""The result of `minipeft study ranks`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from minipeft.experiments.studies.ranks import at_budget
from minipeft.report.studies.drawing import curve, legend, log_ticks
from minipeft.report.studies.writing import Result, Rows, Stat, bars_text, best_text, group, markdown, paired, verdict
from minipeft.report.style import LOOKS, SPARE, Look, blank_figure, marker

Choice = tuple[str, int]  # the matrices, the rank


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """Table 5: which matrices at a fixed budget; table 6: which rank."""
    accuracy, parameters = group(rows, _choice), group(rows, _choice, "method_params")
    budget = [choice for choice in at_budget(config["budget"]) if choice in accuracy]
    sentences: list[str] = []
    if budget:
        sentences.append(f"At the budget, {best_text(rows, _choice, budget, _text)}.")
    both = {name: choice for choice in budget if (name := choice[0]) in ("qk", "qv")}
    if len(both) == 2:
        gap = paired(rows, _choice, both["qv"], both["qk"])
        if gap is not None:
            better = "query and value" if gap.mean > 0 else "query and key"
            found = f"the better pair here is {better}" if gap.differs else "the two cannot be told apart here"
            sentences.append(
                f"Query and value against query and key: {gap.points} points ({verdict(gap)}); {found}. The lecture says "
                "query and key, the paper's table 5 query and value."
            )
    for targets in config["targets"]:
        ranks = sorted(r for name, r in accuracy if name == targets and r in config["ranks"])
        if len(ranks) > 1:
            best = best_text(rows, _choice, [(targets, r) for r in ranks], lambda choice: f"rank {choice[1]}")
            gap = paired(rows, _choice, (targets, ranks[0]), (targets, ranks[-1]))
            ends = f" Rank {ranks[0]} is {gap.points} points from rank {ranks[-1]} ({verdict(gap)})." if gap else ""
            sentences.append(f"On {targets}, {best}.{ends}")
    lrs = group(rows, _choice, "lr")
    heads = ["matrices", "rank", "learning rate", "LoRA parameters", "accuracy %"]
    table = [
        [targets, str(r), f"{lrs[targets, r].mean:g}", f"{parameters[targets, r].mean:,.0f}", point.percent]
        for (targets, r), point in sorted(accuracy.items(), key=lambda item: item[0])
    ]
    figures = {}
    if budget:
        figures["targets"] = _targets(rows, {choice: accuracy[choice] for choice in budget}, parameters)
    figures["ranks"] = _ranks(rows, accuracy, config)
    return Result(sentences, figures, [markdown(heads, table)])


def _choice(row: Mapping[str, Any]) -> Choice:
    return row["targets"], row["rank"]


def _text(choice: Choice) -> str:
    return f"{choice[0]} at rank {choice[1]}"


def _targets(rows: Rows, accuracy: Mapping[Choice, Stat], parameters: Mapping[Choice, Stat]) -> Figure:
    figure = blank_figure(8.5, 4.8, "LoRA on which matrices, at one budget", f"Test set; {bars_text(rows)}")
    axes = figure.add_subplot()
    for place, point in enumerate(accuracy.values()):
        if point.n > 1:
            axes.errorbar(
                place, 100 * point.mean, 100 * point.sd, color=LOOKS["lora"].colour, capsize=4, elinewidth=1.2
            )
        axes.plot(place, 100 * point.mean, linestyle="none", **marker(LOOKS["lora"]))
    labels = [f"{name}\nr = {r}\n{parameters[name, r].mean / 1e3:,.0f}k" for name, r in accuracy]
    axes.set_xticks(range(len(labels)), labels)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("Matrices of every block, the rank, and the parameters of LoRA")
    axes.set_ylabel("Test accuracy (%)")
    return figure


def _ranks(rows: Rows, accuracy: Mapping[Choice, Stat], config: Mapping[str, Any]) -> Figure:
    figure = blank_figure(8.5, 4.8, "LoRA of which rank", f"Test set; {bars_text(rows)}")
    axes = figure.add_subplot()
    looks: list[Look] = [LOOKS["topk"], LOOKS["lora"], LOOKS["adapter"], *SPARE]
    for place, (look, targets) in enumerate(zip(looks, config["targets"], strict=False)):
        points = {float(r): accuracy[targets, r] for r in sorted(config["ranks"]) if (targets, r) in accuracy}
        if points:
            curve(axes, points, look, targets, shift=1.04**place)
    log_ticks(axes, sorted(config["ranks"]))
    axes.set_xlabel("Rank r (log scale)")
    axes.set_ylabel("Test accuracy (%)")
    legend(axes)
    return figure

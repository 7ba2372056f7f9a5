"""The result of `minipeft study subspaces`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from minipeft.report.studies.drawing import curve, heat_map, legend
from minipeft.report.studies.writing import Result, Rows, Stat, bars_text, group, markdown, seeds_text, stat, title
from minipeft.report.style import LOOKS, SPARE, Look, blank_figure

LOOK: list[Look] = [LOOKS["topk"], LOOKS["lora"], LOOKS["adapter"], LOOKS["intrinsic"], LOOKS["full"], *SPARE]
SIDES = {"A": "A, what is read", "B": "B, what is written"}
NORMS = ("change", "along_change", "along_own", "along_random")
ENERGY = 0.9


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """φ, the amplification factor, and the rank of full fine-tuning's change."""
    small, large = config["small"], config["large"]
    rows = [row for row in rows if "phi_ranks" in row]  # without the seeds with which a training diverged
    ranks, starts = _grids(rows, "phi_ranks"), _grids(rows, "phi_starts")
    sentences = [_trained(rows)]
    for side, text in SIDES.items():
        for kind in ranks[side]:
            top = stat([np.array(row["phi_ranks"][side][kind])[0, 0] for row in rows])
            whole = stat([np.array(row["phi_ranks"][side][kind])[-1, -1] for row in rows])
            width = rows[0]["shapes"][kind][side == "B"]  # A's directions are of W's inputs, B's of its outputs
            sentences.append(
                f"{kind}, {text}: the first direction of rank {small} and that of rank {large} have φ(1, 1) = "
                f"{top.text(2)}; all {small} in all {large}: {whole.text(2)}. Random ones in {width} dimensions have about "
                f"{1 / width:.3f} and {min(1, large / width):.2f}."
            )
    factors = _factors(rows)
    for (rank, kind), by_layer in factors.items():
        name = f"LoRA of rank {rank}" if rank else f"full fine-tuning (its top {small} directions)"
        sentences.append(
            f"{kind}: the change of {name} is {_over_seeds(rows, rank, kind, 'factor').text(1)} times what W does in the "
            f"same directions (mean over the blocks, which have {min(v.mean for v in by_layer.values()):,.1f} to "
            f"{max(v.mean for v in by_layer.values()):,.1f})."
        )
    for kind in ranks["A"]:
        along, own, noise = (_over_seeds(rows, small, kind, norm).mean for norm in NORMS[1:])
        sentences.append(
            f"{kind}: along the directions of rank {small}'s change, W has {along / noise:.1f} times what it has along "
            f"random ones, and {along / own:.0%} of what it has along its own top {small}."
        )
    needed = _needed(rows)
    share = {name: count.mean / len(rows[0]["spectra"][name]["change"]) for name, count in needed["change"].items()}
    whole, before = (_mean_share(rows, which) for which in ("change", "before"))
    sentences.append(
        f"Full fine-tuning's ΔW has {ENERGY:.0%} of its squared norm in {whole.percent} % of its singular values (mean "
        f"over the matrices, which have {min(share.values()):.0%} to {max(share.values()):.0%}); W itself in "
        f"{100 * before.mean:.1f} %."
    )
    figures = {
        "phi_ranks": _phi(ranks, f"φ of ranks {small} and {large}", f"i, of rank {small}", f"j, of rank {large}", rows),
        "phi_starts": _phi(starts, f"φ of rank {large} from two starts", "i, first start", "j, second start", rows),
        "amplification": _amplification(factors, rows, small),
        "spectrum": _spectrum(rows, needed["change"]),
    }
    table = [
        [name, needed["change"][name].text(0), needed["before"][name].text(0), str(len(s["change"]))]
        for name, s in rows[0]["spectra"].items()
    ]
    heads = ["matrix", f"singular values for {ENERGY:.0%} of ΔW", f"for {ENERGY:.0%} of W", "of"]
    return Result(sentences, figures, [_factor_table(rows, small), markdown(heads, table)])


def _trained(rows: Rows) -> str:
    """What was trained, at which learning rate, and how accurate it is."""
    runs = [{"method": method, "lr": lr, "accuracy": score} for row in rows for method, lr, score in row["runs"]]
    accuracy = group(runs, lambda run: (run["method"], run["lr"]))
    texts = [f"{title(method)} at {lr:g} ({score.percent} %)" for (method, lr), score in accuracy.items()]
    return f"Trained, each at its own learning rate: {', '.join(texts)}."


def _grids(rows: Rows, name: str) -> dict[str, dict[str, np.ndarray]]:
    """side -> kind of matrix -> φ, mean over seeds."""
    kinds = rows[0][name]["A"]
    return {side: {kind: np.mean([row[name][side][kind] for row in rows], axis=0) for kind in kinds} for side in SIDES}


def _factors(rows: Rows) -> dict[tuple[int, str], dict[int, Stat]]:
    """(rank, kind of matrix) -> block -> the amplification factor."""
    values: dict[tuple[int, str], dict[int, list[float]]] = {}
    for row in rows:
        for entry in row["amplification"]:
            _, block, kind = entry["layer"].split(".")
            values.setdefault((entry["rank"], kind), {}).setdefault(int(block), []).append(entry["factor"])
    return {key: {block: stat(xs) for block, xs in blocks.items()} for key, blocks in values.items()}


def _over_seeds(rows: Rows, rank: int, kind: str, value: str) -> Stat:
    """The factor or one of NORMS: of each seed the mean over the blocks."""
    by_seed = ([e for e in row["amplification"] if e["rank"] == rank and e["layer"].endswith(kind)] for row in rows)
    return stat([float(np.mean([entry[value] for entry in entries])) for entries in by_seed])


def _factor_table(rows: Rows, small: int) -> str:
    """The four norms of table 7, mean over blocks and seeds."""
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        for entry in row["amplification"]:
            groups.setdefault((entry["rank"], entry["layer"].split(".")[2]), []).append(entry)
    heads = ["change", "‖ΔW‖", "‖UᵀWV‖ along ΔW", "along W's own", "along random ones"]
    lines = []
    for (rank, kind), entries in groups.items():
        means = [stat([entry[norm] for entry in entries]).mean for norm in NORMS]
        name = f"LoRA r={rank}" if rank else f"full, top {small}"
        lines.append([f"{name}, {kind}", *(f"{value:.3f}" for value in means)])
    return markdown(heads, lines)


def _needed(rows: Rows) -> dict[str, dict[str, Stat]]:
    """Of ΔW ("change") and W ("before"): matrix -> the number of singular values with 90 % of the squared norm."""
    names = list(rows[0]["spectra"])
    return {
        which: {name: stat([_count(row["spectra"][name][which]) for row in rows]) for name in names}
        for which in ("change", "before")
    }


def _mean_share(rows: Rows, which: str) -> Stat:
    """Of each seed the share of the singular values with 90 % of the squared norm, mean over the matrices."""
    spectra = ([entry[which] for entry in row["spectra"].values()] for row in rows)
    return stat([float(np.mean([_count(values) / len(values) for values in own])) for own in spectra])


def _count(singular_values: list[float]) -> float:
    energy = np.cumsum(np.square(singular_values))
    return float(np.searchsorted(energy, ENERGY * energy[-1]) + 1)


def _phi(grids: dict[str, dict[str, np.ndarray]], title: str, down: str, across: str, rows: Rows) -> Figure:
    note = f"Shared part of the spans of the first i and j singular directions; mean over blocks and {seeds_text(rows)}"
    figure = blank_figure(10, 5.6, title, note)
    kinds = list(grids["A"])
    panels = figure.subplots(len(kinds), 2, squeeze=False)
    for line, kind in zip(panels, kinds, strict=True):
        for axes, (side, text) in zip(line, SIDES.items(), strict=True):
            grid = grids[side][kind]
            m, n = grid.shape
            step = max(1, n // 16)
            columns = [str(j) if (j - 1) % step == 0 else "" for j in range(1, n + 1)]
            names = [str(i) if (i - 1) % max(1, m // 8) == 0 else "" for i in range(1, m + 1)]
            heat_map(axes, grid.tolist(), columns, names, 0, 1, None)
            axes.set_title(f"{kind}: {text}", fontsize=10, loc="left")
            axes.set_ylabel(down)
            axes.set_xlabel(across)
    figure.colorbar(panels[0, 0].images[0], ax=panels, label="φ(i, j)", shrink=0.8)
    return figure


def _amplification(factors: Mapping[tuple[int, str], Mapping[int, Stat]], rows: Rows, small: int) -> Figure:
    note = f"‖ΔW‖ over ‖UᵀWV‖, U and V the top directions of ΔW; {bars_text(rows)}"
    figure = blank_figure(9, 5.2, "How much the change amplifies W along its own directions", note)
    axes = figure.add_subplot()
    for look, ((rank, kind), blocks) in zip(LOOK, factors.items(), strict=False):
        label = f"{kind}, r = {rank}" if rank else f"{kind}, full's top {small}"
        curve(axes, {float(block): value for block, value in blocks.items()}, look, label, factor=1)
    axes.axhline(1, color="#999999", linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    numbers = sorted({block for by_block in factors.values() for block in by_block})
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set_xlabel("Block")
    axes.set_ylabel("Amplification factor (log scale)")
    legend(axes, 3)
    return figure


def _spectrum(rows: Rows, needed: Mapping[str, Stat]) -> Figure:
    note = f"Mean over {seeds_text(rows)}; left: mean over the blocks too, over the largest; dotted: W itself"
    figure = blank_figure(11, 5, "The singular values of full fine-tuning's change", note)
    left, right = figure.subplots(1, 2)
    names = list(rows[0]["spectra"])
    kinds = list(dict.fromkeys(name.split(".")[2] for name in names))
    blocks = sorted({int(name.split(".")[1]) for name in names})
    for look, kind in zip(LOOK, kinds, strict=False):
        for which, line, width in (("change", look.line, 1.8), ("before", ":", 0.9)):
            curves = [row["spectra"][f"blocks.{b}.{kind}"][which] for row in rows for b in blocks]
            mean = np.mean([np.array(s) / s[0] for s in curves], axis=0)
            label = kind if which == "change" else None
            left.plot(
                np.arange(1, len(mean) + 1), mean, color=look.colour, linestyle=line, linewidth=width, label=label
            )
    left.set_xscale("log")
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("Number of the singular value (log scale)")
    left.set_ylabel("Singular value / largest")
    left.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, handlelength=2.4)
    values = [[needed[f"blocks.{b}.{kind}"].mean for b in blocks] for kind in kinds]
    heat_map(right, values, [str(b) for b in blocks], kinds, 0, float(np.max(values)), ".0f")
    right.set_xlabel("Block")
    right.set_title(f"Singular values with {ENERGY:.0%} of the squared norm", fontsize=10, loc="left")
    return figure

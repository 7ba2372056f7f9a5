"""What d90 and growth have in common: the smallest d of each model, variant, seed and bar, read off the rows, and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from minipeft.experiments.studies.bases import MADE
from minipeft.experiments.studies.dimension import FULL, HEAD, Variant, bar_model, best_of
from minipeft.report.studies.writing import Rows, Stat, ratio_text, stat
from minipeft.report.style import GREY, LOOKS, SPARE, Look, marker

MARKS = (
    "Small marks are seeds, lines their middle; ▽ so many or fewer, △ more than tried, none where full fine-tuning misses "
    "the bar"
)
LOOK: list[Look] = [
    LOOKS["topk"],
    LOOKS["adapter"],
    LOOKS["lora"],
    *(look for look in SPARE if look.marker not in "v<>"),
]


@dataclass(frozen=True)
class Needed:
    """The smallest d that reaches a bar with one seed.

    Attributes:
        d: 0 where the classifier alone reaches the bar, None where no d that was tried does.
        least: no smaller d was tried, so that it may be fewer.
        most: the largest d that was tried.
    """

    d: int | None
    least: bool = False
    most: int = 0

    def __str__(self) -> str:
        return f"> {self.most:,}" if self.d is None else f"{'≤ ' * self.least}{self.d:,}"

    @property
    def order(self) -> float:
        """What it is sorted by."""
        return math.inf if self.d is None else self.d


BySeed = Mapping[int, Needed]


class Dimensions:
    """The finished rows of a search.

    Attributes:
        full, head: (model, seed) -> the accuracy of full fine-tuning, and of the classifier alone.
        models: in the order of the plan.
        variants: of the plan, as in "fastfood DID".
        rows: of the subspaces; of each d and seed the one at the best of its learning rates.
    """

    def __init__(self, rows: Rows, config: Mapping[str, Any]) -> None:
        self.share, self.config = config["share"], config
        self.full, self.head = best_of(rows, FULL), best_of(rows, HEAD)
        self.models = list(dict.fromkeys(row["model"] for row in rows if "what" in row))
        self.all = [row for row in rows if "what" in row]
        subspaces = [row for row in self.all if row["d"] is not None]
        self.variants = [Variant(projection, said).name for projection, said in config["variants"]]
        best: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        for row in sorted(subspaces, key=lambda row: row["accuracy"] or 0.0):
            best[(*_key(row), row["d"])] = row
        self.rows = list(best.values())

    def bars(self, model: str, bar: str) -> dict[int, float]:
        """Seed -> the accuracy to reach at the bar "own", "best" or "random"."""
        name = bar_model(model, bar, self.full)
        return {seed: self.share * score for (known, seed), score in self.full.items() if known == name}

    def short(self, model: str, bar: str) -> int:
        """With how many seeds full fine-tuning does not reach the bar."""
        return sum(self.full.get((model, seed), 0.0) < level for seed, level in self.bars(model, bar).items())

    def needed(self, model: str, variant: str, bar: str) -> dict[int, Needed]:
        """Seed -> d; without the seeds whose full fine-tuning does not reach the bar, or that were not searched yet."""
        found = {}
        for seed, level in self.bars(model, bar).items():
            if self.full.get((model, seed), 0.0) < level:
                continue
            tried = {r["d"]: r["accuracy"] or 0.0 for r in self.rows if _key(r) == (model, variant, seed)}
            reached = min((d for d, accuracy in tried.items() if accuracy >= level), default=None)
            if self.head.get((model, seed), 0.0) >= level:
                found[seed] = Needed(0)
            elif tried:
                least = reached is not None and min(tried) == reached
                found[seed] = Needed(reached, least, max(tried))
        return found

    def text(self, model: str, variant: str, bar: str) -> str:
        """The d of the middle seed and of all, and what cannot be compared."""
        found, short, of = self.needed(model, variant, bar), self.short(model, bar), len(self.bars(model, bar))
        parts = [needed_text(found)] if found else []
        if short:
            parts.append(f"full fine-tuning falls short with {short} of {of} seed{'s' * (of != 1)}")
        return "; ".join(parts)


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["model"], row["what"], row["seed"]


def middle(found: BySeed) -> Needed:
    """Of the seed in the middle; of an even number, the lower one."""
    return sorted(found.values(), key=lambda needed: needed.order)[(len(found) - 1) // 2]


def needed_text(found: BySeed) -> str:
    """As in "200 (100, 200, > 20,000)": the middle one, then those of all seeds."""
    texts = [str(needed) for needed in found.values()]
    if len(set(texts)) == 1:
        return texts[0] + (f" ({len(texts)} seeds alike)" if len(texts) > 1 else "")
    return f"{middle(found)} ({', '.join(texts)})"


def fewer_text(a: BySeed, b: BySeed) -> str:
    """With how many seeds a needs fewer dimensions than b, and b / a over those where both are known exactly.

    "" when no seed has both.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return ""
    fewer = sum(a[seed].order < b[seed].order for seed in seeds)
    more = sum(a[seed].order > b[seed].order for seed in seeds)
    counts = ((fewer, "fewer"), (len(seeds) - fewer - more, "as many"), (more, "more"))
    text = ", ".join(f"{word} with {n}" for n, word in counts if n) + f" of {len(seeds)} seed{'s' * (len(seeds) != 1)}"
    exact = [seed for seed in seeds if all((one := by[seed]).d and not one.least for by in (a, b))]
    logs = [math.log((b[seed].d or 1) / (a[seed].d or 1)) for seed in exact]
    return text + (f", by a factor of {ratio_text(stat(logs))}" if logs else "")


def short_name(model: str) -> str:
    """A name as it is, "tiny, step 120" for made:tiny@120; of a folder, its last two parts."""
    prefix, _, name = model.rpartition(":")
    prefix = f"{prefix}:".replace(MADE, "") if prefix else ""
    return prefix + "/".join(Path(name).parts[-2:]).replace("@", ", step ")


def stats_of(scores: Mapping[tuple[str, int], float], model: str) -> Stat | None:
    """Of the accuracies by (model, seed), those of one model."""
    own = [score for (name, _), score in scores.items() if name == model]
    return stat(own) if own else None


def draw_needed(axes: Axes, points: Mapping[float, BySeed], look: Look, label: str, zero: float, shift: float) -> None:
    """A line through the middle seeds, and every seed as a small mark; `zero` is the place of 0 on a log axis.

    ▽ stands for "so many or fewer", △ for "more than were tried".
    """
    xs, ys = [], []
    for x, found in points.items():
        for needed in found.values():
            sign = "^" if needed.d is None else "v" if needed.least else "."
            y = needed.most if needed.d is None else needed.d or zero
            axes.plot(x * shift, y, sign, color=look.colour, fillstyle="none", markersize=6, alpha=0.8, zorder=2)
        if found and (centre := middle(found)).d is not None:
            xs.append(x * shift)
            ys.append(centre.d or zero)
    axes.plot(xs, ys, linestyle=look.line, linewidth=1.6, label=label, zorder=3, **marker(look))


def dimension_axis(axes: Axes, grid: Sequence[int], zero: float) -> None:
    """A log y-axis with ticks at the grid's d and at 0."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([zero, *grid]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: "0" if value == zero else f"{value:,.10g}")
    axes.set_ylim(zero / 1.5, grid[-1] * 1.8)
    axes.axhline((zero * grid[0]) ** 0.5, color=GREY, linewidth=0.6, linestyle=(0, (1, 3)))
    axes.set_ylabel("d (log scale)")

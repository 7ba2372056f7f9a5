"""What the results of all studies are written with: cells grouped over seeds, numbers with their spread, tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any, TypeVar

from matplotlib.figure import Figure

from minipeft.report.summary import FAMILIES, family_name

Rows = Sequence[Mapping[str, Any]]
K = TypeVar("K")


# The 97.5 % quantile of Student's t for 1, 2, ... degrees of freedom; beyond these the normal distribution's is near.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL_QUANTILE = 1.960


@dataclass(frozen=True)
class Result:
    """What a study says.

    Attributes:
        sentences: that answer its question.
        figures: by name.
        tables: Markdown.
        notes: what a reader must know to read the numbers.
        of: the models, where they are not the one of the settings.
    """

    sentences: list[str]
    figures: dict[str, Figure] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    of: str = ""


@dataclass(frozen=True)
class Stat:
    """A number over `n` seeds; `sd` is the sample standard deviation, nan for one seed."""

    mean: float
    sd: float
    n: int

    def text(self, decimals: int = 1, factor: float = 1.0, sign: str = "") -> str:
        """The mean and ± its spread, "84.3 ± 0.5"; the mean alone for one seed."""
        value = f"{factor * self.mean:{sign},.{decimals}f}"
        return f"{value} ± {factor * self.sd:,.{decimals}f}" if self.n > 1 else value

    @property
    def percent(self) -> str:
        """A fraction in percent."""
        return self.text(1, 100)

    @property
    def error(self) -> float:
        """Half the 95 % interval of the mean over seeds, t · sd / √n; infinite for one seed."""
        if self.n < 2:
            return math.inf
        t = T_QUANTILES[self.n - 2] if self.n - 2 < len(T_QUANTILES) else NORMAL_QUANTILE
        return t * self.sd / math.sqrt(self.n)

    @property
    def differs(self) -> bool:
        """Whether it is another number than 0, beyond the error."""
        return abs(self.mean) > self.error

    @property
    def points(self) -> str:
        """A difference of fractions in percentage points, with its sign."""
        return self.text(1, 100, "+")


def stat(values: Iterable[float]) -> Stat:
    """Mean and spread of a number's values, a value a seed."""
    xs = list(values)
    return Stat(mean(xs), stdev(xs) if len(xs) > 1 else math.nan, len(xs))


def group(rows: Rows, key: Callable[[Mapping[str, Any]], K], value: str = "accuracy") -> dict[K, Stat]:
    """Group rows by `key`, in the order of their first, and average `value` over each; None (diverged) is left out."""
    groups: dict[K, list[float]] = {}
    for row in rows:
        if row.get(value) is not None:
            groups.setdefault(key(row), []).append(row[value])
    return {name: stat(values) for name, values in groups.items()}


def paired(rows: Rows, key: Callable[[Mapping[str, Any]], K], a: K, b: K, value: str = "accuracy") -> Stat | None:
    """The value at `a` minus that at `b`, seed by seed; None when no seed has both."""
    by = {(key(row), row["seed"]): row[value] for row in rows if row.get(value) is not None}
    seeds = sorted({seed for name, seed in by if name == a} & {seed for name, seed in by if name == b})
    return stat([by[a, seed] - by[b, seed] for seed in seeds]) if seeds else None


def verdict(difference: Stat) -> str:
    """What a paired difference over seeds says."""
    if difference.n < 2:
        return "one seed: no spread is known"
    return "beyond the error" if difference.differs else "within the error"


def best_text(rows: Rows, key: Callable[[Mapping[str, Any]], K], among: Iterable[K], text: Callable[[K], str]) -> str:
    """Who is the most accurate: a winner only if it is ahead of each of the others, seed by seed, beyond the error.

    As in "qv is the best with 84.3 ± 0.5 %, beyond the error". What diverged with a seed is none of them, unless all did.
    """
    accuracy, diverged = group(rows, key), {key(row) for row in rows if row["accuracy"] is None}
    known = [k for k in among if k in accuracy]
    steady = [k for k in known if k not in diverged]
    first, *others = sorted(steady or known, key=lambda k: -accuracy[k].mean)
    ahead = {k: paired(rows, key, first, k) for k in others}
    near = [k for k, gap in ahead.items() if gap is None or not gap.differs]
    score = f"{accuracy[first].percent} %"
    if not near:
        return f"{text(first)} is the best with {score}" + (", beyond the error" if others else "")
    if accuracy[first].n == 1:
        return f"{text(first)} has the highest accuracy, {score} (one seed: no spread is known)"
    names = "any other" if len(near) == len(others) > 1 else ", ".join(text(k) for k in near)
    return f"{text(first)} has the highest mean, {score}, and cannot be told apart from {names}"


def within_a_point(rows: Rows, method: str) -> str:
    """How a method's accuracy stands to full fine-tuning's, if it is at most one point below; "" if it is further."""
    gap = paired(rows, name, method, "full")
    if gap is None or gap.mean < -0.01:
        return ""
    if gap.mean <= 0.01:
        return "is within a point of full fine-tuning"
    return f"is {gap.points} points from full fine-tuning ({verdict(gap)})"


def ratio_text(logs: Stat) -> str:
    """Of the logarithms of a ratio: the geometric mean, and the interval of 95 % where the seeds differ."""
    middle = f"{math.exp(logs.mean):.3g}"
    if logs.n < 2 or logs.sd < 1e-9:  # on a grid, seeds are often alike
        return middle
    low, high = math.exp(logs.mean - logs.error), math.exp(logs.mean + logs.error)
    return f"{middle} (95 %: {low:.3g} to {high:.3g})"


def name(row: Mapping[str, Any]) -> str:
    """The method of a row as the command line writes it."""
    return f"{row['method']}:{row['setting']}" if row["setting"] else str(row["method"])


def title(method: str) -> str:
    """A method for a reader: "LoRA r=8" for lora:8."""
    family, _, setting = method.partition(":")
    symbol = FAMILIES.get(family, ("", ""))[1]
    return f"{family_name(family)} {symbol}{'=' * bool(symbol)}{setting.replace(':', ', ')}".rstrip()


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def seeds_text(rows: Rows) -> str:
    """As in "3 seeds"."""
    count = len({row["seed"] for row in rows if "seed" in row})
    return f"{count} seed" + "s" * (count != 1)


def bars_text(rows: Rows) -> str:
    """What a figure's points and bars are, for the line below its title."""
    count = seeds_text(rows)
    return f"mean of {count}, bars ± one standard deviation" if count != "1 seed" else "one seed"

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


@dataclass(frozen=True)
class Result:
    """What a study says: sentences that answer its question, figures by name, and tables (Markdown)."""

    sentences: list[str]
    figures: dict[str, Figure] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)


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
    """What a paired difference over seeds says: beyond two standard errors, or not."""
    if difference.n < 2:
        return "one seed: no spread is known"
    error = difference.sd / math.sqrt(difference.n)
    return "more than two standard errors" if abs(difference.mean) > 2 * error else "within two standard errors"


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

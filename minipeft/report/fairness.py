"""What makes a comparison fair, for the report: the learning rates that were tried, and intervals of differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.experiments.tune import best_rate
from minipeft.files import read_lines
from minipeft.report.summary import Summary

RESAMPLES = 10_000
LEVEL = 0.95
Key = tuple[str, str]  # method, setting


@dataclass(frozen=True)
class Interval:
    """The difference of two accuracies, in [-1, 1], and the ends of its interval."""

    difference: float
    low: float
    high: float


def bootstrap(difference: np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """The interval of a mean by the percentile bootstrap (Efron, 1979): the rows are drawn again, with replacement.

    Args:
        difference: (rows,), of each test row: right by one method minus right by the other. That is what pairs them.
        resamples: how many times.
        level: the share of the means that the interval holds.
    """
    rng = np.random.default_rng(0)
    n = len(difference)
    means = [difference[rng.integers(0, n, n)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference.mean()), float(low), float(high))


def read_correct(path: Path) -> dict[Key, dict[int, np.ndarray]]:
    """Of a predictions.jsonl: (method, setting) -> seed -> 1.0 where a test row was classified right, else 0.0 (rows,)."""
    found: dict[Key, dict[int, np.ndarray]] = {}
    for line in read_lines(path):
        right = (np.array(line["predictions"]) == np.array(line["labels"])).astype(float)
        found.setdefault((line["method"], line["setting"]), {})[line["seed"]] = right
    return found


def differences(correct: Mapping[Key, Mapping[int, np.ndarray]], reference: Key) -> dict[Key, Interval]:
    """The accuracy of each method minus the reference's, over the seeds that both have, with its interval."""
    intervals = {}
    for key, seeds in correct.items():
        common = sorted(seeds.keys() & correct[reference].keys())
        if key != reference and common:
            pairs = [seeds[seed] - correct[reference][seed] for seed in common]  # (rows,) each
            intervals[key] = bootstrap(np.mean(pairs, axis=0))
    return intervals


def reference_of(cells: Sequence[Summary]) -> Summary:
    """Full fine-tuning where it was run, else the most accurate."""
    full = [cell for cell in cells if cell.method == "full"]
    return full[0] if full else max(cells, key=lambda cell: cell.mean["accuracy"])


def interval_rows(run: Path, cells: Sequence[Summary]) -> list[list[str]]:
    """Method, difference in points, interval, and what it says; [] where predictions.jsonl is missing."""
    reference = reference_of(cells)
    correct = read_correct(run / "predictions.jsonl")
    if (reference.method, reference.setting) not in correct:
        return []
    found = differences(correct, (reference.method, reference.setting))
    rows = []
    for cell in cells:
        if interval := found.get((cell.method, cell.setting)):
            low, high = 100 * interval.low, 100 * interval.high
            verdict = "higher" if low > 0 else "lower" if high < 0 else "may be equal"
            rows.append([cell.label, f"{100 * interval.difference:+.1f}", f"{low:+.1f} to {high:+.1f}", verdict])
    return rows


def trial_rows(run: Path) -> tuple[list[float], list[list[str]]]:
    """The rates that were tried, and for each method its accuracies on the validation rows, the chosen one marked."""
    trials: dict[str, dict[float, dict[str, Any]]] = {}
    for trial in read_lines(run / "tuning.jsonl"):
        trials.setdefault(trial["method"], {})[trial["lr"]] = trial
    rates = sorted({lr for tried in trials.values() for lr in tried})
    rows = []
    for method, tried in trials.items():
        finished = [trial for trial in tried.values() if trial["loss"] is not None]
        best = best_rate(method, finished) if finished else None
        texts = []
        for lr in rates:
            at = tried.get(lr)
            text = "" if at is None else "diverged" if at["loss"] is None else f"{100 * at['accuracy']:.1f}"
            mark = " ◂ end" if lr in (rates[0], rates[-1]) else " ◂"
            texts.append(f"{text}{mark}" if at is not None and lr == best else text)
        rows.append([method, *texts])
    return rates, rows

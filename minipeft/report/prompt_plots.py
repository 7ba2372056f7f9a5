"""The figures of prompting against fine-tuning, drawn from results.csv alone: the matrix of the paper, and all scores."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.table import Table

from minipeft.errors import UserError
from minipeft.report.style import GREY, INK, LIGHT, blank_figure, ink, save_figure, styled, tint

TUNED, PROMPTED = "#0072B2", "#D55E00"  # where fine-tuning is better, where prompting is
NAMES = {"icl": "In-context learning", "full": "Full fine-tuning", "lora": "LoRA"}
TESTS = {"in_domain": "in the domain", "out_of_domain": "out of the domain"}
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """Mean accuracy of fine-tuning minus that of in-context learning, and Welch's p; None where it is not defined."""

    mean: float
    p: float | None

    @property
    def significant(self) -> bool:
        """Whether p is below 0.05."""
        return self.p is not None and self.p < LEVEL


def welch(a: list[float], b: list[float]) -> Difference:
    """The difference of the means of two samples, and the p of Welch's two-sided t-test, for unequal variances.

    t = (ā - b̄) / √(s²_a/n_a + s²_b/n_b), with ν = (s²_a/n_a + s²_b/n_b)² / ((s²_a/n_a)²/(n_a - 1) + (s²_b/n_b)²/(n_b - 1))
    degrees of freedom (Welch, 1947). With fewer than 2 seeds, or no spread on either side, there is no p.

    Raises:
        UserError: scipy is not installed.
    """
    mean = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2:
        return Difference(mean, None)
    parts = [float(np.var(sample, ddof=1)) / len(sample) for sample in (a, b)]
    if sum(parts) < 1e-18:
        return Difference(mean, None)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (a, b), strict=True))
    return Difference(mean, float(2 * student()(freedom, -abs(mean) / math.sqrt(sum(parts)))))


def student() -> Any:
    """The distribution function of Student's t, of (degrees of freedom, t). Raises UserError when scipy is missing."""
    try:
        from scipy.special import stdtr
    except ImportError:
        raise UserError("The t-test needs scipy: pip install 'minipeft[stats]'.") from None
    return stdtr


class Scores:
    """The results of a run: the accuracies over the seeds by (model, approach, test).

    Raises:
        UserError: there are none.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UserError(f"There is no {path}: no cell of the experiment is finished.")
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise UserError(f"{path} has no rows: no cell of the experiment is finished.")
        self.sizes = {row["model"]: int(row["parameters"]) for row in rows}
        self.values: dict[tuple[str, str, str], list[float]] = {}
        for row in rows:
            for test in TESTS:
                self.values.setdefault((row["model"], row["approach"], test), []).append(float(row[test]))

    @property
    def models(self) -> list[str]:
        """By rising size."""
        return sorted(self.sizes, key=lambda name: (self.sizes[name], name))

    @property
    def seeds(self) -> str:
        """How many: "10", or "2 to 3" while some cells are missing."""
        counts = [len(values) for values in self.values.values()]
        return str(max(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"

    def get(self, model: str, approach: str, test: str) -> list[float]:
        """The accuracies, one a seed; empty where nothing is finished."""
        return self.values.get((model, approach, test), [])

    def difference(self, approach: str, tuned: str, prompted: str, test: str) -> Difference | None:
        """Of one cell of the matrix; None where a side is missing."""
        a, b = self.get(tuned, approach, test), self.get(prompted, "icl", test)
        return welch(a, b) if a and b else None


def draw_prompting(results: Path, folder: Path) -> list[Path]:
    """Draw FOLDER/difference and FOLDER/scores (.png and .svg); returns the paths, the matrix first.

    Raises:
        UserError: there are no results, scipy is missing, or the folder cannot be written to.
    """
    scores = Scores(results)
    with styled():
        paths = save_figure(difference_figure(scores), folder / "difference")
        return paths + save_figure(scores_figure(scores), folder / "scores")


def difference_figure(scores: Scores) -> Figure:
    """Matrices of accuracy, fine-tuning minus in-context learning, in points; models by size on both axes."""
    tuned = [how for how in ("full", "lora") if any(key[1] == how for key in scores.values)]
    size = len(scores.models)
    height = 2.3 + 2 * (1.0 + 0.62 * size)
    figure = blank_figure(
        2.0 + max(len(tuned), 1) * (2.1 + 0.95 * size),
        height,
        "Fine-tuning minus in-context learning, accuracy in points",
        f"Means over {scores.seeds} seeds. Coloured where p < {LEVEL} (Welch's t): blue for tuning, orange for prompting",
    )
    axes = figure.subplots(2, max(len(tuned), 1), squeeze=False)
    for row, test in zip(axes, ("out_of_domain", "in_domain"), strict=True):
        for place, (axis, how) in enumerate(zip(row, tuned, strict=False)):
            _matrix(axis, scores, how, test)
            axis.set_title(f"{NAMES[how]}, {TESTS[test]}", loc="left", fontsize=10, fontweight="bold")
            axis.set_xlabel("Fine-tuned model" if test == "in_domain" else "")
            axis.set_ylabel("Prompted model" if place == 0 else "")
    return figure


def _matrix(axes: Axes, scores: Scores, how: str, test: str) -> None:
    models = scores.models
    for x, tuned in enumerate(models):
        for y, prompted in enumerate(models):
            found = scores.difference(how, tuned, prompted, test)
            colour: Any = "white"
            if found is not None:
                strength = 0.25 + 0.75 * min(1.0, abs(found.mean) / 0.3)
                strong = TUNED if found.mean > 0 else PROMPTED
                colour = tint(strong, strength) if found.significant else LIGHT
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
            text = "–" if found is None else f"{100 * found.mean:+.1f}".replace("-", "−")
            dark = isinstance(colour, tuple) and sum(colour) < 1.6
            colour_of_text = "white" if dark else INK
            axes.text(x, y - 0.07, text, ha="center", va="center", fontsize=11, color=colour_of_text)
            if found is not None:
                axes.text(x, y + 0.28, p_text(found.p), ha="center", va="center", fontsize=7, color=colour_of_text)
    names = [f"{name}\n{size_text(scores.sizes[name])}" for name in models]
    axes.set_xticks(range(len(models)), names)
    axes.set_yticks(range(len(models)), names)
    axes.set_xlim(-0.5, len(models) - 0.5)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def scores_figure(scores: Scores) -> Figure:
    """Every accuracy as a dot, with mean and standard deviation over the seeds, by model and approach."""
    figure = blank_figure(
        9.5,
        4.6,
        "Accuracy in and out of the domain",
        f"A dot a seed, {scores.seeds} seeds; bars are the mean ± one standard deviation; the dashed line is chance",
    )
    axes = figure.subplots(1, 2, sharey=True)
    looks = {"icl": (PROMPTED, "o", -0.24), "full": ("#333333", "s", 0.0), "lora": ("#009E73", "D", 0.24)}
    for axis, (test, title) in zip(axes, TESTS.items(), strict=True):
        for how, (colour, marker, shift) in looks.items():
            for x, model in enumerate(scores.models):
                values = scores.get(model, how, test)
                if not values:
                    continue
                spread = np.linspace(-0.06, 0.06, len(values)) if len(values) > 1 else np.zeros(1)
                axis.plot(x + shift + spread, values, marker, color=tint(colour, 0.45), markersize=4, linestyle="none")
                bar = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                mean = float(np.mean(values))
                axis.errorbar(
                    x + shift,
                    mean,
                    bar,
                    color=ink(colour),
                    marker="_",
                    markersize=13,
                    capsize=4,
                    linewidth=1.6,
                    label=NAMES[how] if model == scores.models[0] else None,
                )
        axis.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
        axis.set_title(title.capitalize(), loc="left", fontsize=10, fontweight="bold")
        axis.set_xticks(
            range(len(scores.models)), [f"{name}\n{size_text(scores.sizes[name])}" for name in scores.models]
        )
        axis.grid(axis="x", visible=False)
        axis.set_xlim(-0.5, len(scores.models) - 0.5)
    axes[0].set_ylabel("Accuracy")
    axes[0].legend(loc="upper left")
    return figure


def p_text(p: float | None) -> str:
    """p, more exactly where it matters."""
    if p is None:
        return "no p"
    return f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def size_text(parameters: int) -> str:
    """134515008 -> "135 M"."""
    millions = parameters / 1e6
    return f"{millions:.0f} M" if millions >= 10 else f"{millions:.1f} M"


def scores_table(results: Path) -> Table:
    """Mean ± standard deviation of the accuracy, in points, by model and approach."""
    scores = Scores(results)
    table = Table("model", "parameters", "approach", "seeds", *TESTS.values())
    for model in scores.models:
        for how, name in NAMES.items():
            found = [scores.get(model, how, test) for test in TESTS]
            if found[0]:
                cells = [f"{100 * np.mean(v):.1f} ± {100 * np.std(v, ddof=1) if len(v) > 1 else 0:.1f}" for v in found]
                table.add_row(model, size_text(scores.sizes[model]), name, str(len(found[0])), *cells)
    return table

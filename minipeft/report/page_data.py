"""What the plots of report.html are drawn from: the cells of a run as plain data, for page.js."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from matplotlib.colors import to_hex

from minipeft.report.plots import mean_curve, variant_of
from minipeft.report.style import Look, family_looks, ink
from minipeft.report.summary import MEMORY, Summary

# What the score is shown against: name in the list, title of the axis, measures that are added up, log scale or not.
AXES = (
    ("trainable parameters", "Trainable parameters, head included (log scale)", ("trainable_params",), True),
    ("training time", "Training time (s)", ("train_seconds",), False),
    (
        "memory",
        "Memory added to the weights: activations, gradients, optimizer, cache (MB, log scale)",
        tuple(MEMORY.values()),
        True,
    ),
    ("FLOPs", "Work of one training step (GFLOP)", ("forward_gflop", "backward_gflop"), False),
)
SYMBOLS = {"*": "star", "o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "P": "cross",
           "v": "triangle-down", "X": "x", "p": "pentagon", "h": "hexagon"}  # fmt: skip
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}


def run_data(cells: Sequence[Summary]) -> dict[str, Any]:
    """The axes, the cells, the curves that join them, and the layers from the words up; JSON-able, without a NaN."""
    looks = family_looks(cell.method for cell in cells)
    curves: dict[tuple[str, str], list[int]] = {}
    for place, cell in enumerate(cells):
        curves.setdefault((cell.method, variant_of(cell)), []).append(place)
    of_text = any(cell.of_text for cell in cells)
    name, title = ("Bits per byte", "Bits per byte (lower is better)") if of_text else ("Accuracy", "Test accuracy (%)")
    return {
        "score": {"name": name, "title": title},
        "axes": [{"key": i, "name": name, "title": title, "log": log} for i, (name, title, _, log) in enumerate(AXES)],
        "cells": [_cell(cell, cells, looks[cell.method]) for cell in cells],
        "curves": [_curve(cells[places[0]], places, looks[method]) for (method, _), places in curves.items()],
        "layers": _layers(cells),
    }


def _cell(cell: Summary, cells: Sequence[Summary], look: Look) -> dict[str, Any]:
    family = [other.setting for other in cells if other.method == cell.method]
    steps, losses = [], []
    if any(cell.curves):
        where, mean, _ = mean_curve(cell)
        steps, losses = [int(step) for step in where], [_number(loss) for loss in mean]
    score, spread = _score(cell)
    return {
        "label": escape(cell.label),  # Plotly reads some HTML in texts
        "short": escape(cell.setting_label or cell.family),
        "hover": _hover(cell),
        "score": _number(score),
        "spread": _number(spread) if cell.n > 1 else 0,
        "costs": [sum(cell.mean[name] for name in names) for _, _, names, _ in AXES],
        "steps": steps,
        "losses": losses,
        "colour": look.colour,
        "dash": _dash(look),
        "strength": 0.4 + 0.6 * (family.index(cell.setting) + 1) / len(family),  # more parameters, stronger
        "gradients": {escape(layer): _number(norm) for layer, norm in cell.gradients.items()},
    }


def _score(cell: Summary) -> tuple[float, float]:
    """Bits per byte where the task is a text, else accuracy in %; and its standard deviation."""
    name, factor = ("bits_per_byte", 1) if cell.of_text else ("accuracy", 100)
    return factor * cell.mean[name], factor * cell.sd[name]


def _hover(cell: Summary) -> str:
    mean, (score, sd) = cell.mean, _score(cell)
    digits, unit = (3, "bits per byte") if cell.of_text else (1, "% right")
    spread = f" ± {sd:.{digits}f}" if cell.n > 1 else ""
    memory = sum(mean[column] for column in MEMORY.values())
    return "<br>".join(
        (
            f"<b>{escape(cell.label)}</b>",
            f"{score:.{digits}f}{spread} {unit}, {cell.n} {'seed' if cell.n == 1 else 'seeds'}",
            f"{mean['trainable_params']:,.0f} trained ({mean['trainable_percent']:.3g} %), "
            f"{mean['head_params']:,.0f} of them in the head",
            f"learning rate {mean['lr']:g}; {mean['train_seconds']:,.1f} s, {mean['step_ms']:,.0f} ms a step",
            f"{memory:,.0f} MB beside the weights, {mean['saved_mb']:,.2f} MB saved",
            f"{mean['forward_gflop']:,.1f} + {mean['backward_gflop']:,.1f} GFLOP a step",
        )
    )


def _curve(first: Summary, places: list[int], look: Look) -> dict[str, Any]:
    name = f"{first.family} ({variant_of(first)})" if variant_of(first) else first.family
    return {
        "name": escape(name),
        "cells": places,
        "colour": look.colour,
        "ink": to_hex(ink(look.colour)),
        "symbol": SYMBOLS[look.marker],
        "dash": _dash(look),
    }


def _dash(look: Look) -> str:
    """Plotly's name of a matplotlib line style."""
    return DASHES[look.line] if isinstance(look.line, str) else ",".join(f"{2 * part}px" for part in look.line[1])


def _layers(cells: Sequence[Summary]) -> list[str]:
    """Every layer that some cell names: the words, the blocks in their order, what follows them, the head, the method."""
    names = {layer for cell in cells for layer in cell.gradients}
    rank = {"embed": 0, "blocks": 1, "head": 3, "method": 4}

    def key(layer: str) -> tuple[int, int, str]:
        kind, _, number = layer.partition(".")
        return rank.get(kind, 2), int(number) if number.isdigit() else 0, layer

    return [escape(layer) for layer in sorted(names, key=key)]


def _number(value: float) -> float | None:
    """Five digits; None, which JSON has, for what is no number."""
    return float(f"{value:.5g}") if math.isfinite(value) else None

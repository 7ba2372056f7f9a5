"""Placing labels beside the points and the ends of the curves of a plot so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.text import Annotation, Text
from numpy.typing import ArrayLike

FONT_SIZE = 9.5


@dataclass(frozen=True, slots=True)
class Label:
    """A text that belongs to the point (x, y), in data coordinates."""

    x: float
    y: float
    text: str
    colour: tuple[float, float, float]


def label_points(
    axes: Axes, labels: Sequence[Label], points: Sequence[tuple[float, float]], avoid: Sequence[Text]
) -> list[Annotation]:
    """Write each label beside its point, where it covers no other label, no point, no text of `avoid` and no line.

    `points` are all the points, also those without a label. Every label tries places around its own, nearest first,
    and takes the cheapest given the others; a few rounds let them settle. This fixes the figure's layout: call it last.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    unit = figure.dpi / 72  # pixels a point
    frame = axes.get_window_extent().extents
    centres = [axes.transData.transform((label.x, label.y)) for label in labels]
    solid = [tuple(text.get_window_extent().extents) for text in avoid]
    dots = [axes.transData.transform(point) for point in points]
    solid += [(x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit) for x, y in dots]
    strokes = _strokes(axes)

    texts = [_text(axes, label) for label in labels]
    options = []
    for text, (x, y) in zip(texts, centres, strict=True):
        box = text.get_window_extent()
        options.append(_places(x, y, box.width, box.height, unit))
    boxes = [places[0] for places in options]
    for _ in range(4):
        for i, places in enumerate(options):
            covered = _overlap(places, solid + boxes[:i] + boxes[i + 1 :])
            outside = (places[:, 2:] - places[:, :2]).prod(1) - _overlap(places, [frame])
            strange = np.min([_distance(places, dot) for dot in dots], 0) < _distance(places, centres[i]) - 1e-6
            effort = unit**2 * (3 * np.arange(len(places)) + 120 * strange)  # strange: another point is nearer
            boxes[i] = places[np.argmin(1000 * (covered + outside) + 4 * _overlap(places, strokes) + effort)]
    for text, box, (x, y) in zip(texts, boxes, centres, strict=True):
        text.set_position((((box[0] + box[2]) / 2 - x) / unit, ((box[1] + box[3]) / 2 - y) / unit))
    return texts


def label_ends(axes: Axes, labels: Sequence[Label]) -> list[Annotation]:
    """Write each label right of the axes at the height of its point, pushed apart where points are close.

    A thin line leads back to the point.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    gap = 1.3 * FONT_SIZE * figure.dpi / 72 / axes.get_window_extent().height  # in heights of the axes
    to_axes = axes.transData + axes.transAxes.inverted()
    bottom, top = axes.get_ylim()
    labels = [replace(label, y=min(max(label.y, bottom), top)) for label in labels]  # a curve may leave the axes
    labels = sorted(labels, key=lambda label: label.y)
    wanted = [float(to_axes.transform((label.x, label.y))[1]) for label in labels]
    return [
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(1.05, height),
            textcoords="axes fraction",
            va="center_baseline",
            color=label.colour,
            fontsize=FONT_SIZE,
            arrowprops={"arrowstyle": "-", "color": label.colour, "alpha": 0.5, "linewidth": 0.7, "relpos": (0, 0.5)},
            annotation_clip=False,
        )
        for label, height in zip(labels, spread(wanted, gap), strict=True)
    ]


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places as near to the ascending wanted ones as a least distance of `gap` allows.

    Places that come too close are put side by side around their common mean (isotonic regression, least squares).
    """
    groups: list[tuple[float, int]] = []  # (mean, size)
    for place in wanted:
        mean, size = place, 1
        while groups and groups[-1][0] + gap * (groups[-1][1] + size) / 2 > mean:
            before, n = groups.pop()
            mean, size = (before * n + mean * size) / (n + size), n + size
        groups.append((mean, size))
    return [mean + gap * (i - (size - 1) / 2) for mean, size in groups for i in range(size)]


def _text(axes: Axes, label: Label) -> Annotation:
    return axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(0, 0),
        textcoords="offset points",
        ha="center",
        va="center",
        color=label.colour,
        fontsize=FONT_SIZE,
        zorder=6,
        annotation_clip=False,
    )


def _places(x: float, y: float, width: float, height: float, unit: float) -> np.ndarray:
    """Boxes (left, bottom, right, top) around the point (x, y), in pixels, the preferred ones first: (places, 4)."""
    boxes = []
    for gap in (8 * unit, 13 * unit, 20 * unit, 30 * unit):
        for angle in (90, 270, 0, 180, 45, 135, 315, 225, 20, 160, 340, 200, 70, 110, 250, 290):
            across, up = np.cos(np.radians(angle)), np.sin(np.radians(angle))
            cx = x + gap * across + width / 2 * np.clip(1.5 * across, -1, 1)  # on a diagonal the near corner
            cy = y + gap * up + height / 2 * np.clip(1.5 * up, -1, 1)  # lies at the gap
            boxes.append((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
    return np.array(boxes)


def _overlap(boxes: np.ndarray, others: ArrayLike) -> np.ndarray:
    """The area in which each box lies over the others: (places, 4) and (n, 4) -> (places,)."""
    a, b = boxes[:, None], np.reshape(others, (1, -1, 4))  # (places, 1, 4), (1, n, 4)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])  # (places, n, 2)
    return sides.clip(0).prod(-1).sum(-1)


def _distance(boxes: np.ndarray, point: np.ndarray) -> np.ndarray:
    """From a point to the nearest edge of each box: (places, 4) and (2,) -> (places,)."""
    return np.hypot(*np.maximum(np.maximum(boxes[:, :2] - point, point - boxes[:, 2:]), 0).T)


def _strokes(axes: Axes) -> np.ndarray:
    """Small boxes along every line of the axes, error bars included, in pixels: (n, 4)."""
    paths = [line.get_transform().transform(line.get_xydata()) for line in axes.get_lines()]
    for bars in axes.collections:
        if isinstance(bars, LineCollection):
            paths += [axes.transData.transform(segment) for segment in bars.get_segments()]
    dots = [np.empty((0, 2))]
    for path in paths:
        for a, b in pairwise(path):
            count = 2 + int(np.hypot(*(b - a)) / 4)
            dots.append(a + (b - a) * np.linspace(0, 1, count)[:, None])
    points = np.concatenate(dots)
    return np.hstack([points - 2, points + 2])

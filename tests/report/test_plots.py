from __future__ import annotations

from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from minipeft.errors import UserError
from minipeft.report.labels import Label, label_points, spread
from minipeft.report.plots import FIGURES, draw_all
from minipeft.report.style import styled
from minipeft.report.summary import read_results, summarise

CROWDED = [
    ("head", "", 148_610, 0.70, 90.0),
    *[("topk", str(k), 1_800_000 * k, 0.75 + 0.02 * k, 150.0) for k in (1, 2, 3, 6)],
    *[("lora", str(r), 148_610 + 9216 * r, 0.80 + 0.02 * np.log2(r), 230.0) for r in (1, 2, 4, 8)],
    *[("adapter", str(r), 148_610 + 9400 * r, 0.82 + 0.006 * np.log2(r), 240.0) for r in (8, 16, 64)],
    *[("intrinsic", str(d), 148_610 + d, 0.71 + 0.02 * np.log10(d), 700.0) for d in (100, 1000, 10000)],
    ("full", "", 22_700_000, 0.867, 400.0),
]
NO_FULL = [("lora", "1", 158_000, 0.79, 230.0), ("lora", "8", 222_000, 0.845, 232.0)]
UNKNOWN = [*NO_FULL, ("whisper", "20", 200_000, 0.8, 220.0), ("$bit_fit$", "", 250_000, 0.82, 210.0)]


def test_every_figure_is_a_png_and_an_svg_that_names_what_it_shows(write_results, tmp_path):
    paths = draw_all(write_results(seeds=3), tmp_path / "figures")
    assert sorted(path.name for path in paths) == sorted(
        f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")
    )
    assert sorted((tmp_path / "figures").iterdir()) == sorted(paths)  # no temporary file is left
    for path in paths:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            text = path.read_text()
            assert "<svg" in text
            for name in ("Full fine-tuning", "Top-K layers", "Adapters", "LoRA", "Intrinsic dimension", "Head only"):
                assert f"<!-- {name}" in text
            for setting in ("K=1", "K=2", "R=16", "r=1", "r=8", "d=1000"):
                assert f"{setting} -->" in text
    main = (tmp_path / "figures" / "accuracy_vs_parameters.svg").read_text()
    for words in ("mean of 3 seeds, bars: ± one standard deviation", "90 % of full", "head alone: 149k", "10M"):
        assert words in main


def test_the_same_results_give_the_same_svg(write_results, tmp_path):
    path = write_results(NO_FULL, seeds=2)
    first = [p.read_bytes() for p in draw_all(path, tmp_path / "a") if p.suffix == ".svg"]
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False}):  # the user's own style changes nothing
        second = [p.read_bytes() for p in draw_all(path, tmp_path / "b") if p.suffix == ".svg"]
    assert first == second


def test_drawing_leaves_the_settings_of_matplotlib_alone(write_results, tmp_path):
    before = dict(matplotlib.rcParams)
    draw_all(write_results(NO_FULL), tmp_path)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("cells", [NO_FULL, NO_FULL[:1], UNKNOWN, [("full", "", 22_700_000, 0.867, 400.0)]])
def test_runs_with_one_cell_without_full_or_with_an_unknown_family(write_results, tmp_path, cells):
    draw_all(write_results(cells), tmp_path)
    text = (tmp_path / "accuracy_vs_parameters.svg").read_text()
    assert ("90 % of full" in text) == any(cell[0] == "full" for cell in cells)
    for method in {cell[0] for cell in cells} - {"lora", "full"}:
        assert method in text


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_curve": ""},
        {"loss_curve": "1:0.7;2:nan;3:inf"},
        {"loss_curve": "1:nan"},
        {"loss_curve": "1:0.7;2:90;3:8000"},
        {"trainable_params": 0, "head_params": 0},
        {"accuracy": 0},
        {"accuracy": 1},
        {"step_ms": 0, "activation_mb": 0, "gradient_mb": 0, "optimizer_mb": 0, "test_loss": "nan"},
    ],
)
def test_extreme_values_are_drawn_without_a_warning(write_results, changes):
    cells = summarise(
        read_results(write_results([*NO_FULL, ("full", "", 22_700_000, 0.867, 400.0)], seeds=2, **changes))
    )
    with styled():
        for draw in FIGURES.values():
            draw(cells).draw_without_rendering()


def boxes_of_labels(figure):
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in axes.texts if isinstance(text, Annotation)]
    return {text.get_text(): Text.get_window_extent(text) for text in texts}  # without the line back to its curve


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("name", ["accuracy_vs_parameters", "loss_curves"])
def test_no_label_covers_another_or_leaves_the_figure(write_results, name, crowded, seeds):
    path = write_results(CROWDED, seeds) if crowded else write_results(seeds=seeds)
    with styled():
        figure = FIGURES[name](summarise(read_results(path)))
        boxes = boxes_of_labels(figure)
        assert len(boxes) >= 8
        for (a, box), (b, other) in combinations(boxes.items(), 2):
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert width <= 0 or height <= 1, f"{a} covers {b}"  # a text's box has a pixel of air
        for text, box in boxes.items():
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text


@given(st.lists(st.tuples(st.integers(40, 46), st.integers(40, 46)), min_size=2, max_size=7, unique=True))
@settings(max_examples=15, deadline=None)
def test_labels_of_points_that_nearly_touch_cover_neither_each_other_nor_a_point(points):
    with styled():
        figure = Figure(figsize=(9, 5.6))
        axes = figure.add_subplot(xlim=(0, 100), ylim=(0, 100))
        labels = [Label(x, y, f"r={place}", (0, 0, 0)) for place, (x, y) in enumerate(points)]
        texts = label_points(axes, labels, points, avoid=[])
        boxes = [text.get_window_extent() for text in texts]
    for box, other in combinations(boxes, 2):
        assert min(box.x1, other.x1) - max(box.x0, other.x0) <= 0 or min(box.y1, other.y1) - max(box.y0, other.y0) <= 0
    for point in axes.transData.transform(points):
        assert not any(box.contains(*point) for box in boxes)


def test_bad_results_write_nothing(write_results, tmp_path):
    path = write_results(NO_FULL, accuracy=86)
    with pytest.raises(UserError, match=r"line 2, column accuracy"):
        draw_all(path, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


@given(st.lists(st.floats(0, 1), max_size=12).map(sorted), st.floats(0.01, 0.2))
def test_spread_keeps_the_distance_and_moves_only_what_is_close(wanted, gap):
    places = spread(wanted, gap)
    assert len(places) == len(wanted)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(places))
    if all(b - a >= gap for a, b in pairwise(wanted)):
        assert places == pytest.approx(wanted)
    assert sum(places) == pytest.approx(sum(wanted))

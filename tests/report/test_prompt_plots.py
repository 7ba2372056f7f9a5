"""The matrix of prompting against fine-tuning: Welch's test is scipy's, and colours follow it."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from minipeft.errors import UserError
from minipeft.experiments.prompt_vs_finetune import COLUMNS
from minipeft.report import prompt_plots
from minipeft.report.prompt_plots import PROMPTED, TUNED, Scores, difference_figure, draw_prompting, scores_table, welch
from minipeft.report.style import LIGHT

stats = pytest.importorskip("scipy.stats")
MODELS = {"b": 3_500_000, "a": 900_000}


def write(path, seeds=6, **gain):
    """A run in which an approach is better than 0.6 by so much, with some noise."""
    rng = np.random.default_rng(1)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for model, size in MODELS.items():
            for how in ("icl", "full", "lora"):
                for seed in range(seeds):
                    scores = {
                        k: round(0.6 + gain.get(how, 0) + 0.02 * rng.standard_normal(), 3) for k in prompt_plots.TESTS
                    }
                    row = dict.fromkeys(COLUMNS, "") | {
                        "model": model,
                        "approach": how,
                        "seed": seed,
                        "parameters": size,
                    }
                    writer.writerow(row | scores)
    return path


@pytest.mark.parametrize(("n", "m", "shift"), [(10, 10, 0.0), (10, 10, 0.05), (3, 12, -0.02), (2, 2, 0.3)])
def test_welch_is_scipys(n, m, shift):
    rng = np.random.default_rng(n)
    a, b = (0.7 + shift + 0.05 * rng.standard_normal(n)).tolist(), (0.7 + 0.01 * rng.standard_normal(m)).tolist()
    found = welch(a, b)
    assert found.p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-9)
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))


def test_samples_without_spread_have_no_p():
    assert welch([0.6] * 3, [0.5] * 3).p is None
    assert welch([0.5] * 3, [0.5, 0.6, 0.7]).p == pytest.approx(stats.ttest_1samp([0.5, 0.6, 0.7], 0.5).pvalue)
    assert welch([0.9], [0.1]).p is None
    assert not welch([0.9], [0.1]).significant


def hue(colour):
    """What a tint has of the colour it was made from: the direction away from white."""
    away = 1 - np.array(to_rgb(colour))
    return (away / np.linalg.norm(away)).round(3).tolist()


@pytest.mark.parametrize(("gain", "expected"), [(0.1, TUNED), (-0.1, PROMPTED), (0.0, None)])
def test_a_cell_has_the_colour_of_the_side_that_is_significantly_better(tmp_path, gain, expected):
    scores = Scores(write(tmp_path / "results.csv", full=gain, lora=gain))
    assert scores.models == ["a", "b"]  # by size
    figure = difference_figure(scores)
    cells = [(axes, patch) for axes in figure.axes for patch in axes.patches]
    assert len(cells) == 2 * 2 * 4
    found = {str(hue(patch.get_facecolor()[:3])) for _, patch in cells}
    wanted = hue(expected) if expected else hue(LIGHT)
    if expected:
        assert found == {str(wanted)}
    else:
        significant = sum(
            scores.difference(how, x, y, test).significant
            for how in ("full", "lora")
            for x in MODELS
            for y in MODELS
            for test in prompt_plots.TESTS
        )
        grey = sum(hue(patch.get_facecolor()[:3]) == wanted for _, patch in cells)
        assert grey == 16 - significant
        assert grey >= 12


def test_columns_are_what_was_tuned_and_rows_what_was_prompted(tmp_path):
    path = write(tmp_path / "results.csv", seeds=2)
    text = path.read_text().replace("a,full", "x,full")  # so that the tuned "a" has nothing
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("x,full")) + "\n")
    assert Scores(path).seeds == "2"
    axes = difference_figure(Scores(path)).axes[0]
    marks = {
        (round(t.get_position()[0]), round(t.get_position()[1])): t.get_text()
        for t in axes.texts
        if t.get_fontsize() > 8
    }
    assert [marks[0, 0], marks[0, 1]] == ["–", "–"]
    assert "–" not in (marks[1, 0], marks[1, 1])


def test_figures_and_table_are_drawn_from_the_csv_alone(tmp_path):
    path = write(tmp_path / "results.csv", 3, full=0.1)
    made = draw_prompting(path, tmp_path / "figures")
    assert [p.name for p in made] == ["difference.png", "difference.svg", "scores.png", "scores.svg"]
    assert all(p.stat().st_size > 10_000 for p in made)
    assert scores_table(path).row_count == 6


def test_one_seed_has_differences_and_no_significance(tmp_path):
    scores = Scores(write(tmp_path / "results.csv", 1, full=0.1))
    assert scores.seeds == "1"
    assert scores.difference("full", "a", "b", "in_domain").p is None
    assert all(
        hue(p.get_facecolor()[:3]) == hue(LIGHT) for axes in difference_figure(scores).axes for p in axes.patches
    )


def test_no_results(tmp_path):
    with pytest.raises(UserError, match="no cell"):
        Scores(tmp_path / "results.csv")
    (tmp_path / "results.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(UserError, match="no rows"):
        Scores(tmp_path / "results.csv")


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.special", None)
    with pytest.raises(UserError, match=r"minipeft\[stats\]"):
        welch([0.1, 0.2], [0.3, 0.5])

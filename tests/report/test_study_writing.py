"""Numbers of the studies' results: spreads, paired differences, and what is said of them."""

import math
import statistics

import pytest

from minipeft.report.studies.d90 import result as d90
from minipeft.report.studies.ranks import result as ranks
from minipeft.report.studies.rates import result as rates
from minipeft.report.studies.writing import group, markdown, paired, stat, title, verdict


def row(method, setting, seed, accuracy, **more):
    return {"cell": f"{method}{setting}{seed}{more}", "method": method, "setting": setting, "seed": seed, **more} | {
        "accuracy": accuracy
    }


def test_a_spread_is_the_sample_standard_deviation_and_one_seed_has_none():
    found = stat([0.8, 0.82, 0.87])
    assert found.mean == pytest.approx(0.83)
    assert found.sd == pytest.approx(statistics.stdev([0.8, 0.82, 0.87]))
    assert found.percent == "83.0 ± 3.6"
    assert math.isnan(stat([0.8]).sd)
    assert stat([0.8]).percent == "80.0"


def test_differences_are_paired_by_seed():
    key = lambda r: r["method"]
    rows = [row("full", "", s, 0.5 + 0.1 * s) for s in range(3)] + [row("lora", "8", s, 0.48 + 0.1 * s) for s in (0, 2)]
    gap = paired(rows, key, "lora", "full")
    assert gap.n == 2
    assert gap.mean == pytest.approx(-0.02)
    assert gap.sd == pytest.approx(0, abs=1e-9)  # the seeds differ, the difference does not
    assert verdict(gap) == "more than two standard errors"
    assert paired(rows, key, "lora", "topk") is None
    assert verdict(stat([0.1, -0.1])) == "within two standard errors"
    assert "one seed" in verdict(stat([0.1]))


def test_a_diverged_cell_counts_in_no_mean():
    rows = [row("full", "", 0, 0.8), row("full", "", 1, None)]
    assert group(rows, lambda r: r["method"])["full"].n == 1


@pytest.mark.parametrize(
    ("method", "shown"),
    [("lora:8", "LoRA r=8"), ("full", "Full fine-tuning"), ("lora:8:all-linear", "LoRA r=8, all-linear")],
)
def test_methods_are_named_for_a_reader(method, shown):
    assert title(method) == shown


def test_a_table_is_markdown():
    assert markdown(["a", "b"], [["1", "2"]]).splitlines() == ["| a | b |", "|---|---:|", "| 1 | 2 |"]


def test_the_ratio_of_the_best_rates_is_computed():
    best = {"full": 1e-4, "lora": 1e-3}
    rows = [
        row(method, "8" if method == "lora" else "", seed, 0.8 if lr == best[method] else 0.6, lr=lr)
        for method in best
        for lr in (1e-5, 1e-4, 1e-3, 1e-2)
        for seed in range(2)
    ]
    said = " ".join(rates(rows, {}).sentences)
    assert "LoRA's best is 10 times full fine-tuning's" in said
    assert "Seed by seed: 10, 10" in said
    assert "edge" not in said


def test_which_pair_of_matrices_is_better_is_computed():
    config = {"budget": 8, "targets": [], "ranks": [1]}
    cells = [("qk", 4, 0.75), ("qv", 4, 0.80)]
    rows = [
        row("lora", "", s, a + 0.001 * s, targets=t, rank=r, method_params=9) for t, r, a in cells for s in range(3)
    ]
    said = " ".join(ranks(rows, config).sentences)
    assert "the best choice is qv at rank 4" in said
    assert "the better pair here is query and value" in said


def test_d90_is_the_smallest_d_at_the_bar_and_a_model_whose_full_fine_tuning_falls_short_has_none():
    common = {"majority": 0.5, "D": 1000, "lr": 1.0}
    rows = [
        {"cell": f"{m}{d}{s}", "model": m, "seed": s, "d": d, "accuracy": a, **common} | ({"variant": "v"} if d else {})
        for m, cells in {
            "good": [(None, 0.9), (10, 0.6), (100, 0.82), (1000, 0.85)],
            "poor": [(None, 0.6), (10, 0.55), (100, 0.56)],
        }.items()
        for d, a in cells
        for s in range(2)
    ]
    result = d90(rows, {"share": 0.9})
    assert "| good | v | 100 (2 seeds alike) | 100 (2 seeds alike) |" in result.tables[0]
    assert "| poor | v | 10 (2 seeds alike) | full fine-tuning falls short with 2 of 2 seeds |" in result.tables[0]
    assert any("the larger class alone makes 50.0 %" in sentence for sentence in result.sentences)

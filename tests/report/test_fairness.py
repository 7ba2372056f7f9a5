"""Paired intervals: against scipy's, and what pairing is for."""

import json

import numpy as np
import pytest

from minipeft.report.fairness import bootstrap, differences, read_correct, trial_rows


def test_the_interval_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    difference = rng.integers(-1, 2, 400).astype(float) + 0.2
    ours = bootstrap(difference)
    theirs = stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    assert ours.difference == pytest.approx(difference.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.006)
    assert ours.high == pytest.approx(theirs.high, abs=0.006)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        interval = bootstrap(rng.choice([-1.0, 0.0, 1.0], size=150, p=[0.1, 0.6, 0.3]), resamples=300)
        inside += interval.low <= 0.2 <= interval.high
    assert 180 <= inside <= 199  # 190 in the mean


def test_pairing_sees_a_difference_that_the_rows_hide():
    rng = np.random.default_rng(0)
    base = (rng.random(1000) < 0.7).astype(float)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:20]] = 1  # two points more, on the same rows otherwise
    correct = {("full", ""): {0: base}, ("lora", "8"): {0: better}}
    interval = differences(correct, ("full", ""))["lora", "8"]
    assert interval.difference == pytest.approx(0.02)
    assert interval.low > 0
    unpaired = bootstrap(better - rng.permutation(base))
    assert unpaired.low < 0


def test_methods_are_compared_over_the_seeds_that_both_have(tmp_path):
    path = tmp_path / "predictions.jsonl"
    lines = [
        {"method": "full", "setting": "", "seed": 0, "predictions": [0, 1, 1, 0], "labels": [0, 1, 0, 0]},
        {"method": "full", "setting": "", "seed": 0, "predictions": [0, 1, 0, 0], "labels": [0, 1, 0, 0]},
        {"method": "lora", "setting": "8", "seed": 0, "predictions": [1, 1, 0, 0], "labels": [0, 1, 0, 0]},
        {"method": "lora", "setting": "8", "seed": 1, "predictions": [1, 0, 1, 1], "labels": [0, 1, 0, 0]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"method": "lo')
    correct = read_correct(path)
    assert correct["full", ""][0].tolist() == [1, 1, 1, 1]  # of a cell that was run again, the last
    assert differences(correct, ("full", ""))["lora", "8"].difference == -0.25


def test_the_chosen_rate_is_marked_and_so_is_one_at_the_end_of_the_grid(tmp_path):
    found = {"full": (0.6, 0.8, 0.7), "lora:2": (0.5, 0.6, 0.7), "head": (None, None, 0.5)}
    trials = [
        {"method": method, "lr": lr, "accuracy": accuracy, "loss": None if accuracy is None else 1 - accuracy}
        for method, accuracies in found.items()
        for lr, accuracy in zip((1e-4, 1e-3, 1e-2), accuracies, strict=True)
    ]
    (tmp_path / "tuning.jsonl").write_text("\n".join(map(json.dumps, trials)) + "\n")
    rates, rows = trial_rows(tmp_path)
    assert rates == [1e-4, 1e-3, 1e-2]
    assert rows == [
        ["full", "60.0", "80.0 ◂", "70.0"],
        ["lora:2", "50.0", "60.0", "70.0 ◂ end"],
        ["head", "diverged", "diverged", "50.0 ◂ end"],
    ]

"""Numbers of the studies' results: spreads, paired differences, and what is said of them."""

import math
import statistics

import pytest

from minipeft.report.studies.adapters import result as adapters
from minipeft.report.studies.d90 import result as d90
from minipeft.report.studies.data_size import result as data_size
from minipeft.report.studies.dimension import Needed, fewer_text, needed_text, short_name
from minipeft.report.studies.forgetting import result as forgetting
from minipeft.report.studies.growth import result as growth
from minipeft.report.studies.ranks import result as ranks
from minipeft.report.studies.rates import result as rates
from minipeft.report.studies.subspaces import result as subspaces
from minipeft.report.studies.topk import result as topk
from minipeft.report.studies.writing import (
    NORMAL_QUANTILE,
    T_QUANTILES,
    best_text,
    group,
    markdown,
    paired,
    ratio_text,
    stat,
    title,
    verdict,
    within_a_point,
)


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
    assert verdict(gap) == "beyond the error"
    assert paired(rows, key, "lora", "topk") is None
    assert verdict(stat([0.1, -0.1])) == "within the error"
    assert "one seed" in verdict(stat([0.1]))


def test_the_error_is_that_of_students_t():
    special = pytest.importorskip("scipy.special")
    for freedom, t in enumerate(T_QUANTILES, start=1):
        assert t == pytest.approx(special.stdtrit(freedom, 0.975), abs=5e-4)
    assert pytest.approx(special.ndtri(0.975), abs=5e-4) == NORMAL_QUANTILE


def test_three_seeds_need_more_than_four_standard_errors():
    three, many = stat([0.01, 0.02, 0.03]), stat([0.01, 0.02, 0.03] * 5)
    assert three.mean / (three.sd / 3**0.5) == pytest.approx(
        3.46, abs=0.01
    )  # two standard errors would have been enough
    assert not three.differs
    assert many.differs
    assert not stat([0.5]).differs
    assert stat([0.0, 0.0]).differs is False


def test_a_winner_is_named_only_beyond_the_error():
    key, text = lambda r: r["method"], str.upper
    rows = [row(m, "", s, a + 0.001 * s) for m, a in (("a", 0.8), ("b", 0.7), ("c", 0.6)) for s in range(3)]
    assert best_text(rows, key, "cab", text) == "A is the best with 80.1 ± 0.1 %, beyond the error"
    rows += [row("d", "", s, 0.8 + 0.02 * (s - 1)) for s in range(3)]
    assert best_text(rows, key, "abcd", text).startswith(
        "A has the highest mean, 80.1 ± 0.1 %, and cannot be told apart from D"
    )
    assert best_text(rows, key, "ad", text).endswith("cannot be told apart from D")
    assert "one seed" in best_text([r for r in rows if r["seed"] == 0], key, "ab", text)


def test_a_ratio_has_a_geometric_mean_and_an_interval():
    assert ratio_text(stat([math.log(10)])) == "10"
    low, middle, high = (math.log(x) for x in (5, 10, 20))
    half = 4.303 * math.log(2) / 3**0.5
    assert (
        ratio_text(stat([low, middle, high])) == f"10 (95 %: {10 * math.exp(-half):.3g} to {10 * math.exp(half):.3g})"
    )


def test_far_above_full_is_not_within_a_point_of_it():
    rows = [row(m, "", s, a) for m, a in (("full", 0.7), ("b", 0.705), ("c", 0.8), ("d", 0.68)) for s in range(2)]
    assert within_a_point(rows, "b") == "is within a point of full fine-tuning"
    assert "+10.0 ± 0.0 points from full fine-tuning" in within_a_point(rows, "c")
    assert within_a_point(rows, "d") == within_a_point(rows, "e") == ""


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
    rows[7]["accuracy"] = None  # diverged: full at the highest rate
    said = " ".join(rates(rows, {}).sentences)
    assert "LoRA's best is 10 times full fine-tuning's" in said
    assert "Seed by seed: 10, 10; geometric mean 10. Ten times lies within" in said
    assert "Full fine-tuning: 0.0001 is the best with 80.0 ± 0.0 %" in said
    assert "edge" not in said


def test_which_pair_of_matrices_is_better_is_computed():
    config = {"budget": 8, "targets": [], "ranks": [1]}

    def said(*cells):
        rows = [
            row("lora", "", s, a + noise * s, targets=t, rank=r, method_params=9, lr=1e-3)
            for t, r, a, noise in cells
            for s in range(3)
        ]
        return " ".join(ranks(rows, config).sentences)

    clear = said(("qk", 4, 0.75, 0.001), ("qv", 4, 0.80, 0.001))
    assert "At the budget, qv at rank 4 is the best with 80.1 ± 0.1 %, beyond the error." in clear
    assert "the better pair here is query and value" in clear
    alike = said(("qk", 4, 0.78, 0.001), ("qv", 4, 0.78, 0.01))
    assert "qv at rank 4 has the highest mean, 79.0 ± 1.0 %, and cannot be told apart from qk at rank 4" in alike
    assert "the two cannot be told apart here" in alike


def test_top_k_counts_the_cache_and_says_what_a_step_is():
    cost = {
        "step_ms": 50.0,
        "activation_mb": 10.0,
        "gradient_mb": 1.0,
        "optimizer_mb": 2.0,
        "trainable_params": 9,
        "lr": 1.0,
    }
    rows = [
        row(method, setting, s, accuracy, **cost, cache_mb=cache)
        for method, setting, accuracy, cache in (
            ("topk", "0", 0.5, 30.0),
            ("topk", "1", 0.9, 24.0),
            ("full", "", 0.6, 0.0),
        )
        for s in range(2)
    ]
    result = topk(rows, {})
    said = " ".join(result.sentences)
    assert "adds 285% of the memory that full adds to the weights, 24.0 MB of it the cache" in said  # 37 of 13
    assert (
        "not more than a point below it is 1: it is +30.0 ± 0.0 points from full fine-tuning (beyond the error)" in said
    )
    assert "cached activations MB" in result.tables[0]
    assert "without the time of filling the cache" in result.notes[0]


def test_forgetting_says_what_was_found_with_the_method_off_and_who_is_near():
    config = {"corpus": "shakespeare", "model": "m"}
    cell = lambda m, s, a, loss, lr=1.0, **more: row(
        m, "8", s, a, loss=loss, lr=lr, own_rate=lr == 1.0, trainable_params=9, **more
    )
    rows = [{"cell": "before", "loss": 2.0, "tokens": 100}]
    rows += [cell("full", s, 0.70, 3.0 + 0.01 * s) | {"setting": ""} for s in range(3)]
    rows += [cell("lora", s, 0.80, 2.5 + 0.01 * s, loss_off=2.0) for s in range(3)]
    rows += [cell("topk", s, None, None) for s in range(3)]
    said = " ".join(forgetting(rows, config).sentences)
    assert "within a point" not in said
    assert "LoRA r=8 is +10.0 ± 0.0 points from full fine-tuning" in said
    assert "with the method switched off" in said.lower()
    assert "the one from before to all six decimals, in 3 cells" in said
    assert "at the same learning rate" not in said
    rows[-4]["loss_off"] = 2.25
    assert "is 0.250000 from before at most" in " ".join(forgetting(rows, config).sentences)
    assert "MiniLM has no part" in forgetting(rows, config).notes[0]
    assert forgetting(rows[:1], config).sentences
    rows += [cell("full", s, 0.90, 9.0, lr=3.0) | {"setting": ""} for s in range(3)]
    rows += [cell("lora", s, 0.90, 2.125, lr=3.0) for s in range(3)]
    rows += [cell("topk", s, 0.60, 2.0, lr=3.0) for s in range(3)]  # that diverged at its own rate
    result = forgetting(rows, config)
    # What is said of the own rates stays as it was.
    assert said.split("With")[0] in " ".join(result.sentences)
    for found in rows[-9:-6] + rows[1:4]:
        found["own_rate"] ^= True  # full's own is 3 now
    assert "at 1 from +0.510 ± 0.010 (LoRA r=8) to +1.010 ± 0.010 (Full fine-tuning); at 3 from +0.125" in " ".join(
        forgetting(rows, config).sentences
    )
    assert "| LoRA r=8 | 80.0 / +0.510 | 90.0 / +0.125 |" in result.tables[1]
    assert "| Top-K layers K=8 | diverged | 60.0 / +0.000 |" in result.tables[1]


def test_data_size_says_how_long_each_size_was_trained():
    rows = [
        row(m, "", s, 0.8, rows=n, steps=k, epochs=e, lr=1e-3)
        for m in ("full", "lora")
        for n, k, e in ((100, 92, 23), (3000, 94, 1))
        for s in range(2)
    ]
    notes = " ".join(data_size(rows, {"train_size": 1000}).notes)
    assert "100 rows 92 steps (23 epochs), 3,000 rows 94 steps (1 epoch)" in notes


def test_widths_that_share_no_seed_are_not_compared_and_a_diverged_ablation_is_left_out():
    cells = ((1, 0, 0.7), (1, 1, None), (8, 0, None), (8, 1, 0.8))
    rows = [row("adapter", str(w), s, a, method_params=w, lr=1e-3) for w, s, a in cells]
    rows += [row("adapter", "4", 0, None, ablated=4, spans=None)]
    result = adapters(rows, {})
    assert len(result.sentences) == 1
    assert "Width 8 has the highest" in result.sentences[0]
    assert set(result.figures) == {"widths"}


# ---- dimensions


def searched(model, what, accuracies, seeds=2, **more):
    """Rows of a search: `accuracies` by d; None for full fine-tuning and the classifier alone."""
    common = {"model": model, "what": what, "majority": 0.5, "D": 1000, "lr": 1.0, "loss": 0.5, **more}
    return [
        {"cell": "?", "seed": s, "d": d, "accuracy": a, **common} for d, a in accuracies.items() for s in range(seeds)
    ]


VARIANTS = [["v", False], ["w", True]]
BARS = {"share": 0.9, "bars": ["own", "best", "random"], "grid": [10, 100, 1000], "variants": VARIANTS}


def test_d90_is_the_smallest_d_at_the_bar_and_a_model_whose_full_fine_tuning_falls_short_has_none():
    rows = [
        *searched("good", "full", {None: 0.9}),
        *searched("random:good", "full", {None: 0.6}),
        *searched("good", "head", {None: 0.55}),
        *searched("random:good", "head", {None: 0.5}),
        *searched("good", "v DID", {10: 0.6, 100: 0.82, 1000: 0.85}),
        *searched("random:good", "v DID", {10: 0.53, 100: 0.56}),
    ]
    result = d90(rows, BARS)
    lines = result.tables[0].splitlines()
    assert lines[2] == "| good | v DID | 100 (2 seeds alike) | its own | 0 (2 seeds alike) |"
    short = "full fine-tuning falls short with 2 of 2 seeds"
    assert lines[4] == f"| random:good | v DID | 100 (2 seeds alike) | {short} | its own |"
    said = " ".join(result.sentences)
    assert "the classifier alone reaches 55.0 ± 0.0 %, the larger class alone makes 50.0 %" in said
    assert (
        "v DID, at the bar of good (81.0 ± 0.0 %): with 2 of 2 seeds it cannot be compared, because full fine-tuning of "
        "random:good does not reach it (60.0 ± 0.0 %)." in said
    )
    assert (
        "v DID, at the bar of random:good (54.0 ± 0.0 %): good needs 0 (2 seeds alike), random:good 100 (2 seeds alike): "
        "fewer with 2 of 2 seeds." in said
    )
    assert set(result.figures) == {"d90", "models"}
    assert result.of == "good, random:good"


def test_d90_that_the_smallest_d_reaches_may_be_less_and_one_that_none_reaches_is_more():
    rows = [
        *searched("m", "full", {None: 0.9}),
        *searched("m", "v DID", {10: 0.85, 100: 0.86}),
        *searched("m", "w SAID", {100: 0.7, 1000: 0.75}),
    ]
    table = d90(rows, BARS).tables[0]
    assert "| m | v DID | ≤ 10 (2 seeds alike) |" in table
    assert "| m | w SAID | > 1,000 (2 seeds alike) |" in table


def test_a_d_counts_with_the_best_of_its_learning_rates():
    rows = [
        *searched("m", "full", {None: 0.9}),
        *searched("m", "v DID", {10: 0.85}, seeds=1, lr=3.0),  # with seed 0 alone
        *searched("m", "v DID", {10: 0.7, 100: 0.82}, lr=1.0),
        *searched("m", "v DID", {100: None}, lr=3.0),
    ]
    assert "| m | v DID | ≤ 10 (≤ 10, 100) |" in d90(rows, BARS).tables[0]


def test_without_a_full_fine_tuning_there_is_no_bar():
    rows = [*searched("m", "full", {None: None}), *searched("m", "head", {None: 0.6})]
    assert "diverged everywhere" in d90(rows, BARS).sentences[0]
    rows += searched("n", "full", {None: 0.8})
    assert d90(rows, BARS).sentences


def test_dimensions_are_compared_seed_by_seed():
    needed = lambda *ds: {s: d if isinstance(d, Needed) else Needed(d) for s, d in enumerate(ds)}
    text = fewer_text(needed(10, 20, 100), needed(100, 200, 100))
    assert text.startswith("fewer with 2, as many with 1 of 3 seeds, by a factor of 4.64 (95 %: ")
    assert fewer_text(needed(0, 10), needed(100, 10)) == "fewer with 1, as many with 1 of 2 seeds, by a factor of 1"
    beyond = Needed(None, most=1000)
    assert fewer_text(needed(10), needed(beyond)) == "fewer with 1 of 1 seed"  # how many times fewer is not known
    assert fewer_text(needed(beyond), needed(Needed(10, least=True))) == "more with 1 of 1 seed"
    assert fewer_text({}, needed(10)) == ""
    assert needed_text(needed(100, Needed(10, least=True), beyond)) == "100 (100, ≤ 10, > 1,000)"
    assert short_name("random:made:tiny") == "random:tiny"
    assert short_name("made:tiny@12") == "tiny, step 12"
    assert short_name("runs/a/kept/step-3") == "kept/step-3"


def test_growth_compares_the_first_state_that_reaches_a_bar_with_the_last():
    made = {"parameters": 1000, "held_out_loss": 3.0}
    rows = [
        {"cell": "p", "model": "made:mini", "kept": [5], "steps": 10, **made},
        {"cell": "q", "model": "made:tiny", "kept": [], "steps": 10, **made, "parameters": 5000},
    ]
    for model, full, reached in (
        ("random:made:mini", 0.5, {10: 0.3, 100: 0.46}),
        ("made:mini@5", 0.8, {100: 0.6, 1000: 0.75}),
        ("made:mini", 0.85, {10: 0.7, 100: 0.78}),
        ("random:made:tiny", 0.6, {10: 0.55}),
        ("made:tiny", 0.86, {10: 0.8, 100: 0.8}),
    ):
        rows += [*searched(model, "full", {None: full}), *searched(model, "v DID", reached)]
    result = growth(rows, {**BARS, "model": "made:mini", "corpus": "tweets"})
    said = " ".join(result.sentences)
    assert (
        "at the bar of tiny (77.4 ± 0.0 %): step 0: full fine-tuning falls short with 2 of 2 seeds; step 5: > 1,000 "
        "(2 seeds alike); step 10: 100 (2 seeds alike)." in said
    )
    assert "Step 10, against step 5, the first that reaches this bar: fewer with 2 of 2 seeds." in said
    assert "tiny against mini: fewer with 2 of 2 seeds." in said
    assert "0.001 M parameters" in result.of


# ---- subspaces


def test_random_directions_are_of_the_width_of_their_own_matrix():
    kinds = {"q_proj": [20, 20], "v_proj": [20, 10]}
    grid = lambda: {side: {kind: [[0.5, 0.5], [0.5, 0.5]] for kind in kinds} for side in "AB"}
    factor = {"factor": 2.0, "change": 1.0, "along_change": 0.5, "along_own": 1.0, "along_random": 0.1}
    spectra = {f"blocks.0.{kind}": {"change": [3.0, 1.0], "before": [2.0, 2.0]} for kind in kinds}
    rows = [
        {
            "cell": str(seed),
            "seed": seed,
            "accuracy": 0.8,
            "runs": [["lora:2", 3e-3, 0.7 + 0.1 * seed], ["full", 3e-4, 0.8]],
            "shapes": kinds,
            "phi_ranks": grid(),
            "phi_starts": grid(),
            "amplification": [
                {"rank": rank, "layer": f"blocks.0.{kind}", **factor, "factor": 2.0 + seed}
                for rank in (2, 4, 0)
                for kind in kinds
            ],
            "spectra": spectra,
        }
        for seed in range(2)
    ]
    rows.append({"cell": "2", "seed": 2, "accuracy": None})  # diverged
    said = " ".join(subspaces(rows, {"small": 2, "large": 4}).sentences)
    assert "LoRA r=2 at 0.003 (75.0 ± 7.1 %), Full fine-tuning at 0.0003 (80.0 ± 0.0 %)." in said
    assert said.count("Random ones in 20 dimensions have about 0.050 and 0.20.") == 3
    assert said.count("Random ones in 10 dimensions have about 0.100 and 0.40.") == 1  # v_proj writes into 10
    assert "is 2.5 ± 0.7 times what W does" in said
    assert "in 50.0 ± 0.0 % of its singular values" in said

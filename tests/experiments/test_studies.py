"""The studies: what they compute where the answer is known, and that each runs, resumes and is told on a tiny model."""

import contextlib
import dataclasses
import signal

import numpy as np
import pytest
from folders import write_model, write_task
from tiny import disturb, logits, tiny_model

from minipeft import cli
from minipeft.errors import UserError
from minipeft.experiments.cell import Settings
from minipeft.experiments.studies import STUDIES, Lab, Plan, Study, run_study
from minipeft.experiments.studies.adapters import switch_off
from minipeft.experiments.studies.d90 import RANDOM, Variant, search, start
from minipeft.experiments.studies.data_size import passes
from minipeft.experiments.studies.frame import Job
from minipeft.experiments.studies.ranks import TARGETS, at_budget
from minipeft.experiments.studies.subspaces import amplification, change_of, lora_layers, similarity, spectrum
from minipeft.files import read_lines
from minipeft.peft import AdapterConfig, LoraConfig, get_peft_model
from minipeft.report.studies import WRITERS, write_study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    model, task = write_model(folder / "model"), write_task(folder / "task.jsonl")
    return Settings(str(model), str(task), 32, 20, 1, 16, 16, workers=1)


# ---- subspaces


def orthonormal(d, n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, n)))[0]


def test_phi_of_the_same_directions_is_one_and_of_orthogonal_ones_zero():
    U = orthonormal(20, 8)
    same = similarity(U[:, :4], U[:, :4])
    np.testing.assert_allclose(np.diag(same), 1, atol=1e-12)
    np.testing.assert_allclose(same, 1, atol=1e-12)  # the smaller of two nested spans lies in the larger
    np.testing.assert_allclose(similarity(U[:, :4], U[:, 4:]), 0, atol=1e-12)


def test_phi_depends_on_the_spans_alone_and_is_the_mean_squared_cosine():
    U, V = orthonormal(30, 5, 1), orthonormal(30, 7, 2)
    turn = orthonormal(5, 5, 3)
    assert similarity(U @ turn, V)[-1, -1] == pytest.approx(similarity(U, V)[-1, -1])
    cosines = np.linalg.svd(U.T @ V, compute_uv=False)
    assert similarity(U, V)[-1, -1] == pytest.approx((cosines**2).mean())
    many = [similarity(orthonormal(50, 4, 2 * s), orthonormal(50, 10, 2 * s + 1))[-1, -1] for s in range(200)]
    assert np.mean(many) == pytest.approx(10 / 50, rel=0.05)  # random ones: max(i, j) / d


def test_the_amplification_of_a_planted_change():
    U, V = orthonormal(20, 20, 4), orthonormal(16, 16, 5)
    W = U[:, :16] @ np.diag(np.arange(16, 0, -1.0)) @ V.T
    planted = 50 * U[:, 10:12] @ V[:, 10:12].T  # where W's singular values are 6 and 5
    found = amplification(W, planted, 2)
    assert found["change"] == pytest.approx(50 * 2**0.5)
    assert found["along_change"] == pytest.approx((36 + 25) ** 0.5)
    assert found["factor"] == pytest.approx(50 * 2**0.5 / 61**0.5, rel=1e-4)
    assert found["along_own"] == pytest.approx((16**2 + 15**2) ** 0.5)
    assert amplification(W, W, 2)["factor"] == pytest.approx(1)
    np.testing.assert_allclose(spectrum(planted)[:3], [50, 50, 0], atol=1e-9)


def test_the_change_of_lora_is_what_merging_adds():
    model = get_peft_model(tiny_model(), LoraConfig(r=2, lora_alpha=4))
    disturb(model)
    layers = lora_layers(model)
    assert set(layers) == {f"blocks.{i}.{kind}" for i in range(3) for kind in ("q_proj", "v_proj")}
    changes = {name: change_of(layer) for name, layer in layers.items()}
    before = {name: layer.linear.weight.data.copy() for name, layer in layers.items()}
    model.merge_adapter()
    for name, layer in layers.items():
        np.testing.assert_allclose(layer.linear.weight.data - before[name], changes[name], atol=1e-6)


# ---- adapters


def test_switched_off_everywhere_adapters_leave_the_base_and_the_rest_leave_each_other_alone():
    base = logits(tiny_model())
    model = get_peft_model(tiny_model(), AdapterConfig(bottleneck=4))
    for parameter in model.model.head.parameters():
        parameter.requires_grad = False
    disturb(model, std=0.5)
    whole = logits(model)
    switch_off(model.model, range(3))
    np.testing.assert_array_equal(logits(model), base)
    switch_off(model.model, range(1, 2))
    one = logits(model)
    assert not np.allclose(one, whole)
    assert not np.allclose(one, base)
    switch_off(model.model, range(0))
    np.testing.assert_array_equal(logits(model), whole)
    with pytest.raises(UserError, match="no adapter"):
        switch_off(tiny_model(), range(1))


# ---- budgets and sizes


def test_a_budget_is_spent_on_any_choice_of_matrices():
    d, ff = 384, 1536
    sizes = {"q": 1, "k": 1, "v": 1, "o": 1, "qk": 2, "qv": 2, "qkvo": 4}
    spent = {name: (sizes[name] * 2 * d if name != "all" else 4 * 2 * d + 2 * (d + ff)) * r for name, r in at_budget(8)}
    assert spent.keys() == TARGETS.keys()
    assert all(abs(parameters / (8 * 2 * d) - 1) < 0.13 for parameters in spent.values())
    assert all(parameters == 8 * 2 * d for name, parameters in spent.items() if name != "all")


@pytest.mark.parametrize(("rows", "epochs"), [(100, 23), (1000, 3), (3000, 1), (10_000, 1)])
def test_small_data_is_passed_more_often_for_the_same_steps(rows, epochs):
    assert passes(rows, 32, 90) == epochs
    assert passes(rows, 32, 90) * -(-rows // 32) >= 90


# ---- the search


@pytest.mark.parametrize("true", [10, 20, 100, 5000, None])
def test_the_search_finds_the_smallest_d_and_asks_for_few(true, settings):
    grid = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    lab = Lab(Plan(settings, 1, {"lr": 1e-2}))
    asked, row = [], None

    def whole():
        asked.append((yield from search(lab, settings.model, Variant("fastfood", False), 0, grid, 0.8, 0.8)))

    jobs = whole()
    with contextlib.suppress(StopIteration):
        while True:
            asked.append(int(jobs.send(row).name.split("d=")[1].split(",")[0]))
            row = {"accuracy": 0.9 if true is not None and asked[-1] >= true else 0.5}
    *tried, found = asked
    assert found == true
    assert len(tried) == len(set(tried)) <= 4


def test_a_random_start_has_the_shape_and_nothing_of_the_weights(settings):
    lab = Lab(Plan(settings, 1, {}))
    trained, fresh = start(lab, settings.model, 0), start(lab, RANDOM + settings.model, 0)
    shapes = lambda model: {name: p.shape for name, p in model.named_parameters()}
    assert shapes(trained) == shapes(fresh)
    a, b = trained.blocks[0].q_proj.weight.numpy().ravel(), fresh.blocks[0].q_proj.weight.numpy().ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.2
    assert b.std() == pytest.approx(0.02, rel=0.2)


# ---- the frame


def counting(made):
    """A study whose second job depends on what its first found."""

    def job(name, **found):
        return Job(name, lambda _: made.append(name[0]) or found)

    def jobs(lab):
        for seed in lab.seeds:
            row = yield job(f"a{seed}", seed=seed, value=seed + 3)
            for i in range(row["value"]):
                yield job(f"b{seed}.{i}", seed=seed)

    plan = Plan(Settings(), 1, {})
    return Study("counting", "?", plan, plan, jobs)


def test_jobs_follow_what_was_found_and_none_is_done_twice(settings, tmp_path):
    made = []
    study = counting(made)
    run_study(study, Plan(settings, 1, {}), tmp_path / "run")
    assert made == ["a", "b", "b", "b"]
    run_study(study, Plan(settings, 2, {}), tmp_path / "run")  # one seed more
    assert made[4:] == ["a", "b", "b", "b", "b"]
    assert len(read_lines(tmp_path / "run" / "cells.jsonl")) == 9
    other = dataclasses.replace(settings, epochs=2)
    with pytest.raises(UserError, match="epochs=1; you ask for epochs=2"):
        run_study(study, Plan(other, 2, {}), tmp_path / "run")
    elsewhere = dataclasses.replace(settings, backend="numpy", workers=2)
    run_study(study, Plan(elsewhere, 2, {}), tmp_path / "run")  # may be finished on another machine
    assert len(made) == 9


def test_a_stopped_study_goes_on_with_the_same_cells(settings, tmp_path):
    study = STUDIES["topk"]
    plan = Plan(settings, 1, {"rates": [1e-3]})

    def stop(progress):
        if progress.done == 2 and progress.row is None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_study(study, plan, tmp_path / "stopped", stop)
    assert len(read_lines(tmp_path / "stopped" / "cells.jsonl")) == 2
    for name in ("stopped", "whole"):
        run_study(study, plan, tmp_path / name)
    timeless = lambda name: [
        {k: v for k, v in row.items() if k not in ("train_seconds", "step_ms")}
        for row in read_lines(tmp_path / name / "cells.jsonl")
    ]
    assert timeless("stopped") == timeless("whole")


DRAWN = ("adapters", "rates")  # the others' figures are made and not drawn, which takes a second each


def sketch(figure, path):
    """In the place of `save_figure`."""
    assert figure.axes
    path.parent.mkdir(exist_ok=True)
    for kind in ("png", "svg"):
        path.with_name(f"{path.name}.{kind}").touch()


SMALL = {
    "topk": {"rates": [1e-3, 1e-2]},
    "subspaces": {"small": 2, "large": 4},
    "adapters": {"ablated": 4, "widths": [1, 4]},
    "rates": {"rates": [1e-3, 1e-2], "methods": ["full", "lora:2"]},
    "ranks": {"budget": 8, "targets": ["qv"], "ranks": [1, 4]},
    "data-size": {"sizes": [16, 32], "steps": 2, "methods": ["full", "lora:2"]},
    "d90": {"variants": [["fastfood", False], ["sparse", True]], "grid": [10, 100], "lr": 1e-2, "full_rates": [1e-3]},
}


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "forgetting"])
def test_every_study_runs_and_is_told_with_its_figures(name, settings, tmp_path, monkeypatch):
    if name not in DRAWN:
        monkeypatch.setattr("minipeft.report.studies.save_figure", sketch)
    study, small = STUDIES[name], dict(SMALL.get(name, {}))
    if name == "d90":
        small |= {"models": [settings.model, RANDOM + settings.model], "share": 0.9}
    run_study(study, Plan(settings, 2, small), tmp_path / "run")
    text = write_study(tmp_path / "run").read_text()
    assert text.startswith(f"# {study.question}")
    assert "2 seeds; ± is the sample standard deviation" in text
    assert text.count("\n- ") >= 2
    drawn = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert drawn == {path.stem for path in (tmp_path / "run" / "figures").glob("*.svg")}
    assert drawn
    assert all(f"figures/{stem}.png" in text for stem in drawn)


def test_every_study_has_a_writer_and_a_quick_plan():
    assert STUDIES.keys() == WRITERS.keys()
    for study in STUDIES.values():
        assert study.quick.choices.keys() == study.full.choices.keys()
        assert study.full.seeds >= 3


@pytest.mark.parametrize("corpus", ["own", "shakespeare"])
def test_forgetting_on_a_small_decoder(corpus, asset, tmp_path):
    for name in ("glassllm", "sarcasm", "shakespeare"):
        asset(name)
    plan = Plan(
        Settings("glassllm", "sarcasm", 64, 32, 1, workers=1),
        1,
        {
            "methods": ["full", "head"],
            "corpus": corpus,
            "tokens": 600,
            "context": 64,
            "rates": [1e-3],
        },
    )
    run_study(STUDIES["forgetting"], plan, tmp_path / "run")
    rows = {row["cell"].split(",")[0]: row for row in read_lines(tmp_path / "run" / "cells.jsonl")}
    assert rows["head"]["loss"] == rows["before"]["loss"]  # nothing of the body was trained
    assert abs(rows["full"]["loss"] - rows["before"]["loss"]) > 1e-4
    if corpus == "own":
        assert rows["full"]["loss"] > rows["before"]["loss"]  # a divergence is positive
        assert rows["before"]["tokens"] >= 600
    assert "nats a token" in write_study(tmp_path / "run").read_text()


def test_the_command_lists_the_studies_and_refuses_what_it_does_not_know(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["study"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in STUDIES)
    for arguments, says in (
        (["study", "topkk"], "Did you mean 'topk'"),
        (["study", "topk", "--models", "minilm"], "--models is for d90"),
        (["study", "topk", "--corpus", "shakespeare"], "--corpus is for forgetting"),
        (["study", "topk", "--seeds", "0"], "1 seed or more"),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert says in capsys.readouterr().err


def test_a_folder_of_something_else_has_no_result(tmp_path):
    with pytest.raises(UserError, match="holds no study"):
        write_study(tmp_path)

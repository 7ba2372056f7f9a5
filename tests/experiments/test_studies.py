"""The studies: what they compute where the answer is known, and that each runs, resumes and is told on a tiny model."""

import contextlib
import dataclasses
import shutil
import signal

import numpy as np
import pytest
from folders import WORDS, write_model, write_task
from tiny import disturb, logits, tiny_model

from minipeft import cli
from minipeft.errors import Diverged, UserError
from minipeft.experiments.cell import Settings
from minipeft.experiments.studies import STUDIES, Lab, Plan, Study, run_study
from minipeft.experiments.studies.adapters import switch_off
from minipeft.experiments.studies.bases import RANDOM, place
from minipeft.experiments.studies.data_size import passes
from minipeft.experiments.studies.dimension import BARS, Variant, bar_model, search, start, targets
from minipeft.experiments.studies.frame import OWN, Job, better_rate
from minipeft.experiments.studies.ranks import TARGETS, at_budget
from minipeft.experiments.studies.subspaces import amplification, change_of, lora_layers, similarity, spectrum
from minipeft.files import read_lines
from minipeft.peft import AdapterConfig, LoraConfig, get_peft_model
from minipeft.report.studies import WRITERS, write_study
from minipeft.training import Trainer

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
@pytest.mark.parametrize("good", [0.003, 0.01])
def test_the_search_finds_the_smallest_d_at_any_of_the_rates_and_asks_for_few(true, good, settings, tmp_path):
    grid = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    lab = Lab(Plan(settings, 1, {"rates": [0.003, 0.01]}), tmp_path)
    asked, row = [], None

    def whole():
        asked.append((yield from search(lab, settings.model, Variant("fastfood", False), 0, grid, 0.8, 0.8)))

    jobs = whole()
    with contextlib.suppress(StopIteration):
        while True:
            d, lr = jobs.send(row).name.removesuffix(", seed 0").split("d=")[1].split(" at ")
            asked.append((int(d), float(lr)))
            row = {"accuracy": 0.9 if true is not None and int(d) >= true and float(lr) == good else 0.5}
    *tried, found = asked
    assert found == true
    assert len(tried) == len(set(tried))
    assert len({d for d, _ in tried}) <= 4
    for d, lr in tried:  # the second rate only where the first has not reached the bar
        assert lr == 0.003 or (d, 0.003) in tried
        assert (d, 0.01) not in tried or good == 0.01 or true is None or d < true


def test_bars_are_of_the_model_itself_of_the_best_and_of_random_weights_and_only_within_reach():
    full = {("good", 0): 0.9, ("random:good", 0): 0.6, ("good@5", 0): 0.7, ("good", 1): 0.8}
    assert [bar_model("good@5", bar, full) for bar in BARS] == ["good@5", "good", "random:good"]
    assert bar_model("random:good", "random", full) == "random:good"
    assert bar_model("other", "random", full) is None
    bars = lambda model, head: sorted(round(bar, 3) for bar in targets(model, 0, BARS, full, {(model, 0): head}, 0.9))
    assert bars("good", 0.5) == [0.54, 0.81]
    assert bars("good", 0.54) == [0.81]  # the classifier alone reaches the other
    assert bars("good@5", 0.5) == [0.54, 0.63]  # its own full fine-tuning does not reach 0.81
    assert bars("random:good", 0.55) == []
    assert targets("good@5", 1, BARS, full, {}, 0.9) == set()  # diverged with this seed


def test_a_rate_that_diverges_is_never_the_better_one_and_a_method_that_always_does_gets_the_lowest():
    trial = lambda lr, accuracy, loss: {"lr": lr, "accuracy": accuracy, "loss": loss}
    assert better_rate("full", [trial(1.0, 0.7, 0.5), trial(2.0, 0.9, float("nan")), trial(3.0, None, None)]) == 1.0
    assert better_rate("full", [trial(3.0, None, None), trial(1.0, None, None)]) == 1.0


def test_a_random_start_has_the_shape_and_nothing_of_the_weights(settings, tmp_path):
    lab = Lab(Plan(settings, 1, {}), tmp_path)
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


def test_a_folder_holds_one_plan_on_one_set_of_data(settings, tmp_path):
    task = write_task(tmp_path / "task.jsonl")
    own, study = dataclasses.replace(settings, task=str(task)), counting([])
    choices = {"rates": [0.1, 1.0], "text": ("a", "b")}
    run_study(study, Plan(own, 1, choices), tmp_path / "run")
    run_study(study, Plan(own, 1, {"rates": [0.1, 1.0], "text": ["a", "b"]}), tmp_path / "run")
    for changed in ({"rates": [0.1]}, {"rates": [1.0, 0.1]}):
        with pytest.raises(UserError, match=r"rates=\[0.1, 1.0\]; you ask for rates=\["):
            run_study(study, Plan(own, 1, {**choices, **changed}), tmp_path / "run")
    write_task(task, 300)
    with pytest.raises(UserError, match="data="):
        run_study(study, Plan(own, 1, choices), tmp_path / "run")


def test_a_wrong_model_fails_before_anything_is_made(settings, tmp_path):
    for name in ("nope", RANDOM + "nope", "made:huge"):
        with pytest.raises(UserError, match="Unknown"):
            run_study(counting([]), Plan(settings, 1, {"models": [settings.model, name]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_models_have_their_places(tmp_path):
    assert place(tmp_path, "random:minilm") == "minilm"
    assert place(tmp_path, "made:tiny") == str(tmp_path / "models" / "tiny" / "model")
    assert place(tmp_path, "random:made:tiny@12") == str(tmp_path / "models" / "tiny" / "kept" / "step-12")


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


SEARCHED = {
    "variants": [["fastfood", False], ["sparse", True]],
    "random_variants": [["fastfood", False]],
    "grid": [10, 100],
    "share": 0.9,
    "bars": BARS,
    "rates": [1e-3, 1e-2],
    "full_rates": [1e-3],
    "head_rates": [1e-2],
    "random_rates": [1e-2],
}
MADE_HERE = {"vocab_size": 280, "context": 16, "pretrain_epochs": 1}
SMALL = {
    "topk": {"rates": [1e-3, 1e-2]},
    "subspaces": {"small": 2, "large": 4, "rates": [1e-3, 1e-2]},
    "adapters": {"ablated": 4, "widths": [1, 4], "rates": [1e-3, 1e-2]},
    "rates": {"rates": [1e-3, 1e-2], "methods": ["full", "lora:2"]},
    "ranks": {"budget": 8, "targets": ["qv"], "ranks": [1, 4], "rates": [1e-3, 1e-2]},
    "data-size": {"sizes": [16, 32], "steps": 2, "methods": ["full", "lora:2"], "factors": [1, 3]},
    "d90": SEARCHED,
    "growth": {**SEARCHED, **MADE_HERE, "sizes": ["micro", "mini"], "keep": 2},
    "forgetting": {**MADE_HERE, "methods": ["full", "lora:2"], "tokens": 400, "rates": [1e-3, 1e-2]},
}


def write_text(path):
    """Three hundred lines of some words, as .txt to pre-train on."""
    rng = np.random.default_rng(5)
    path.write_text("".join(" ".join(rng.choice(WORDS, 6)) + "\n" for _ in range(300)))
    return path


def plan_of(name, settings, folder):
    """A plan of two seeds that takes seconds."""
    small = dict(SMALL[name])
    if name == "d90":
        small["models"] = [settings.model, RANDOM + settings.model]
    if name in ("growth", "forgetting"):
        small["corpus"] = str(write_text(folder / "text.txt"))
        settings = dataclasses.replace(settings, model="made:micro")
    return Plan(settings, 2, small)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_and_is_told_with_its_figures(name, settings, tmp_path, monkeypatch):
    if name not in DRAWN:
        monkeypatch.setattr("minipeft.report.studies.save_figure", sketch)
    study = STUDIES[name]
    run_study(study, plan_of(name, settings, tmp_path), tmp_path / "run")
    text = write_study(tmp_path / "run").read_text()
    assert text.startswith(f"# {study.question}")
    assert "2 seeds.\n" in text
    assert text.count("± is the sample standard deviation over seeds; the rows that judge are the same for all") == 1
    assert f"judged on 20 {study.judged} rows" in text
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
        own = {"study", "data", "text", "seeds", "validation_size", *dataclasses.asdict(study.full.settings)}
        assert not own & study.full.choices.keys()  # config.json holds both


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_in_which_everything_diverges_says_so(name, settings, tmp_path, monkeypatch):
    def diverge(*_):
        raise Diverged("The loss is nan.")

    class Diverging(Trainer):
        run = diverge

    monkeypatch.setattr("minipeft.experiments.studies.frame.run_cell", diverge)
    monkeypatch.setattr("minipeft.experiments.studies.dimension.Trainer", Diverging)
    run_study(STUDIES[name], plan_of(name, settings, tmp_path), tmp_path / "run")
    assert "has diverged" in write_study(tmp_path / "run").read_text()


def test_growth_follows_a_model_from_random_weights_to_its_last_step(settings, tmp_path):
    study, plan = STUDIES["growth"], plan_of("growth", settings, tmp_path)
    run_study(study, plan, tmp_path / "run")
    rows = read_lines(tmp_path / "run" / "cells.jsonl")
    made = {row["model"]: row for row in rows if "kept" in row}
    assert made["made:micro"]["kept"] == [made["made:micro"]["steps"] >> 2, made["made:micro"]["steps"] >> 1]
    assert made["made:mini"]["kept"] == []
    kept = [f"made:micro@{step}" for step in made["made:micro"]["kept"]]
    full = list(dict.fromkeys(row["model"] for row in rows if row.get("what") == "full"))
    assert full == [RANDOM + "made:micro", *kept, "made:micro", RANDOM + "made:mini", "made:mini"]
    shutil.rmtree(tmp_path / "run" / "models" / "mini")
    with pytest.raises(UserError, match="is gone"):
        run_study(study, plan, tmp_path / "run")


def test_forgetting_measures_what_a_method_switched_off_makes_of_the_old_text(settings, tmp_path):
    plan = plan_of("forgetting", settings, tmp_path)
    methods = ["full", "lora:2", "adapter:4", "intrinsic:20"]
    run_study(
        STUDIES["forgetting"], dataclasses.replace(plan, choices={**plan.choices, "methods": methods}), tmp_path / "run"
    )
    rows = {row["cell"]: row for row in read_lines(tmp_path / "run" / "cells.jsonl")}
    before = rows["before"]["loss"]
    assert rows["before"]["tokens"] == 400 // 15 * 15  # in windows of the context less one
    assert "loss_off" not in rows["full at 0.001, seed 0"]
    for method in methods[1:]:
        assert rows[f"{method} at 0.001, seed 0"]["loss_off"] == before
        assert rows[f"{method} at 0.001, seed 0"]["loss"] != before
        own = {row["lr"] for row in rows.values() if row.get("own_rate") and row["cell"].startswith(f"{method} at")}
        assert len(own) == 1
    text = write_study(tmp_path / "run").read_text()
    assert "the loss is the one from before to all six decimals, in 12 cells" in text
    assert "no head for masked words" in text


@pytest.mark.parametrize("corpus", [OWN, "shakespeare"])
def test_forgetting_on_a_small_decoder(corpus, asset, tmp_path):
    for name in ("glassllm", "sarcasm", "shakespeare"):
        asset(name)
    plan = Plan(
        Settings("glassllm", "sarcasm", 64, 32, 1, workers=1),
        1,
        {
            "methods": ["full", "head"],
            "corpus": corpus,
            "tokens": 640,
            "context": 64,
            "rates": [1e-3],
        },
    )
    run_study(STUDIES["forgetting"], plan, tmp_path / "run")
    rows = {row["cell"].split(",")[0].split(" at")[0]: row for row in read_lines(tmp_path / "run" / "cells.jsonl")}
    assert rows["head"]["loss"] == rows["before"]["loss"]  # nothing of the body was trained
    assert abs(rows["full"]["loss"] - rows["before"]["loss"]) > 1e-4
    if corpus == OWN:
        assert rows["full"]["loss"] > rows["before"]["loss"]  # a divergence is positive
        assert rows["before"]["tokens"] >= 640
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
        (["study", "growth", "--model", "glassllm"], "pre-trains its own models"),
        (["study", "d90", "--models", " , "], "names no model"),
        (["study", "d90", "--models", "nope, glassllm"], "Unknown model 'nope'"),
        (["study", "topk", "--seeds", "0"], "1 seed or more"),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert says in capsys.readouterr().err


def test_the_command_takes_models_with_blanks_and_the_old_text_of_a_model_is_its_own(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("minipeft.experiments.studies.run_study", lambda study, plan, *_: asked.append(plan))
    monkeypatch.setattr("minipeft.report.studies.write_study", lambda folder: write_task(tmp_path / "result.md", 1))
    for arguments in (
        ["d90", "--models", f" {settings.model}, random:{settings.model} "],
        ["forgetting", "--model", settings.model],
        ["forgetting", "--model", settings.model, "--corpus", "tweets"],
        ["forgetting", "--model", "made:mini"],
    ):
        with contextlib.suppress(SystemExit):
            cli.main(["study", *arguments])
    assert asked[0].choices["models"] == [settings.model, RANDOM + settings.model]
    assert [plan.choices["corpus"] for plan in asked[1:]] == [OWN, "tweets", "shakespeare"]


def test_a_folder_of_something_else_has_no_result(tmp_path):
    with pytest.raises(UserError, match="holds no study"):
        write_study(tmp_path)

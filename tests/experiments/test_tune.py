"""The search for learning rates: the same for all, on validation rows alone, and kept."""

import csv
import json
import signal

import pytest
from folders import write_model, write_task

from minipeft.data import load_task
from minipeft.errors import UserError
from minipeft.experiments.compare import Settings, compare
from minipeft.experiments.methods import parse_methods
from minipeft.experiments.problems import Classes
from minipeft.experiments.tune import GRID, best_rate, tune
from minipeft.files import read_lines
from minipeft.report.page import write_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    task = write_task(folder / "task.jsonl")
    return Settings(str(write_model(folder / "model")), str(task), 32, 20, 1, 16, 16, workers=1)


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    told = []
    compare(settings, parse_methods("full,lora:2"), 2, folder, told.append, tuned=True)
    return folder, told


def test_every_method_has_the_same_trials_and_trains_with_its_best(run):
    folder, told = run
    trials = read_lines(folder / "tuning.jsonl")
    assert [(t["method"], t["lr"]) for t in trials] == [(m, lr) for m in ("full", "lora:2") for lr in GRID]
    assert [p.row for p in told if p.trial and p.row is not None] == trials
    with (folder / "results.csv").open() as file:
        rates = {row["method"]: float(row["lr"]) for row in csv.DictReader(file)}
    for method, name in (("full", "full"), ("lora", "lora:2")):
        assert rates[method] == best_rate(name, [t for t in trials if t["method"] == name])
    assert json.loads((folder / "config.json").read_text())["tune"]["rates"] == list(GRID)


def test_the_search_never_sees_the_test_rows(settings, tmp_path, monkeypatch):
    task = load_task(settings.task)
    seen = []
    head = type(task).head
    monkeypatch.setattr(type(task), "head", lambda self, split, n: seen.append(split) or head(self, split, n))
    tune(settings, Classes(task), parse_methods("head"), tmp_path)
    assert sorted(seen) == ["train", "validation"]
    texts = [{row.text for row in part} for part in (task.train, task.validation, task.test)]
    assert not texts[0] & texts[1]
    assert not texts[1] & texts[2]


def test_a_search_goes_on_where_it_was_stopped(settings, run, tmp_path):
    def stop(progress):
        if progress.trial and progress.index == 3 and progress.row is None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        compare(settings, parse_methods("full,lora:2"), 2, tmp_path / "run", stop, tuned=True)
    assert len(read_lines(tmp_path / "run" / "tuning.jsonl")) == 3
    compare(settings, parse_methods("full,lora:2"), 2, tmp_path / "run", tuned=True)
    for name in ("tuning.jsonl", "predictions.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (run[0] / name).read_bytes()


def test_the_predictions_of_every_cell_are_kept_and_give_its_accuracy(run):
    folder, _ = run
    kept = {(p["method"], p["setting"], p["seed"]): p for p in read_lines(folder / "predictions.jsonl")}
    rows = read_lines(folder / "results.jsonl")
    assert len(rows) == len(kept) == 4
    for row in rows:
        cell = kept[row["method"], row["setting"], row["seed"]]
        right = sum(a == b for a, b in zip(cell["predictions"], cell["labels"], strict=True))
        assert right / len(cell["labels"]) == pytest.approx(row["accuracy"], abs=1e-6)


def test_a_tuned_and_an_untuned_run_do_not_share_a_folder(settings, run):
    with pytest.raises(UserError, match="tune="):
        compare(settings, parse_methods("full"), 1, run[0])


def test_the_page_says_what_was_tried_and_how_sure_it_is(run):
    text = write_page(run[0]).read_text()
    assert "The learning rates that were tried" in text
    assert "How sure the differences are" in text
    assert "--tune" in text


def test_the_best_rate_is_of_the_best_accuracy_then_of_the_lowest_loss_and_never_diverged():
    trial = lambda lr, accuracy, loss: {"lr": lr, "accuracy": accuracy, "loss": loss}
    trials = [trial(1, 0.7, 0.6), trial(2, 0.8, 0.5), trial(3, 0.8, 0.4), trial(4, None, None)]
    assert best_rate("full", trials) == 3
    with pytest.raises(UserError, match="diverges at every"):
        best_rate("full", trials[3:])


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_a_rate_that_diverges_is_a_trial_too(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("minipeft.experiments.tune.GRID", (1e-3, 1e30))
    monkeypatch.setattr("minipeft.experiments.compare.GRID", (1e-3, 1e30))
    compare(settings, parse_methods("full"), 1, tmp_path / "run", tuned=True)
    good, bad = read_lines(tmp_path / "run" / "tuning.jsonl")
    assert good["loss"] is not None
    assert bad == {"method": "full", "lr": 1e30, "accuracy": None, "loss": None}

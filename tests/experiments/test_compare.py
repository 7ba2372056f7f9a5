"""The comparison as a whole, on a tiny model: what a row says, and that kills do not change it."""

import csv
import random
import signal
import subprocess
import sys

import pytest
from folders import write_model, write_task

from minipeft.errors import UserError
from minipeft.experiments.compare import Settings, compare
from minipeft.experiments.methods import parse_methods
from minipeft.experiments.single import evaluate_run, train_one

TIMES = ("train_seconds", "step_ms")
METHODS = "head,full,topk:1,adapter:4,lora:2,intrinsic:64"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_model(folder / "model"), write_task(folder / "task.jsonl")


def settings(world, **changes):
    options = {"train_size": 200, "test_size": 60, "epochs": 3, "batch_size": 8, "max_length": 16, **changes}
    return Settings(model=str(world[0]), task=str(world[1]), **options)


def read(path):
    with path.open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_row_for_every_method_and_seed_and_none_is_run_twice(world, tmp_path):
    specs = parse_methods(METHODS)
    rows = read(compare(settings(world, epochs=1), specs, 2, tmp_path / "run"))
    assert [(r["method"], r["seed"]) for r in rows] == [(s.family, str(seed)) for seed in (0, 1) for s in specs]
    log = (tmp_path / "run" / "results.jsonl").read_bytes()
    told = []
    again = read(compare(settings(world, epochs=1), specs, 2, tmp_path / "run", told.append))
    assert again == rows
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == log
    assert all(progress.row is not None for progress in told)
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_the_columns_say_what_they_should(world, tmp_path):
    rows = {
        r["method"]: r for r in read(compare(settings(world, epochs=1), parse_methods(METHODS), 1, tmp_path / "run"))
    }
    d, classes = 16, 2
    head = d * d + d + d * classes + classes
    number = lambda method, column: float(rows[method][column])
    assert number("head", "trainable_params") == d * classes + classes
    assert number("full", "trainable_params") == number("full", "total_params")
    for method in ("full", "topk", "adapter", "lora", "intrinsic"):
        assert number(method, "head_params") == head
        assert number(method, "head_params") + number(method, "method_params") == number(method, "trainable_params")
        assert number(method, "optimizer_mb") == pytest.approx(8e-6 * number(method, "trainable_params"), abs=1e-3)
        assert number(method, "saved_mb") == pytest.approx(4e-6 * number(method, "trainable_params"), abs=1e-3)
        assert number(method, "peak_mb") >= number(method, "activation_mb") - 0.1
    assert number("intrinsic", "method_params") == 64
    assert number("full", "activation_mb") > number("lora", "activation_mb") > number("topk", "activation_mb")
    assert number("full", "forward_gflop") == number("topk", "forward_gflop")
    assert number("full", "backward_gflop") > number("lora", "backward_gflop") > number("topk", "backward_gflop")
    assert all(0 <= number(method, "accuracy") <= 1 for method in rows)


def test_the_task_can_be_learnt(world, tmp_path):
    specs = parse_methods("full,lora:4", {"full": 1e-2, "lora": 1e-2})
    rows = read(compare(settings(world, epochs=8), specs, 1, tmp_path / "run"))
    full, lora = (float(row["accuracy"]) for row in rows)
    assert full > 0.9  # the larger class alone gives 0.63
    assert lora > 0.7


RUN = """
import os, signal, sys, threading
from pathlib import Path
from minipeft.experiments.compare import Settings, compare
from minipeft.experiments.methods import parse_methods
model, task, methods, out, seconds = sys.argv[1:]
if float(seconds):
    threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL)).start()
compare(Settings(model, task, 200, 60, 3, 8, 16), parse_methods(methods), 1, Path(out))
"""


@pytest.mark.slow
def test_killed_at_any_point_and_started_again_it_ends_with_the_same_results(world, tmp_path):
    def start(out, kill_after):
        arguments = [*world, METHODS, tmp_path / out, str(kill_after)]
        return subprocess.run(
            [sys.executable, "-c", RUN, *arguments], stderr=subprocess.DEVNULL, check=False
        ).returncode

    assert start("whole", 0) == 0
    rng = random.Random(5)
    statuses = [start("killed", rng.uniform(0.05, 0.6)) for _ in range(8)]
    assert statuses.count(-signal.SIGKILL) >= 3, statuses
    assert start("killed", 0) == 0
    assert read(tmp_path / "killed" / "results.csv") == read(tmp_path / "whole" / "results.csv")


def test_an_interrupt_leaves_a_run_that_goes_on(world, tmp_path):
    specs = parse_methods("full,lora:2")

    def stop_in_the_second(progress):
        if progress.index == 1 and progress.step == 30 and progress.row is None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        compare(settings(world), specs, 1, tmp_path / "run", stop_in_the_second)
    assert len((tmp_path / "run" / "results.jsonl").read_text().splitlines()) == 1
    steps = []
    resumed = compare(
        settings(world), specs, 1, tmp_path / "run", lambda p: steps.append(p.step) if not p.row else None
    )
    assert steps[0] == 31
    assert read(resumed) == read(compare(settings(world), specs, 1, tmp_path / "whole"))


def test_a_wrong_method_fails_before_anything_is_trained(world, tmp_path):
    with pytest.raises(UserError, match="this model has 2 blocks"):
        compare(settings(world), parse_methods("full,topk:9"), 1, tmp_path / "run")
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_train_one_keeps_what_was_trained_and_scores_it_again(world, tmp_path):
    for text in ("lora:2", "full", "intrinsic:64", "adapter:4", "topk:1", "head"):
        (spec,) = parse_methods(text)
        out = tmp_path / spec.family
        score = train_one(settings(world, epochs=1), spec, 0, out)
        assert evaluate_run(out) == score
        assert train_one(settings(world, epochs=1), spec, 0, out) == score

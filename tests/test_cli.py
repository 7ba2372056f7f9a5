"""The command line: what it makes, and that every mistake gives one clear line, a non-zero status, and loses nothing."""

import errno
import os
import re
import signal
import subprocess
import sys
import zipfile

import pytest
from folders import write_model, write_task

from minipeft.experiments.compare import Settings, compare
from minipeft.experiments.methods import parse_methods


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_model(folder / "model"), write_task(folder / "task.jsonl")


@pytest.fixture
def small(world):
    """The options of a quick comparison."""
    return ["compare", "--model", world[0], "--task", world[1], "--train-size", 32, "--test-size", 20, "--epochs", 1]


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_compare_writes_a_whole_run_folder(run, small, tmp_path):
    status, out, err = run(*small, "--methods", "full,lora:2", "--out", "run")
    assert status == 0, err
    assert "Full fine-tuning" in out
    assert "LoRA r=2" in out
    made = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"config.json", "results.jsonl", "results.csv", "report.html"} <= made
    for figure in ("accuracy_vs_parameters", "time_and_memory", "loss_curves"):
        assert {f"figures/{figure}.png", f"figures/{figure}.svg"} <= made


def test_train_and_evaluate_agree(run, world):
    options = ["--model", world[0], "--task", world[1], "--train-size", 32, "--test-size", 20, "--epochs", 1]
    status, out, err = run("train", "lora:2", *options, "--out", "kept")
    assert status == 0, err
    trained = re.search(r"accuracy [\d.]+ %, loss [\d.]+", out)[0]
    status, out, err = run("evaluate", "kept")
    assert status == 0, err
    assert trained in out


@pytest.mark.parametrize("command", ["compare", "train", "evaluate", "fetch", "doctor", "study"])
def test_help_has_an_example(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"minipeft {command}" in re.sub(r"\s+", " ", out)
    assert "Example" in out


def test_it_runs_as_a_module():
    result = subprocess.run([sys.executable, "-m", "minipeft", "--help"], capture_output=True, text=True, check=True)
    assert "compare" in result.stdout


MISTAKES = [
    (["--task", "sarcasmm"], "Did you mean 'sarcasm'"),
    (["--task", "missing.csv"], "missing.csv"),
    (["--task", "bad.csv"], r"bad\.csv.*line 3"),
    (["--model", "minilmm"], "Did you mean 'minilm'"),
    (["--methods", "lorra:8"], "Did you mean 'lora'"),
    (["--methods", "lora:2:q_prj"], "q_proj"),
    (["--methods", "lora:0"], "rank of LoRA is 1 or more"),
    (["--methods", "lora:17"], "rank 16 at most"),
    (["--methods", "topk:3"], "2 blocks"),
    (["--methods", "topk:-1"], "k is 0 to 2"),
    (["--methods", "adapter:0"], "width of 1 or more"),
    (["--methods", "intrinsic:0"], "1 dimension or more"),
    (["--methods", "intrinsic:999999"], "smaller d"),
    (["--methods", "intrinsic:20:said"], "choose d >"),
    (["--backend", "gpu"], "Unknown backend 'gpu'"),
    (["--lr", "lora=fast"], "FAMILY=NUMBER"),
    (["--lr", "lorra=1"], "Did you mean 'lora'"),
    (["--train-size", 100000], "has 2"),
    (["--train-size", 0], "from 1 to"),
    (["--epochs", 0], "epochs ≥ 1"),
    (["--seeds", 0], "1 seed or more"),
    (["--tune", "--lr", "full=1e-3"], "leave out --lr"),
]


@pytest.mark.parametrize(("options", "says"), MISTAKES, ids=[" ".join(map(str, o)) for o, _ in MISTAKES])
def test_a_mistake_is_one_clear_line_and_nothing_is_trained(run, small, tmp_path, options, says):
    (tmp_path / "bad.csv").write_text("text,label\na fine day,good\n,bad\n")
    status, out, err = run(*small, "--methods", "full", *options, "--out", "run")
    assert status == 1
    assert err.startswith("Error: ")
    assert err.count("\n") == 1, err
    assert re.search(says, err), err
    assert "Traceback" not in err + out
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_an_existing_folder_with_another_config_is_left_alone(run, small, tmp_path):
    assert run(*small, "--methods", "head", "--out", "run")[0] == 0
    before = snapshot(tmp_path / "run")
    status, _, err = run(*small, "--methods", "head", "--epochs", 2, "--out", "run")
    assert status == 1
    assert "epochs=1; you ask for epochs=2" in err
    assert "--out" in err
    assert err.count("\n") == 1
    assert snapshot(tmp_path / "run") == before


def test_a_truncated_checkpoint_is_refused_and_kept(run, world, tmp_path):
    settings = Settings(str(world[0]), str(world[1]), 64, 20, 3, 8, 16)

    def interrupt(progress):
        if progress.row is None and progress.step == 10:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        compare(settings, parse_methods("full"), 1, tmp_path / "run", interrupt)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    whole = checkpoint.read_bytes()
    options = ["--model", world[0], "--task", world[1], "--train-size", 64, "--test-size", 20, "--epochs", 3]
    options += ["--batch-size", 8, "--max-length", 16, "--methods", "full", "--out", "run"]
    for damaged in (whole[:-100], whole[:5], b"", b"x" * 100):
        checkpoint.write_bytes(damaged)
        status, _, err = run("compare", *options)
        assert status == 1
        assert checkpoint.name in err.replace("\n", "")
        assert "Delete" in err
        assert err.count("\n") == 1
        assert checkpoint.read_bytes() == damaged
    checkpoint.write_bytes(whole)
    assert run("compare", *options)[0] == 0


def test_a_hash_that_does_not_match_is_refused(run, tmp_path, monkeypatch):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "evals-3.0.1.post1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("evals/registry/data/sarcasm/samples.jsonl", "forged")
    monkeypatch.setenv("MINIPEFT_WHEELS", str(wheels))
    monkeypatch.setenv("MINIPEFT_CACHE", str(tmp_path / "cache"))
    status, _, err = run("fetch", "sarcasm")
    assert status == 1
    assert "sha256" in err.lower()
    assert err.count("\n") == 1
    assert not list((tmp_path / "cache").rglob("samples.jsonl"))


@pytest.mark.parametrize("survives", range(6))
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(run, small, tmp_path, monkeypatch, survives):
    """The disk is full from the n-th flush on: wherever that is, what was finished stays and the rerun completes."""
    command = [*small, "--methods", "head,lora:2", "--out", "run"]
    calls, sync = [], os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) > survives:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr("minipeft.files.os.fsync", full)
    status, _, err = run(*command)
    assert status == 1
    assert "No space left" in err
    assert err.count("\n") <= 3  # finished methods are told one a line
    assert not list((tmp_path / "run").rglob("*.tmp"))
    monkeypatch.setattr("minipeft.files.os.fsync", sync)
    status, out, err = run(*command)
    assert status == 0, err
    assert "LoRA r=2" in out


def test_an_interrupt_says_how_to_go_on(run, small, monkeypatch):
    monkeypatch.setattr("minipeft.experiments.compare.run_cell", lambda *a: signal.raise_signal(signal.SIGINT))
    status, _, err = run(*small, "--methods", "full", "--out", "run")
    assert status == 130
    assert "run the same command again" in err


def test_fetch_without_a_name_lists_the_assets(run):
    status, out, _ = run("fetch")
    assert status == 0
    for name in ("minilm", "sarcasm", "tweets", "privacy", "boolq", "bbc"):
        assert name in out


def test_doctor_says_what_is_there(run):
    status, out, _ = run("doctor")
    assert status == 0
    for what in ("NumPy", "backend", "BLAS", "workers", "cache"):
        assert what in out


def test_an_unknown_asset_is_an_error(run):
    status, _, err = run("fetch", "sarcasmus")
    assert status == 1
    assert "sarcasm" in err

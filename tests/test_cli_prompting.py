"""The commands of prompting: what they print, and that a mistake is one clear line."""

from __future__ import annotations

import re

import pytest
from decoders import tiny_decoder
from folders import write_task

ASK = ["--pattern", r"{text}\nis", "--words", "the,sat"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_decoder().save_pretrained(folder)
    return folder


@pytest.fixture
def run(run, tmp_path):
    """The fixture of the same name, in a folder that holds task.jsonl."""
    write_task(tmp_path / "task.jsonl")
    return run


@pytest.mark.parametrize("command", ["prompt", "prompt-vs-finetune"])
def test_help_has_an_example(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert re.search(rf"Example:\s+minipeft {command} ", out)


def test_prompt_scores_test_rows(run, model):
    options = ["--task", "task.jsonl", *ASK, "--shots", 1, "--test-size", 20]
    status, out, err = run("prompt", model, *options)
    assert status == 0, err
    assert "\nis the\n\n" in out or "\nis sat\n\n" in out  # the example, with its answer
    assert re.search(r"accuracy [\d.]+ % \(± [\d.]+, one standard error, 20 rows\)\nanswers: bad \d+, good \d+", out)
    assert run("prompt", model, *options)[1] == out
    assert run("prompt", model, *options, "--seed", 3)[1] != out


def test_prompt_classifies_a_text(run, model):
    status, out, err = run("prompt", model, "a fine day", "--task", "task.jsonl", *ASK, "--calibrate")
    assert status == 0, err
    assert "a fine day\nis ___" in out
    parts = [float(p) for p in re.findall(r"([\d.]+) %", out)]
    assert sum(parts) == pytest.approx(100, abs=0.11)
    assert parts == sorted(parts, reverse=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--task", "task.jsonl"], "give a pattern and its words"),
        (["--task", "task.jsonl", "--pattern", "{text}", "--words", "a,b,c"], "--words gives 3 words"),
        (["--task", "task.jsonl", *ASK, "--shots", -1], "--shots -1"),
        (["--task", "task.jsonl", *ASK, "--shots", 40, "--test-size", 9], "this model reads at most 48"),
        (["--task", "task.jsonl", *ASK, "--most-words", 0], "most_words=0"),
        (["--task", "task.jsonl", *ASK, "--test-size", 10**6], "rows were asked of the test split"),
    ],
)
def test_a_mistake_is_one_clear_line(run, model, options, says):
    status, _, err = run("prompt", model, *options)
    assert status == 1
    assert err.startswith("Error: ")
    assert err.count("\n") == 1, err
    assert says in err

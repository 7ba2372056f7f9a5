"""The commands of instructions: what they print and make, and that a mistake is one clear line."""

from __future__ import annotations

import json
import re

import pytest
from decoders import tiny_decoder

from minipeft.data.instruct import Instruction, read_instructions, write_instructions


@pytest.fixture
def run(run, tmp_path):
    """The fixture of the same name, beside a tiny model and a file of instructions."""
    tiny_decoder(scale=0.05).save_pretrained(tmp_path / "model")
    colours = ("red", "blue", "green", "grey")
    rows = [Instruction("say:", f"{colour} {i}", colour) for i in range(30) for colour in colours]
    write_instructions(tmp_path / "rows.jsonl", rows)
    return run


TRAIN = [
    *("train", "lora:2", "--model", "model", "--out", "run", "--workers", 1, "--max-length", 40),
    *("--train-size", 40, "--test-size", 10, "--epochs", 1),
]


def test_a_model_is_tuned_and_shows_what_it_answers(run, tmp_path):
    status, out, err = run(*TRAIN, "--task", "instruct:rows.jsonl")
    assert status == 0, err
    assert (
        len(re.findall(r"^(?:before|after) +[\d.]+ % word for word, log likelihood -[\d.]+ an output", out, re.M)) == 2
    )
    assert "Rows held out" in out
    made = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"results.json", "generations.jsonl", "figures/tuning.png", "adapter/adapter_config.json"} <= made
    assert "checkpoint.safetensors" not in made
    row = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (row["train_rows"], row["test_rows"]) == (40, 10)
    status, out, err = run("evaluate", "run")
    assert status == 0, err
    assert out.startswith("accuracy "), "the share of outputs that are written word for word"
    status, out, err = run("generate", "model", "say:", "--adapter", "run/adapter", "--chat", "--max-new-tokens", 4)
    assert status == 0, err
    assert "im_start" not in out
    assert "say:" not in out


def test_a_text_is_a_task_of_train(run, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. a dog ran to the house.\n" * 60)
    status, out, err = run(*TRAIN, "--task", "lm:text.txt")
    assert status == 0, err
    assert re.match(r"loss [\d.]+, perplexity [\d.]+, [\d.]+ bits per byte; saved to run", out)


def test_instruct_writes_rows_of_labelled_sets(run, tmp_path, asset):
    asset("sarcasm"), asset("tweets")
    status, out, err = run("instruct", "pairs.jsonl", "--tasks", "sarcasm,tweets", "--count", 20)
    assert status == 0, err
    assert out == "20 rows in pairs.jsonl\n"
    rows = read_instructions(tmp_path / "pairs.jsonl")
    assert [row.source for row in rows] == ["sarcasm", "tweets"] * 10


def test_instruct_lets_a_teacher_answer(run, tmp_path, monkeypatch):
    (tmp_path / "ask.txt").write_text("say cat\nsay dog\n")
    status, _, err = run("instruct", "taught.jsonl", "--teacher", "model", "--about", "ask.txt", "--count", 2)
    assert status == 1
    assert err.startswith("Error: None of 2 answers was worth keeping: {'cut off': 2}."), (
        "it writes nonsense without end"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["instruct", "a.jsonl", "--count", 0], "--count 0"),
        (["instruct", "a.jsonl", "--tasks", "sarcasms"], "Did you mean 'sarcasm'"),
        (["instruct", "a.jsonl", "--teacher", "model", "--about", "no.txt"], "no.txt cannot be read"),
        ([*TRAIN, "--task", "instruct:bad.jsonl"], "bad.jsonl, line 2: no 'output'; fields found"),
        ([*TRAIN, "--task", "instruct:empty.jsonl"], "empty.jsonl is empty"),
        ([*TRAIN, "--task", "instruct:long.jsonl", "--max-length", 60], "this model reads at most 48"),
        ([*TRAIN, "--task", "instruct:rows.jsonl", "--max-length", 20], "have more than 20 tokens"),
        ([*TRAIN, "--task", "lm:empty.jsonl"], "is empty: it has no text to learn from"),
    ],
)
def test_a_mistake_is_one_clear_line(run, tmp_path, arguments, says):
    (tmp_path / "bad.jsonl").write_text(
        '{"instruction": "a", "input": "", "output": "b"}\n{"instruction": "a", "input": ""}\n'
    )
    (tmp_path / "empty.jsonl").write_text("")
    write_instructions(tmp_path / "long.jsonl", [Instruction("say:", f"{n} " + "cat " * 40, "cat") for n in range(50)])
    status, _, err = run(*arguments)
    assert status == 1
    assert says in err
    assert err.count("\n") == 1, err
    assert not (tmp_path / "run" / "adapter").exists()

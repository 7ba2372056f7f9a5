"""Texts and instructions as tasks of compare and train, on tiny causal models; and the teacher."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
from decoders import CONTEXT, tiny_decoder

import minipeft as mp
from minipeft.data.instruct import Instruction, read_instructions, write_instructions
from minipeft.errors import UserError
from minipeft.experiments.compare import Settings, compare
from minipeft.experiments.instruct import guess, tune
from minipeft.experiments.methods import parse_method, parse_methods
from minipeft.experiments.problems import is_match, load_problem, write_answers
from minipeft.experiments.single import evaluate_run, train_one
from minipeft.experiments.teacher import questions, teach
from minipeft.models import Sampling, generate, load_model
from minipeft.peft import PeftModel
from minipeft.report.language_plots import draw_tuning
from minipeft.report.plots import draw_all, figures_of
from minipeft.report.summary import read_results, summarise

METHODS = "full,topk:1,adapter:4,lora:2,intrinsic:64"
COLOURS = ["red", "blue", "green"]
ANSWER = "ok"  # to every instruction: what a model of 16 dimensions learns in a second


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny Llama and a tiny GPT-2, a text, and a file of instructions."""
    folder = tmp_path_factory.mktemp("world")
    for family in ("llama", "gpt2"):
        tiny_decoder(family, scale=0.05).save_pretrained(folder / family)
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran"]
    lines = [" ".join(rng.choice(words, size=5)) + "." for _ in range(300)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    ways = ["say", "tell", "name"]
    rows = [
        Instruction(f"{ways[i % 3]}:", f"{colour} {i}", ANSWER)
        for i, colour in enumerate(rng.choice(COLOURS, size=150).tolist())
    ]
    write_instructions(folder / "rows.jsonl", rows)
    return folder


def settings(world, task, family="llama", **changes):
    fields = {"train_size": 120, "test_size": 20, "epochs": 1, "batch_size": 16, "max_length": 40, "workers": 1}
    return Settings(**{"model": str(world / family), "task": task, **fields, **changes})


def read(path):
    with path.open() as file:
        return {row["method"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(("family", "methods"), [("llama", METHODS), ("gpt2", "full,lora:2")])
def test_every_method_learns_a_text_and_bits_per_byte_are_its_score(world, family, methods, tmp_path):
    task = f"lm:{world / 'text.txt'}"
    lrs = dict.fromkeys(("full", "topk", "adapter", "lora", "intrinsic"), 0.02)
    run = settings(world, task, family, max_length=16, batch_size=8)
    rows = read(compare(run, parse_methods(methods, lrs), 1, tmp_path / "run"))
    assert list(rows) == [spec.family for spec in parse_methods(methods)]
    for row in rows.values():
        assert row["accuracy"] == ""
        assert row["head_params"] == "0"
        assert float(row["perplexity"]) == pytest.approx(math.exp(float(row["test_loss"])), rel=1e-4)
        assert 0 < float(row["bits_per_byte"]) < float(row["untrained"])
    assert float(rows["full"]["bits_per_byte"]) == min(float(row["bits_per_byte"]) for row in rows.values())
    if family == "gpt2":
        return
    names = {path.stem for path in draw_all(tmp_path / "run" / "results.csv", tmp_path / "figures")}
    assert names == {"bits_vs_parameters", "time_and_memory", "loss_curves", "flops"}


def test_bits_per_byte_are_of_the_text_that_was_tested(world, tmp_path):
    problem = load_problem(f"lm:{world / 'text.txt'}")
    run = settings(world, "", test_size=3, max_length=16)
    train, (rows, size) = problem.encode(run)
    assert len(train) == 120
    model = load_model(world / "llama", task="causal-lm").eval()
    text = problem.corpus.held_out[0]
    assert text.encode()[:size].decode() in text
    ids = np.array([0, *model.tokenizer.ids(text[:size]), 0])
    assert sum(len(row) for row in rows.labels) == len(ids) - 1
    assert len(rows) in (3, 4)
    with mp.no_grad():
        nats = sum(
            -math.log(np.exp(x - x.max())[y] / np.exp(x - x.max()).sum())
            for at in range(0, len(ids) - 1, 16)
            for x, y in zip(
                model(ids[None, at : at + 16][:, : len(ids) - 1 - at]).data[0], ids[at + 1 : at + 17], strict=True
            )
        )
    found = problem.score(model, (rows, size), 1)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert "bits per byte" in str(found)


def test_train_keeps_a_text_s_adapter_and_scores_it_again(world, tmp_path):
    run = settings(world, f"lm:{world / 'text.txt'}", max_length=16)
    score = train_one(run, parse_method("lora:2"), 0, tmp_path / "run")
    assert evaluate_run(tmp_path / "run") == score
    with pytest.raises(UserError, match="The model has no classes; the task sarcasm has 2"):
        evaluate_run(tmp_path / "run", "sarcasm")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "lm:nothing.txt"}, "cannot be read"),
        ({"max_length": CONTEXT + 1}, f"--max-length {CONTEXT + 1}: with lora:2, this model reads at most {CONTEXT}"),
        ({"max_length": 3}, "max_length ≥ 4"),
        ({"train_size": 0}, "train_size"),
    ],
)
def test_what_cannot_be_learnt_from_is_an_error(world, tmp_path, change, says):
    fields = {"task": f"lm:{world / 'text.txt'}", **change}
    with pytest.raises(UserError, match=says):
        compare(settings(world, **fields), parse_methods("lora:2"), 1, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_classifier_has_no_next_token(world, tmp_path):
    with pytest.raises(UserError, match="no classifier to train"):
        compare(settings(world, f"lm:{world / 'text.txt'}"), parse_methods("head"), 1, tmp_path / "run")


# ---- instructions


@pytest.mark.parametrize("method", METHODS.split(","))
def test_a_model_learns_to_answer(world, method, tmp_path):
    told = []
    lr = {"full": 0.02, "intrinsic": 0.02}.get(method.partition(":")[0], 0.05)
    run = settings(world, f"instruct:{world / 'rows.jsonl'}", epochs=4)
    row = tune(run, parse_method(method, lr), 0, tmp_path / "run", lambda *now: told.append(now))
    assert row["after"]["loss"] < row["before"]["loss"]
    assert row["after"]["log_likelihood"] > row["before"]["log_likelihood"]
    assert row["before"]["exact_match"] == 0
    assert row["guess"] == {"rows": None}, "20 rows of three instructions are too few"
    if method == "full":
        assert row["after"]["exact_match"] == 1
    assert [what for what, done, of in told if done == of] == ["before", "training", "after"]
    lines = (tmp_path / "run" / "generations.jsonl").read_text().splitlines()
    made = [json.loads(line) for line in lines]
    right = sum(is_match(entry["after"], entry["output"]) for entry in made)
    assert right / len(made) == pytest.approx(row["after"]["exact_match"], abs=1e-4)
    model = PeftModel.from_pretrained(load_model(world / "llama", task="causal-lm"), tmp_path / "run" / "adapter")
    rows = [Instruction(**{name: made[0][name] for name in ("instruction", "input", "output")})]
    assert write_answers(model, rows) == [made[0]["after"]]
    assert tune(run, parse_method(method, lr), 0, tmp_path / "run") == row  # finished: read, not trained
    if method == "full":
        assert all(path.stat().st_size > 5000 for path in draw_tuning(tmp_path / "run"))


def test_instructions_are_a_task_of_compare_too(world, tmp_path):
    specs = parse_methods("full,lora:2", {"full": 0.02, "lora": 0.05})
    rows = read(compare(settings(world, f"instruct:{world / 'rows.jsonl'}", epochs=3), specs, 1, tmp_path / "run"))
    assert float(rows["full"]["accuracy"]) > 0
    assert float(rows["full"]["untrained"]) == 0
    assert rows["full"]["bits_per_byte"] == ""
    assert "accuracy_vs_parameters" in figures_of(summarise(read_results(tmp_path / "run" / "results.csv")))


def test_an_interrupted_run_goes_on_to_the_same_answers(world, tmp_path):
    run, spec = settings(world, f"instruct:{world / 'rows.jsonl'}", epochs=2), parse_method("lora:2", 0.05)

    def stop(what, done, total):
        if what == "after":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(run, spec, 0, tmp_path / "stopped", stop)
    assert tune(run, spec, 0, tmp_path / "whole") | {"train_seconds": 0, "step_ms": 0} == tune(
        run, spec, 0, tmp_path / "stopped"
    ) | {"train_seconds": 0, "step_ms": 0}
    a, b = ((tmp_path / name / "generations.jsonl").read_bytes() for name in ("whole", "stopped"))
    assert a == b


def test_a_missing_field_fails_before_anything_is_made(world, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"instruction": "a", "input": ""}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1: no 'output'"):
        tune(settings(world, f"instruct:{tmp_path / 'bad.jsonl'}"), parse_method("lora:2"), 0, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_that_has_changed_is_another_run(world, tmp_path):
    rows = read_instructions(world / "rows.jsonl")
    write_instructions(tmp_path / "rows.jsonl", rows)
    run, spec = settings(world, f"instruct:{tmp_path / 'rows.jsonl'}"), parse_method("lora:2")
    tune(run, spec, 0, tmp_path / "run")
    write_instructions(tmp_path / "rows.jsonl", [dataclasses.replace(row, output="no") for row in rows])
    with pytest.raises(UserError, match="holds a run with data="):
        tune(run, spec, 0, tmp_path / "run")
    text = tmp_path / "text.txt"
    text.write_text((world / "text.txt").read_text())
    run = settings(world, f"lm:{text}", max_length=16)
    compare(run, parse_methods("lora:2"), 1, tmp_path / "lm")
    text.write_text(text.read_text().upper())
    with pytest.raises(UserError, match="holds a run with data="):
        compare(run, parse_methods("lora:2,full"), 1, tmp_path / "lm")


def test_an_answer_may_be_as_long_as_the_output_it_is_held_to(world):
    model = load_model(world / "gpt2", task="causal-lm")
    words = model.tokenizer.decode(model.tokenizer.ids("the cat sat on the mat and " * 9)[:20])
    rows = [Instruction("go", "", words), Instruction("go on", "", "ok")]
    long, _ = write_answers(model, rows)
    assert long.startswith(write_answers(model, [Instruction("go", "", "ok")])[0])
    assert len(model.tokenizer.ids(long)) > 12


def test_guessing_is_the_commonest_output_of_each_instruction():
    rows = [Instruction("a", str(i), "yes" if i % 4 else "no") for i in range(20)]
    rows += [Instruction("b", str(i), "no") for i in range(20)]
    assert guess(rows) == (15 + 20) / 40
    assert guess([Instruction(str(i), "", "yes") for i in range(20)]) is None


# ---- the teacher


def test_the_teacher_s_answers_are_written_as_they_pass(world, tmp_path, monkeypatch):
    (tmp_path / "ask.txt").write_text("\n".join(f"say {word}" for word in ("cat", "dog", "mat") * 7) + "\n")
    asked = questions(str(tmp_path / "ask.txt"), 20)
    assert len(asked) == 20
    teacher = load_model(world / "llama", task="causal-lm")
    monkeypatch.setattr("minipeft.experiments.teacher.SAMPLING", Sampling(6, temperature=1.0))
    monkeypatch.setattr("minipeft.experiments.teacher.generate", always_ending)
    told = []
    chosen = teach(teacher, asked, tmp_path / "out.jsonl", seed=3, told=lambda *now: told.append(now))
    assert [done for done, _ in told] == [16, 20]
    assert len(chosen.kept) + sum(chosen.dropped.values()) == 20
    assert read_instructions(tmp_path / "out.jsonl") == chosen.kept
    again = teach(teacher, asked, tmp_path / "again.jsonl", seed=3)
    assert again.kept == chosen.kept
    with pytest.raises(UserError, match=r"out\.jsonl exists"):
        teach(teacher, asked, tmp_path / "out.jsonl", seed=3)

    def stop(done, kept):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(teacher, asked, tmp_path / "late.jsonl", seed=3, told=stop)
    assert not (tmp_path / "late.jsonl").exists()
    with pytest.raises(UserError, match="other questions"):
        teach(teacher, asked, tmp_path / "late.jsonl", seed=4)
    asked_again = []
    monkeypatch.setattr(
        "minipeft.experiments.teacher.generate", lambda m, p, s: asked_again.extend(p) or always_ending(m, p, s)
    )
    assert teach(teacher, asked, tmp_path / "late.jsonl", seed=3).kept == chosen.kept
    assert len(asked_again) == 4, "the first sixteen had been answered"
    assert sorted(path.name for path in tmp_path.glob("late*")) == ["late.jsonl"]
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(UserError, match="empty"):
        questions(str(tmp_path / "none.txt"), 3)


def always_ending(*arguments):
    made = generate(*arguments)
    for one in made:
        one.ended = "end"
    return made

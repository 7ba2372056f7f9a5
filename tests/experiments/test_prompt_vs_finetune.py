"""Prompting against fine-tuning: cells that resume, both sides with the same examples, and the checkpoint that is kept."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest
from decoders import TOKENIZER, tiny_decoder

import minipeft as mp
from minipeft.data import Example
from minipeft.data.domains import TwoDomains
from minipeft.data.patterns import Pattern, encode_prompts
from minipeft.errors import UserError
from minipeft.experiments import prompt_vs_finetune as module
from minipeft.experiments.prompt_vs_finetune import APPROACHES, COLUMNS, Best, Settings, base_model, prompt_vs_finetune
from minipeft.models.prompting import as_classifier
from minipeft.peft import FullConfig, get_peft_model
from minipeft.training import Trainer, TrainingConfig, evaluate

BAD, GOOD = ("the dog", "a log", "the mat", "bad"), ("the film", "fine", "a day", "good")
ROWS = tuple(
    Example(f"{'a' * (i % 3)} {part[i // 3]}", label) for i in range(12) for label, part in enumerate((BAD, GOOD))
)
DATA = TwoDomains(ROWS, ROWS[:8], ROWS[8:20], ROWS[12:])


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATTERN", Pattern("{text}:", ("the", "sat"), separator=" "))
    monkeypatch.setattr(module, "load_two_domains", lambda validation, test: DATA)
    tiny_decoder().save_pretrained(tmp_path / "model")
    return Settings(models=(str(tmp_path / "model"),), shots=4, epochs=5, lr_full=0.02, lr_lora=0.05, workers=1)


def read(path):
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_has_a_row_a_cell_and_goes_on_where_it_was_killed(settings, tmp_path):
    told = []
    rows = read(prompt_vs_finetune(settings, 2, tmp_path / "run", told.append))
    assert [(row["approach"], row["seed"]) for row in rows] == [(how, str(s)) for s in (0, 1) for how in APPROACHES]
    assert [now.cells_done for now in told if now.row] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert (row["approach"] == "icl") == (row["trained"] == "0") == (row["validation"] == "")
    counts = {row["approach"]: int(row["trained"]) for row in rows}
    model = tiny_decoder()
    assert counts["full"] == sum(p.numel() for p in model.parameters()) + 2 * 16  # and the head
    assert counts["lora"] == 2 * (8 * (16 + 16) + 8 * (16 + 8))  # two blocks; q and v alone, the head stays
    log = tmp_path / "run" / "results.jsonl"
    lines = log.read_text().splitlines(True)
    log.write_text("".join(lines[:2]) + lines[2][:30])
    told.clear()
    assert read(prompt_vs_finetune(settings, 2, tmp_path / "run", told.append)) == rows
    assert len([now for now in told if now.row]) == 4
    assert {tuple(json.loads(line)) for line in lines} == {COLUMNS}


def test_both_sides_get_the_same_examples_and_another_seed_others(settings, tmp_path, monkeypatch):
    given = []
    for name in ("in_context", "fine_tune"):
        original = getattr(module, name)

        def spy(*arguments, original=original):
            given.append(next(tuple(a) for a in arguments if isinstance(a, list)))
            return original(*arguments)

        monkeypatch.setattr(module, name, spy)
    prompt_vs_finetune(settings, 2, tmp_path / "run")
    assert len(set(given[:3])) == len(set(given[3:])) == 1
    assert given[0] != given[3]


def test_the_checkpoint_that_is_kept_is_the_best_on_the_validation_rows():
    pattern, labels = Pattern("{text}:", ("the", "sat")), ("no", "yes")
    rows = encode_prompts(TOKENIZER, pattern, ROWS)
    model = get_peft_model(as_classifier(tiny_decoder(), pattern, labels), FullConfig())
    parameters = list(model.trainable_parameters().values())
    states = [[p.data.copy() for p in parameters]]
    for _ in range(2):
        Trainer(model, rows, TOKENIZER.pad_id, TrainingConfig(lr=0.02, epochs=8, batch_size=8)).run()
        states.append([p.data.copy() for p in parameters])
    scores, best = [], Best(model, rows, TOKENIZER.pad_id, 1, lambda step, of: None)
    for step, state in enumerate((states[0], states[2], states[1], states[0]), start=1):
        for parameter, data in zip(parameters, state, strict=True):
            parameter.data[...] = data
        best.on_step(step, 4, None)
        scores.append(evaluate(model, rows, TOKENIZER.pad_id))
    assert scores[1].loss < scores[2].loss < scores[0].loss  # more training is better on what was trained on
    best.restore()
    assert best.step == 2
    assert evaluate(model, rows, TOKENIZER.pad_id) == scores[1]


def test_a_model_of_the_run_is_pretrained_once(settings, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog sat on the log.\n" * 400)
    monkeypatch.setitem(module.SHAPES, "tiny", (8, 1, 1))
    steps = []
    quick = Settings(models=("tiny",), corpus=str(tmp_path / "text.txt"), pretrain_epochs=1, workers=1)
    model = base_model(quick, "tiny", tmp_path / "run", lambda step, of: steps.append(step))
    assert model.config.max_positions == 768
    done = len(steps)
    assert done > 0
    again = base_model(quick, "tiny", tmp_path / "run", lambda step, of: steps.append(step))
    assert len(steps) == done
    with mp.no_grad():
        assert (model([[5, 6, 7]]).data == again([[5, 6, 7]]).data).all()


def test_settings_that_cannot_be(settings, tmp_path):
    with pytest.raises(UserError, match="--seeds 0"):
        prompt_vs_finetune(settings, 0, tmp_path / "run")
    with pytest.raises(UserError, match="named twice"):
        Settings(models=("tiny", "tiny"))
    with pytest.raises(UserError, match="2 or more"):
        Settings(shots=1)
    with pytest.raises(UserError, match="Unknown model 'nowhere'"):
        prompt_vs_finetune(Settings(models=("tiny", "nowhere")), 1, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "what is wrong is said before anything is pre-trained"


def test_models_may_be_added_to_a_run(settings, tmp_path):
    tiny_decoder("gpt2").save_pretrained(tmp_path / "other")
    rows = read(prompt_vs_finetune(settings, 1, tmp_path / "run"))
    more = dataclasses.replace(settings, models=(*settings.models, str(tmp_path / "other")))
    assert read(prompt_vs_finetune(more, 1, tmp_path / "run"))[: len(rows)] == rows

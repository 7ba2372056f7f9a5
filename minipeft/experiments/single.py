"""One method on one task: train it, keep what was trained, and score it again later."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minipeft.backend import random, set_backend
from minipeft.data import encode_examples, load_task
from minipeft.errors import UserError
from minipeft.experiments.cell import Settings, build, check_sizes, encode, tokenizer_of, training_config
from minipeft.experiments.methods import MethodSpec
from minipeft.experiments.results import RunFolder
from minipeft.models import load_model
from minipeft.peft import PeftModel
from minipeft.training import Score, Trainer, evaluate

ADAPTER = "adapter"  # the folder, in the run's, that holds what was trained


def train_one(
    settings: Settings, spec: MethodSpec, seed: int, out: Path, on_step: Callable[[int, int, Any], None] | None = None
) -> Score:
    """Train and save to `out`/adapter; returns the score on the test rows. A finished run is scored, not trained again.

    Raises:
        UserError: a setting is wrong, or `out` holds another run.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.
    """
    set_backend(settings.backend)
    task = load_task(settings.task)
    check_sizes(settings, task)
    finished = (out / ADAPTER / "adapter_config.json").exists()
    model = None if finished else build(settings, task, spec, seed)  # a wrong method fails before the folder is made
    RunFolder(out, {**dataclasses.asdict(settings), "method": spec.name, "lr": spec.lr, "seed": seed}, {})
    train_rows, test_rows = encode(settings, task)
    checkpoint = out / "checkpoint.safetensors"
    if model is None:
        model = _load(settings, task.labels, out)
    else:
        config = training_config(settings, spec)
        trainer = Trainer(model, train_rows, tokenizer_of(model).pad_id, config, checkpoint, on_step=on_step)
        trainer.run()
        model.save_pretrained(out / ADAPTER)
    checkpoint.unlink(missing_ok=True)
    return evaluate(model, test_rows, tokenizer_of(model).pad_id, workers=settings.workers)


def evaluate_run(out: Path, task_name: str | None = None, test_size: int | None = None) -> Score:
    """Score what `train_one` saved to `out`, on its own task or another with as many classes.

    Raises:
        UserError: `out` holds no finished run, or the task does not fit the model's classes.
    """
    try:
        raw = json.loads((out / "config.json").read_text(encoding="utf-8"))
        settings = Settings(**{field.name: raw[field.name] for field in dataclasses.fields(Settings)})
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{out} holds no run of `minipeft train`.") from None
    set_backend(settings.backend)
    own, task = load_task(settings.task), load_task(task_name or settings.task)
    if len(own.labels) != len(task.labels):
        raise UserError(f"The model has {len(own.labels)} classes; the task {task.name} has {len(task.labels)}.")
    rows = task.head("test", test_size or settings.test_size)
    model = _load(settings, own.labels, out)
    tokenizer = tokenizer_of(model)
    return evaluate(
        model, encode_examples(tokenizer, rows, settings.max_length), tokenizer.pad_id, workers=settings.workers
    )


def _load(settings: Settings, labels: tuple[str, ...], out: Path) -> PeftModel:
    random.seed(0)
    base = load_model(settings.model, labels=labels, dropout=0.0)
    return PeftModel.from_pretrained(base, out / ADAPTER)

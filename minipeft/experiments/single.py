"""One method on one task: train it, keep what was trained, and score it again later."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minipeft.backend import random, set_backend
from minipeft.errors import UserError
from minipeft.experiments.cell import Settings, build, check_sizes, identity_of_one, training_config
from minipeft.experiments.methods import MethodSpec
from minipeft.experiments.problems import Measured, base_model, load_problem, tokenizer_of
from minipeft.experiments.results import RunFolder
from minipeft.peft import PeftModel
from minipeft.training import Trainer

ADAPTER = "adapter"  # the folder, in the run's, that holds what was trained


def train_one(
    settings: Settings, spec: MethodSpec, seed: int, out: Path, on_step: Callable[[int, int, Any], None] | None = None
) -> Measured:
    """Train and save to `out`/adapter; returns the score on the test rows. A finished run is scored, not trained again.

    Raises:
        UserError: a setting is wrong, or `out` holds another run.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.
    """
    set_backend(settings.backend)
    problem = load_problem(settings.task)
    check_sizes(settings, problem)
    finished = (out / ADAPTER / "adapter_config.json").exists()
    model = None if finished else build(settings, problem, spec, seed)  # a wrong method fails before the folder is made
    RunFolder(out, identity_of_one(settings, problem, spec, seed), {}).begin()
    train_rows, test_rows = problem.encode(settings)
    checkpoint = out / "checkpoint.safetensors"
    if model is None:
        model = _load(settings, problem.labels, out)
    else:
        config = training_config(settings, spec)
        trainer = Trainer(model, train_rows, tokenizer_of(model).pad_id, config, checkpoint, on_step=on_step)
        trainer.run()
        model.save_pretrained(out / ADAPTER)
    checkpoint.unlink(missing_ok=True)
    return problem.score(model, test_rows, settings.workers)


def evaluate_run(out: Path, task_name: str | None = None, test_size: int | None = None) -> Measured:
    """Score what `train_one` saved to `out`, on its own task or another: with as many classes, or without any as well.

    Raises:
        UserError: `out` holds no finished run, or the task does not fit the model's classes.
    """
    try:
        raw = json.loads((out / "config.json").read_text(encoding="utf-8"))
        settings = Settings(**{field.name: raw[field.name] for field in dataclasses.fields(Settings)})
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{out} holds no run of `minipeft train`.") from None
    set_backend(settings.backend)
    own, problem = load_problem(settings.task), load_problem(task_name or settings.task)
    classes = [None if p.labels is None else len(p.labels) for p in (own, problem)]
    if classes[0] != classes[1]:
        raise UserError(f"The model has {classes[0] or 'no'} classes; the task {task_name} has {classes[1] or 'none'}.")
    size = settings.test_size if test_size is None else test_size
    tested = dataclasses.replace(settings, train_size=1, test_size=size)
    check_sizes(tested, problem)
    model = _load(settings, own.labels, out)
    _, test_rows = problem.encode(tested)
    return problem.score(model, test_rows, settings.workers)


def _load(settings: Settings, labels: tuple[str, ...] | None, out: Path) -> PeftModel:
    random.seed(0)
    return PeftModel.from_pretrained(base_model(settings, labels), out / ADAPTER)

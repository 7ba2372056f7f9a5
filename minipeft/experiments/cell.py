"""One cell of an experiment: a model, a task, a method and a seed; from the pre-trained weights to a row of results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minipeft.backend import random
from minipeft.backend.workers import default_workers
from minipeft.cost import measure_step
from minipeft.data import EncodedSet, Task, encode_examples
from minipeft.errors import UserError
from minipeft.experiments.methods import MethodSpec
from minipeft.models import load_model, load_tokenizer
from minipeft.peft import PeftModel, get_peft_model
from minipeft.training import Score, Trainer, TrainingConfig, evaluate

OnStep = Callable[[int, int, Any], None]
MB = 1e6
CURVE_POINTS = 60


@dataclass(frozen=True)
class Settings:
    """What all cells share.

    Attributes:
        model: a known name or a Hugging Face folder.
        task: a known name or a .csv or .jsonl file.
        train_size: rows to train on, of the fixed order of the task's training split.
        test_size: rows to test on, likewise.
        epochs: passes over the training rows.
        batch_size: rows a step.
        max_length: longest text, in tokens.
        backend: where to compute.
        workers: threads that share each batch; the last bits of the results depend on their number.
    """

    model: str = "minilm"
    task: str = "sarcasm"
    train_size: int = 1000
    test_size: int = 1000
    epochs: int = 3
    batch_size: int = 32
    max_length: int = 64
    backend: str = "numpy"
    workers: int = field(default_factory=default_workers)


@dataclass(frozen=True)
class Cell:
    """A finished cell: the model as trained, its score on the rows that it was tested on, and its row of results."""

    model: PeftModel
    score: Score
    row: dict[str, Any]


def build(settings: Settings, task: Task, spec: MethodSpec, seed: int) -> PeftModel:
    """The pre-trained model with the method attached, as at step 0 of the cell (spec, seed)."""
    random.seed(seed)
    return get_peft_model(load_model(settings.model, labels=task.labels, dropout=0.0), spec.config)


def training_config(settings: Settings, spec: MethodSpec) -> TrainingConfig:
    """How a cell is trained."""
    return TrainingConfig(lr=spec.lr, epochs=settings.epochs, batch_size=settings.batch_size, workers=settings.workers)


def run_cell(
    settings: Settings,
    task: Task,
    data: tuple[EncodedSet, EncodedSet],
    spec: MethodSpec,
    seed: int,
    checkpoint: Path | None = None,
    on_step: OnStep | None = None,
) -> Cell:
    """Train `spec` on data[0] and score it on data[1]. With a checkpoint, a run that was killed goes on from there.

    Raises:
        Diverged: the loss is not finite.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.
    """
    model = build(settings, task, spec, seed)
    pad_id = tokenizer_of(model).pad_id
    config = training_config(settings, spec)
    identity = {**dataclasses.asdict(settings), "method": spec.name, "seed": seed}
    trainer = Trainer(model, data[0], pad_id, config, checkpoint, identity, on_step)
    first = trainer.first_batch()
    cost = measure_step(model, lambda: trainer.loss(first))
    result = trainer.run()
    score = evaluate(model, data[1], pad_id, workers=settings.workers)
    count = model.count_parameters()
    row = {
        "method": spec.family,
        "setting": spec.setting,
        "seed": seed,
        "lr": spec.lr,
        "trainable_params": count.trainable,
        "trainable_percent": round(count.percent, 4),
        "method_params": count.method,
        "head_params": count.head,
        "total_params": count.total,
        "accuracy": round(score.accuracy, 6),
        "test_loss": round(score.loss, 6),
        "train_seconds": round(result.seconds, 3),
        "step_ms": round(result.step_ms, 2),
        "forward_gflop": round(cost.forward_flops / 1e9, 6),
        "backward_gflop": round(cost.backward_flops / 1e9, 6),
        "activation_mb": round(cost.activations / MB, 3),
        "peak_mb": round(cost.peak / MB, 1),
        "gradient_mb": round(trainer.optimizer.flat.grad.nbytes / MB, 3),
        "optimizer_mb": round(trainer.optimizer.state_bytes() / MB, 3),
        "saved_mb": round(sum(p.data.nbytes for p in model.saved_parameters().values()) / MB, 3),
        "loss_curve": _curve(result.losses),
    }
    return Cell(model, score, row)


def _curve(losses: list[float]) -> str:
    """Up to 60 points "step:mean loss since the point before", joined by semicolons."""
    width = -(-len(losses) // CURVE_POINTS)
    points = []
    for start in range(0, len(losses), width):
        part = losses[start : start + width]
        points.append(f"{start + len(part)}:{sum(part) / len(part):.5f}")
    return ";".join(points)


def encode(settings: Settings, task: Task) -> tuple[EncodedSet, EncodedSet]:
    """The training and the test rows, as the model's tokenizer reads them."""
    tokenizer = load_tokenizer(settings.model)
    train, test = task.head("train", settings.train_size), task.head("test", settings.test_size)
    return (
        encode_examples(tokenizer, train, settings.max_length),
        encode_examples(tokenizer, test, settings.max_length),
    )


def tokenizer_of(model: Any) -> Any:
    """The tokenizer of a model, with or without a method attached. Raises UserError when its folder has none."""
    tokenizer = getattr(model, "tokenizer", None) or getattr(getattr(model, "model", None), "tokenizer", None)
    if tokenizer is None:
        raise UserError("The model's folder has no tokenizer.json or vocab.txt, so its texts cannot be read.")
    return tokenizer


def check_sizes(settings: Settings, task: Task) -> None:
    """Raises UserError when the task has fewer rows than asked for, or another number cannot be."""
    task.head("train", settings.train_size)
    task.head("test", settings.test_size)
    if min(settings.epochs, settings.batch_size, settings.workers) < 1 or settings.max_length < 4:
        raise UserError("A comparison needs epochs ≥ 1, batch_size ≥ 1, workers ≥ 1 and max_length ≥ 4.")

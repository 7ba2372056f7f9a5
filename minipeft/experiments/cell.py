"""One cell of an experiment: a model, a task, a method and a seed; from the pre-trained weights to a row of results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minipeft.autograd import Tensor
from minipeft.backend import random
from minipeft.backend.workers import default_workers
from minipeft.cost import gradient_norms, measure_step
from minipeft.data import TrainingSet
from minipeft.errors import UserError
from minipeft.experiments.methods import MethodSpec
from minipeft.experiments.problems import Measured, Problem, base_model, tokenizer_of
from minipeft.peft import PeftModel, get_peft_model
from minipeft.peft.io import saved_bytes
from minipeft.training import Trainer, TrainingConfig

OnStep = Callable[[int, int, Any], None]
MB = 1e6
CURVE_POINTS = 60
PROJECTION_SEEDS = ("seed", "projection_prng_key")  # as the configs of the intrinsic dimension and of VeRA call it


@dataclass(frozen=True)
class Settings:
    """What all cells share.

    Attributes:
        model: a known name or a Hugging Face folder.
        task: a known name or a .csv or .jsonl file; or "lm:CORPUS" or "instruct:...", see `problems.py`.
        train_size: rows to train on, of the fixed order of the task's training split; windows of a text.
        test_size: rows to test on, likewise.
        epochs: passes over the training rows.
        batch_size: rows a step.
        max_length: longest text, in tokens.
        backend: where to compute.
        workers: processes that share each batch; the last bits of the results depend on their number.
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
    """A finished cell: the model as trained, what the test found, and its row of results."""

    model: PeftModel
    score: Measured
    row: dict[str, Any]


def build(settings: Settings, problem: Problem, spec: MethodSpec, seed: int) -> PeftModel:
    """The pre-trained model with the method attached, as at step 0 of the cell (spec, seed).

    A projection is drawn from the cell's seed, so that the spread over seeds has that of the projections in it.

    Raises:
        UserError: the model is none for this task, or, as a language model, reads fewer tokens than `max_length`; or the
            method does not fit it.
    """
    random.seed(seed)
    drawn = {field.name: seed for field in dataclasses.fields(spec.config) if field.name in PROJECTION_SEEDS}
    config = dataclasses.replace(spec.config, **drawn)
    model = base_model(settings, problem.labels)
    peft = get_peft_model(model, config)
    room = model.config.max_positions - peft.method.virtual_tokens
    if problem.labels is None and settings.max_length > room:  # classes may have shorter texts
        raise UserError(
            f"--max-length {settings.max_length}: with {spec.name}, this model reads at most {room} tokens."
        )
    return peft


def identity_of_one(settings: Settings, problem: Problem, spec: MethodSpec, seed: int) -> dict[str, Any]:
    """What must be the same for a run of one method to go on: the settings, the data, the method, its rate and the seed."""
    own = {"data": problem.digest, "method": spec.name, "lr": spec.lr, "seed": seed}
    return {**dataclasses.asdict(settings), **own}


def training_config(settings: Settings, spec: MethodSpec) -> TrainingConfig:
    """How a cell is trained."""
    return TrainingConfig(lr=spec.lr, epochs=settings.epochs, batch_size=settings.batch_size, workers=settings.workers)


def run_cell(
    settings: Settings,
    problem: Problem,
    data: tuple[TrainingSet, Any, float | None],
    spec: MethodSpec,
    seed: int,
    checkpoint: Path | None = None,
    on_step: OnStep | None = None,
) -> Cell:
    """Train `spec` on data[0] and score it on data[1]; data[2] is the score before any training, where there is one.

    With a checkpoint, a run that was killed goes on from there.

    Raises:
        Diverged: the loss is not finite.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.
    """
    model = build(settings, problem, spec, seed)
    pad_id = tokenizer_of(model).pad_id
    config = training_config(settings, spec)
    identity = {**dataclasses.asdict(settings), "method": spec.name, "seed": seed}
    trainer = Trainer(model, data[0], pad_id, config, checkpoint, identity, on_step)
    first = trainer.first_batch()

    def loss_of_first() -> Tensor:
        trainer.optimizer.zero_grad()  # so that what is left in the end is one gradient
        return trainer.loss(first)

    cost = measure_step(model, loss_of_first)
    norms = gradient_norms(model)
    saved = saved_bytes(model)  # what cannot be saved is said before the training
    result = trainer.run()
    score = problem.score(model, data[1], settings.workers)
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
        "accuracy": rounded(score.accuracy),
        "test_loss": round(score.loss, 6),
        "perplexity": rounded(score.perplexity),
        "bits_per_byte": rounded(score.bits_per_byte),
        "untrained": data[2],
        "train_seconds": round(result.seconds, 3),
        "step_ms": round(result.step_ms, 2),
        "forward_gflop": round(cost.forward_flops / 1e9, 6),
        "backward_gflop": round(cost.backward_flops / 1e9, 6),
        "activation_mb": round(cost.activations / MB, 3),
        "peak_mb": round(cost.peak / MB, 1),
        "gradient_mb": round(trainer.optimizer.flat.grad.nbytes / MB, 3),
        "optimizer_mb": round(trainer.optimizer.state_bytes() / MB, 3),
        "cache_mb": round(trainer.cache_bytes / MB, 3),
        "saved_mb": round(saved / MB, 3),
        "loss_curve": curve(result.losses),
        "gradient_norms": ";".join(f"{layer}:{norm:.5g}" for layer, norm in norms.items()),
    }
    return Cell(model, score, row)


def curve(losses: list[float]) -> str:
    """Up to 60 points "step:mean loss since the point before", joined by semicolons."""
    width = -(-len(losses) // CURVE_POINTS)
    points = []
    for start in range(0, len(losses), width):
        part = losses[start : start + width]
        points.append(f"{start + len(part)}:{sum(part) / len(part):.5f}")
    return ";".join(points)


def check_sizes(settings: Settings, problem: Problem) -> None:
    """Raises UserError when the task has fewer rows than asked for, or another number cannot be."""
    problem.check(settings)
    numbers = (settings.train_size, settings.test_size, settings.epochs, settings.batch_size, settings.workers)
    if min(numbers) < 1 or settings.max_length < 4:
        raise UserError(
            "A run needs train_size ≥ 1, test_size ≥ 1, epochs ≥ 1, batch_size ≥ 1, workers ≥ 1 and max_length ≥ 4."
        )


def rounded(value: float | None, decimals: int = 6) -> float | None:
    """To so many decimals; None stays."""
    return None if value is None else round(value, decimals)

"""The comparison: one pre-trained model, one task, every method; a row of results for each method and seed.

A task is one of classes, or the next token of a text, or the answers to instructions: see `problems.py`.

A cell of the comparison (method, seed) is a function of the settings and the seed alone. Finished cells are in
results.jsonl; the one that was running when the run was killed goes on from its checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minipeft.backend import active, random, set_backend
from minipeft.backend.workers import default_workers
from minipeft.cost import gradient_norms, measure_step
from minipeft.data import TrainingSet
from minipeft.errors import UserError
from minipeft.experiments.methods import MethodSpec
from minipeft.experiments.problems import Problem, base_model, is_language, load_problem, tokenizer_of
from minipeft.experiments.results import RunFolder
from minipeft.peft import PeftModel, get_peft_model
from minipeft.training import Trainer, TrainingConfig

MB = 1e6


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
class Progress:
    """Where the comparison is: cell `index` of `cells`, `step` of `steps`, with that step's loss where it is known."""

    spec: MethodSpec
    seed: int
    index: int
    cells: int
    step: int
    steps: int
    loss: float | None
    row: dict[str, Any] | None = None  # set when the cell is finished


Listener = Callable[[Progress], None]
LOG_EVERY = 10  # steps between two looks at the loss, which may have to wait for the device
CURVE_POINTS = 60


def compare(
    settings: Settings, specs: list[MethodSpec], seeds: int, out: Path, listener: Listener | None = None
) -> Path:
    """Run what is missing of every method × seed and write results.csv; returns its path.

    Raises:
        UserError: a setting is wrong, or the folder holds another run. What was finished before stays.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: a run needs 1 seed or more.")
    set_backend(settings.backend)
    problem = load_problem(settings.task)
    check_sizes(settings, problem)
    folder = RunFolder(
        out,
        dataclasses.asdict(settings),
        {"methods": [spec.name for spec in specs], "lr": {s.name: s.lr for s in specs}, "seeds": seeds},
    )
    finished = {(row["method"], row["setting"], row["seed"]): row for row in folder.rows()}
    cells = {(spec.family, spec.setting, seed): spec for seed in range(seeds) for spec in specs}
    order = list(cells)
    missing = [spec for spec in specs if any((spec.family, spec.setting, s) not in finished for s in range(seeds))]
    for spec in missing:  # a wrong K or target fails now, not after an hour
        build(settings, problem, spec, seed=0)
    data = _data(settings, problem) if missing else None
    for index, (key, spec) in enumerate(cells.items()):
        seed = key[2]
        if key not in finished:
            assert data is not None
            row = _run_cell(settings, problem, data, spec, seed, out, (index, len(order)), listener)
            folder.add(row)
            finished[key] = row
            _checkpoint(out, spec, seed).unlink(missing_ok=True)
            folder.write_csv(order)
        if listener is not None:
            listener(Progress(spec, seed, index, len(order), 1, 1, None, finished[key]))
    return folder.write_csv(order)


def build(settings: Settings, problem: Problem, spec: MethodSpec, seed: int) -> PeftModel:
    """The pre-trained model with the method attached, as at step 0 of the cell (spec, seed)."""
    random.seed(seed)
    return get_peft_model(base_model(settings, problem.labels), spec.config)


def training_config(settings: Settings, spec: MethodSpec) -> TrainingConfig:
    """How a cell is trained."""
    return TrainingConfig(lr=spec.lr, epochs=settings.epochs, batch_size=settings.batch_size, workers=settings.workers)


def _run_cell(
    settings: Settings,
    problem: Problem,
    data: tuple[TrainingSet, Any, float | None],
    spec: MethodSpec,
    seed: int,
    out: Path,
    position: tuple[int, int],
    listener: Listener | None,
) -> dict[str, Any]:
    def on_step(step: int, steps: int, loss: Any) -> None:
        if listener is not None:
            looked = float(active().to_numpy(loss)) if step % LOG_EVERY == 1 or step == steps else None
            listener(Progress(spec, seed, *position, step, steps, looked))

    model = build(settings, problem, spec, seed)
    pad_id = tokenizer_of(model).pad_id
    config = training_config(settings, spec)
    identity = {**dataclasses.asdict(settings), "method": spec.name, "seed": seed}
    trainer = Trainer(model, data[0], pad_id, config, _checkpoint(out, spec, seed), identity, on_step)
    first = trainer.first_batch()
    cost = measure_step(model, lambda: trainer.loss(first))
    trainer.optimizer.zero_grad()
    trainer.loss(first).backward()
    norms = gradient_norms(model)
    result = trainer.run()
    score = problem.score(model, data[1], settings.workers)
    count = model.count_parameters()
    return {
        "method": spec.family,
        "setting": spec.setting,
        "seed": seed,
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
        "saved_mb": round(sum(array.nbytes for array in model.exported()[1].values()) / MB, 3),
        "loss_curve": curve(result.losses),
        "gradient_norms": ";".join(f"{layer}:{norm:.5g}" for layer, norm in norms.items()),
    }


def curve(losses: list[float]) -> str:
    """Up to 60 points "step:mean loss since the point before", joined by semicolons."""
    width = -(-len(losses) // CURVE_POINTS)
    points = []
    for start in range(0, len(losses), width):
        part = losses[start : start + width]
        points.append(f"{start + len(part)}:{sum(part) / len(part):.5f}")
    return ";".join(points)


def _data(settings: Settings, problem: Problem) -> tuple[TrainingSet, Any, float | None]:
    """What to train on, what to test on, and a language model's bits per byte, or accuracy, before any training."""
    train, test = problem.encode(settings)
    if not is_language(settings.task):
        return train, test, None
    random.seed(0)
    found = problem.score(base_model(settings, None), test, settings.workers)
    return train, test, rounded(found.accuracy if found.bits_per_byte is None else found.bits_per_byte)


def check_sizes(settings: Settings, problem: Problem) -> None:
    """Raises UserError when the task has fewer rows than asked for, or another number cannot be."""
    problem.check(settings)
    numbers = (settings.train_size, settings.test_size, settings.epochs, settings.batch_size, settings.workers)
    if min(numbers) < 1 or settings.max_length < 4:
        raise UserError(
            "A run needs train_size ≥ 1, test_size ≥ 1, epochs ≥ 1, batch_size ≥ 1, workers ≥ 1 and max_length ≥ 4."
        )


def rounded(value: float | None) -> float | None:
    """To six decimals; None stays."""
    return None if value is None else round(value, 6)


def _checkpoint(out: Path, spec: MethodSpec, seed: int) -> Path:
    return out / "checkpoints" / f"{spec.name.replace(':', '-')}-seed{seed}.safetensors"

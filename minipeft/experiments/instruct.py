"""Instruction tuning: what a model answers to instructions held out, before and after it is trained on others.

Two measures: how many outputs it writes word for word (greedily), and how likely it finds them. (Wei et al., 2021,
arXiv 2109.01652; with LoRA, Taori et al.'s Alpaca data trained so by many since.)
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from minipeft.backend import set_backend
from minipeft.data.chat import encode_instructions
from minipeft.data.instruct import Instruction
from minipeft.experiments.cell import Settings, build, check_sizes, curve, identity_of_one, rounded, training_config
from minipeft.experiments.methods import MethodSpec
from minipeft.experiments.problems import is_match, load_problem, tokenizer_of, write_answers
from minipeft.experiments.results import RunFolder
from minipeft.experiments.single import ADAPTER
from minipeft.files import atomic_write
from minipeft.peft import PeftModel
from minipeft.training import Trainer, evaluate_tokens

ENOUGH = 10  # rows of one instruction, for the share of its commonest output to mean something
T = TypeVar("T")
Told = Callable[[str, int, int], None]  # (what is going on, how much of it is done, of how much)


def tune(settings: Settings, spec: MethodSpec, seed: int, out: Path, told: Told | None = None) -> dict[str, Any]:
    """Train on instructions; returns what results.json holds. A finished run is not trained again.

    `out` then has the adapter (see `train_one`), results.json, and generations.jsonl: each test row with the model's
    answers `before` and `after`.

    Raises:
        UserError: a setting is wrong, or `out` holds another run.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.
    """
    set_backend(settings.backend)
    problem = load_problem(settings.task)
    check_sizes(settings, problem)
    tell = told or (lambda what, done, total: None)
    identity = identity_of_one(settings, problem, spec, seed)
    results, checkpoint, kept = out / "results.json", out / "checkpoint.safetensors", out / "before.json"
    if results.exists():
        RunFolder(out, identity, {})
        return dict(json.loads(results.read_text(encoding="utf-8")))
    model = build(settings, problem, spec, seed)  # what is wrong fails before the folder is made
    train, test = problem.encode(settings)
    RunFolder(out, identity, {}).begin()
    if not kept.exists():
        atomic_write(kept, json.dumps(examine(model, test, settings.workers, lambda n: tell("before", n, len(test)))))
    before = json.loads(kept.read_text(encoding="utf-8"))
    trainer = Trainer(
        model,
        train,
        tokenizer_of(model).pad_id,
        training_config(settings, spec),
        checkpoint,
        on_step=lambda step, steps, _: tell("training", step, steps),
    )
    result = trainer.run()
    model.save_pretrained(out / ADAPTER)
    after = examine(model, test, settings.workers, lambda n: tell("after", n, len(test)))
    lines = [
        json.dumps({**dataclasses.asdict(row), "before": a, "after": b}, ensure_ascii=False)
        for row, a, b in zip(test, before.pop("answers"), after.pop("answers"), strict=True)
    ]
    atomic_write(out / "generations.jsonl", "\n".join(lines) + "\n")
    row = {
        "method": spec.name,
        "seed": seed,
        "trainable_params": model.count_parameters().trainable,
        "train_rows": len(train),
        "test_rows": len(test),
        "guess": {name: rounded(guess(rows), 5) for name, rows in by_source(test, test).items()},
        "before": before,
        "after": after,
        "train_seconds": round(result.seconds, 1),
        "step_ms": round(result.step_ms, 1),
        "loss_curve": curve(result.losses),
    }
    atomic_write(results, json.dumps(row, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    return row


def examine(
    model: PeftModel, rows: list[Instruction], workers: int, told: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """A model's `answers` to instructions, and how good they are.

    `exact_match` is the share of outputs that it writes word for word, `loss` the mean cross-entropy of an output's token
    in nats, `log_likelihood` the mean log likelihood of a whole output; `sources` has the exact match of each source.
    """
    tokenizer = tokenizer_of(model)
    found = evaluate_tokens(model, encode_instructions(tokenizer, rows), tokenizer.pad_id, workers=workers)
    answers = write_answers(model, rows, told)
    right = [is_match(answer, row.output) for answer, row in zip(answers, rows, strict=True)]
    return {
        "exact_match": round(sum(right) / len(rows), 5),
        "loss": round(found.loss, 5),
        "log_likelihood": round(-found.nats / len(rows), 5),
        "sources": {name: round(sum(matches) / len(matches), 5) for name, matches in by_source(rows, right).items()},
        "answers": answers,
    }


def by_source(rows: list[Instruction], values: list[T]) -> dict[str, list[T]]:
    """What belongs to the rows, a value each, gathered by their sources."""
    parts: dict[str, list[T]] = {}
    for row, value in zip(rows, values, strict=True):
        parts.setdefault(row.source, []).append(value)
    return parts


def guess(rows: list[Instruction]) -> float | None:
    """What the commonest output of each instruction would score: the floor for a model that does not read the input.

    None where the instructions are not asked often enough.
    """
    outputs: dict[str, Counter[str]] = {}
    for row in rows:
        outputs.setdefault(row.instruction, Counter())[row.output] += 1
    if len(rows) < ENOUGH * len(outputs):
        return None
    return sum(counts.most_common(1)[0][1] for counts in outputs.values()) / len(rows)

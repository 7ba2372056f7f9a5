"""The search for learning rates: the same few for every method, judged on validation rows; the test rows are never seen.

A trial trains as the cell of seed 0 does: the same start, rows, order and steps. Trials are kept in tuning.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from minipeft.data import encode_examples
from minipeft.errors import Diverged, UserError
from minipeft.experiments.cell import Settings, rounded, run_cell
from minipeft.experiments.methods import MethodSpec
from minipeft.experiments.problems import Classes, Problem
from minipeft.experiments.progress import Listener, Progress, teller
from minipeft.files import append_line, read_lines
from minipeft.models import load_tokenizer

GRID = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNING = "tuning.jsonl"


def validation_rows(settings: Settings, problem: Problem) -> int:
    """As many as the test has, or all there are. Raises UserError for a task without classes, which has none."""
    if not isinstance(problem, Classes):
        raise UserError(f"--tune needs validation rows, which only tasks of classes have, not {settings.task!r}.")
    return min(settings.test_size, len(problem.task.validation))


def tune(
    settings: Settings, problem: Problem, specs: list[MethodSpec], out: Path, listener: Listener | None = None
) -> list[MethodSpec]:
    """The methods with the best rate of GRID each; runs the trials that `out`/tuning.jsonl does not have yet.

    Raises:
        UserError: a method diverges at every rate.
        KeyboardInterrupt: Ctrl-C; the same call goes on at the trial where it stopped.
    """
    count = validation_rows(settings, problem)
    assert isinstance(problem, Classes)
    log = out / TUNING
    trials = {(row["method"], row["lr"]): row for row in read_lines(log)}
    wanted = [(spec, lr) for spec in specs for lr in GRID]
    missing = [(index, spec, lr) for index, (spec, lr) in enumerate(wanted) if (spec.name, lr) not in trials]
    if missing:
        tokenizer = load_tokenizer(settings.model)
        train, validation = (
            encode_examples(tokenizer, problem.task.head(split, rows), settings.max_length)
            for split, rows in (("train", settings.train_size), ("validation", count))
        )
    for index, spec, lr in missing:
        spec = dataclasses.replace(spec, lr=lr)
        trial: dict[str, Any] = {"method": spec.name, "lr": lr, "accuracy": None, "loss": None}
        try:
            on_step = teller(listener, spec, 0, index, len(wanted), trial=True)
            score = run_cell(settings, problem, (train, validation, None), spec, 0, None, on_step).score
            if score.loss < float("inf"):  # and no NaN
                trial |= {"accuracy": rounded(score.accuracy), "loss": round(score.loss, 6)}
        except Diverged:
            pass
        append_line(log, json.dumps(trial))
        trials[spec.name, lr] = trial
        if listener is not None:
            listener(Progress(spec, 0, index, len(wanted), 1, 1, None, trial, trial=True))
    return [dataclasses.replace(s, lr=best_rate(s.name, [trials[s.name, lr] for lr in GRID])) for s in specs]


def best_rate(method: str, trials: list[dict[str, Any]]) -> float:
    """The rate of the best accuracy; among equals, of the lowest loss. Raises UserError when all trials diverged."""
    finished = [trial for trial in trials if trial["loss"] is not None]
    if not finished:
        rates = ", ".join(f"{trial['lr']:g}" for trial in trials)
        raise UserError(f"{method} diverges at every learning rate that was tried: {rates}.")
    return float(max(finished, key=lambda trial: (trial["accuracy"], -trial["loss"]))["lr"])

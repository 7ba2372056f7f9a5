"""The comparison: one pre-trained model, one task, every method; a row of results for each method and seed.

A task is one of classes, or the next token of a text, or the answers to instructions: see `problems.py`.

A cell of the comparison (method, seed) is a function of the settings, the learning rate and the seed alone. Finished
cells are in results.jsonl; the one that was running when the run was killed goes on from its checkpoint.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from minipeft.backend import random, set_backend
from minipeft.data import TrainingSet
from minipeft.errors import UserError
from minipeft.experiments.cell import Settings, build, check_sizes, rounded, run_cell
from minipeft.experiments.methods import MethodSpec
from minipeft.experiments.problems import Problem, base_model, is_language, load_problem
from minipeft.experiments.progress import Listener, Progress, teller
from minipeft.experiments.results import RunFolder
from minipeft.experiments.tune import GRID, tune, validation_rows


def compare(
    settings: Settings,
    specs: list[MethodSpec],
    seeds: int,
    out: Path,
    listener: Listener | None = None,
    tuned: bool = False,
) -> Path:
    """Run what is missing of every method × seed and write results.csv; returns its path.

    Args:
        settings: what all cells share.
        specs: the methods.
        seeds: runs of each method.
        out: the run folder.
        listener: told of every step, and of every cell that is finished.
        tuned: search every method's learning rate first (see `tune.py`).

    Raises:
        UserError: a setting is wrong, or the folder holds another run. What was finished before stays.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: a run needs 1 seed or more.")
    set_backend(settings.backend)
    problem = load_problem(settings.task)
    check_sizes(settings, problem)
    search = {"rates": list(GRID), "validation_size": validation_rows(settings, problem)} if tuned else None
    request = {"methods": [spec.name for spec in specs], "seeds": seeds}
    rates = {} if tuned else {"lr": {spec.name: spec.lr for spec in specs}}
    identity = {**dataclasses.asdict(settings), "data": problem.digest, "tune": search}
    folder = RunFolder(out, identity, {**request, **rates})
    finished = {(row["method"], row["setting"], row["seed"]): row for row in folder.rows()}
    cells = {(spec.family, spec.setting, seed): spec for seed in range(seeds) for spec in specs}
    order = list(cells)
    missing = [spec for spec in specs if any((spec.family, spec.setting, s) not in finished for s in range(seeds))]
    for spec in missing:  # a wrong model, length, K or target fails now, not after an hour, and leaves no folder
        build(settings, problem, spec, seed=0)
    folder.begin()
    data = _data(settings, problem) if missing else None
    if tuned:
        specs = tune(settings, problem, specs, out, listener)
        cells = {(spec.family, spec.setting, seed): spec for seed in range(seeds) for spec in specs}
    for index, (key, spec) in enumerate(cells.items()):
        seed = key[2]
        if key not in finished:
            assert data is not None
            checkpoint = _checkpoint(out, spec, seed)
            on_step = teller(listener, spec, seed, index, len(order))
            cell = run_cell(settings, problem, data, spec, seed, checkpoint, on_step)
            folder.add(cell.row, cell.score.predictions, cell.score.labels)
            finished[key] = cell.row
            checkpoint.unlink(missing_ok=True)
            folder.write_csv(order)
        if listener is not None:
            listener(Progress(spec, seed, index, len(order), 1, 1, None, finished[key]))
    return folder.write_csv(order)


def _data(settings: Settings, problem: Problem) -> tuple[TrainingSet, Any, float | None]:
    """What to train on, what to test on, and a language model's bits per byte, or accuracy, before any training."""
    train, test = problem.encode(settings)
    if not is_language(settings.task):
        return train, test, None
    random.seed(0)
    found = problem.score(base_model(settings, None), test, settings.workers)
    return train, test, rounded(found.accuracy if found.bits_per_byte is None else found.bits_per_byte)


def _checkpoint(out: Path, spec: MethodSpec, seed: int) -> Path:
    return out / "checkpoints" / f"{spec.name.replace(':', '-')}-seed{seed}.safetensors"

"""What all studies share: a plan, jobs that are each done once, and the laboratory that they train in.

A study is one file. Its `jobs` is a generator: it yields a `Job` and is sent back what the job found, now or in an earlier
run, so that a search reads as a plain loop: `row = yield Job(...)`. What was found is in cells.jsonl, a line a job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minipeft.backend import set_backend
from minipeft.data import EncodedSet, encode_examples, load_task
from minipeft.data.corpus import Corpus, load_corpus
from minipeft.errors import Diverged, UserError
from minipeft.experiments.cell import Cell, OnStep, Settings, run_cell
from minipeft.experiments.methods import MethodSpec, parse_method
from minipeft.experiments.problems import Classes
from minipeft.experiments.results import RunFolder
from minipeft.experiments.studies.bases import check_model, place
from minipeft.experiments.tune import best_rate
from minipeft.files import append_line, read_lines
from minipeft.models import load_model, load_tokenizer

CELLS = "cells.jsonl"
OWN = "own"  # in the place of a corpus: what the model itself writes
FREE = ("backend", "workers")  # they change the last bits alone: a study may be finished on another machine
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How large a study is: what its cells share, the seeds of each, and lists of the study's own (JSON-able)."""

    settings: Settings
    seeds: int
    choices: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One cell: its name, and how to find what it asks; `run` is given a listener for its training steps."""

    name: str
    run: Callable[[OnStep | None], Row]


Jobs = Generator[Job, Row, None]


@dataclass(frozen=True)
class Study:
    """A question, the size of its answer in full and in a minute, the jobs, and the split whose rows judge."""

    name: str
    question: str
    full: Plan
    quick: Plan
    jobs: Callable[[Lab], Jobs]
    judged: str = "test"


@dataclass(frozen=True)
class StudyProgress:
    """Which job runs, how many are done, and the step of its training; `row` when it is finished."""

    job: str
    done: int
    step: int = 0
    steps: int = 0
    row: Row | None = None


class Lab:
    """The task's rows, encoded once, and training on them; `out` is the study's folder.

    Raises:
        UserError: there is no such task, corpus or model.
    """

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out
        set_backend(plan.settings.backend)
        self.task = load_task(plan.settings.task)
        self.problem = Classes(self.task)
        for name in (plan.settings.model, *plan.choices.get("models", ())):
            check_model(name)
        self.settings = dataclasses.replace(plan.settings, model=place(out, plan.settings.model))
        self.seeds = range(plan.seeds)
        corpus = plan.choices.get("corpus", OWN)
        self.corpus: Corpus | None = None if corpus == OWN else load_corpus(corpus)

    @cached_property
    def layers(self) -> int:
        """The number of blocks of the model."""
        return load_model(self.settings.model, labels=self.task.labels).config.layers

    def rows(self, split: str, count: int, model: str = "") -> EncodedSet:
        """The first rows of a split, as a model (the study's own) reads them. Raises UserError when there are fewer."""
        tokenizer = load_tokenizer(place(self.out, model or self.settings.model))
        return encode_examples(tokenizer, self.task.head(split, count), self.settings.max_length)

    @cached_property
    def train(self) -> EncodedSet:
        """The training rows."""
        return self.rows("train", self.settings.train_size)

    @cached_property
    def test(self) -> EncodedSet:
        """The test rows."""
        return self.rows("test", self.settings.test_size)

    @cached_property
    def validation(self) -> EncodedSet:
        """The validation rows."""
        return self.rows("validation", self.validation_size)

    @property
    def validation_size(self) -> int:
        """As many as the test rows, or all there are."""
        return min(self.settings.test_size, len(self.task.validation))

    def run(
        self,
        method: str | MethodSpec,
        seed: int,
        on_step: OnStep | None = None,
        data: tuple[EncodedSet, EncodedSet] | None = None,
        **changes: Any,
    ) -> Cell:
        """Train a method ("lora:8") on the training rows and test it; `changes` are of the settings. Raises Diverged."""
        spec = parse_method(method) if isinstance(method, str) else method
        settings = dataclasses.replace(self.settings, **changes)
        train, test = data or (self.train, self.test)
        return run_cell(settings, self.problem, (train, test, None), spec, seed, None, on_step)

    def job(
        self,
        method: str | MethodSpec,
        seed: int,
        name: str = "",
        tags: Mapping[str, Any] | None = None,
        then: Callable[[Cell], Row] | None = None,
        **options: Any,
    ) -> Job:
        """The job whose row is that of `run`, `tags`, and what `then` finds in the cell.

        A run that diverges has an accuracy of None, the tags, and nothing else.
        """
        spec = parse_method(method) if isinstance(method, str) else method

        def run(on_step: OnStep | None) -> Row:
            row: Row = {"method": spec.family, "setting": spec.setting, "seed": seed, "lr": spec.lr, "accuracy": None}
            row |= tags or {}
            with contextlib.suppress(Diverged):
                cell = self.run(spec, seed, on_step, **options)
                row |= cell.row | (then(cell) if then is not None else {})
            return row

        return Job(f"{name or spec.name}, seed {seed}", run)


def tuned(lab: Lab, method: str, rates: Sequence[float]) -> Generator[Job, Row, MethodSpec]:
    """The method with the best of the rates: a trial each with seed 0, on the validation rows, as in `tune.py`.

    When all of them diverge, the lowest.
    """
    if len(rates) == 1:
        return parse_method(method, rates[0])
    trials = []
    for lr in rates:
        spec = parse_method(method, lr)
        data = (lab.train, lab.validation)
        row = yield lab.job(spec, 0, f"trial of {method} at {lr:g}", {"trial": True}, data=data)
        trials.append({"lr": lr, "accuracy": row["accuracy"], "loss": row.get("test_loss")})
    return parse_method(method, better_rate(method, trials))


def better_rate(method: str, trials: Sequence[Row]) -> float:
    """As `best_rate`, of rows with lr, accuracy and loss; the lowest of the rates when none has a finite loss."""
    finished = [trial for trial in trials if trial["loss"] is not None and math.isfinite(trial["loss"])]
    return best_rate(method, finished) if finished else min(trial["lr"] for trial in trials)


def run_study(study: Study, plan: Plan, out: Path, listener: Callable[[StudyProgress], None] | None = None) -> None:
    """Do the jobs that `out` does not have yet.

    Raises:
        UserError: a setting is wrong, or the folder holds another study, or this one with another plan: only the number
            of seeds, the backend and the workers may change. What was finished before stays.
        KeyboardInterrupt: Ctrl-C; the same call goes on with the job where it stopped.
    """
    if plan.seeds < 1:
        raise UserError(f"--seeds {plan.seeds}: a study needs 1 seed or more.")
    lab = Lab(plan, out)
    settings = dataclasses.asdict(plan.settings)
    free = {name: settings.pop(name) for name in FREE}
    data = {"data": lab.problem.digest, "text": lab.corpus and lab.corpus.digest}
    identity = json.loads(json.dumps({"study": study.name, **settings, **plan.choices, **data}))  # as it is read again
    RunFolder(out, identity, {"seeds": plan.seeds, "validation_size": lab.validation_size, **free}).begin()
    found = {row["cell"]: row for row in read_lines(out / CELLS)}
    jobs = study.jobs(lab)
    done, row = 0, None
    while True:
        try:
            job = jobs.send(row) if row is not None else next(jobs)
        except StopIteration:
            return
        row = found.get(job.name)
        if row is None:
            row = {"cell": job.name, **job.run(_teller(listener, job.name, done))}
            append_line(out / CELLS, json.dumps(row))
            found[job.name] = row
        done += 1
        if listener is not None:
            listener(StudyProgress(job.name, done, row=row))


def _teller(listener: Callable[[StudyProgress], None] | None, name: str, done: int) -> OnStep | None:
    if listener is None:
        return None
    return lambda step, steps, _: listener(StudyProgress(name, done, step, steps))

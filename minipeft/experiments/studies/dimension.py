"""How many dimensions of a random subspace reach a share of full fine-tuning's accuracy: the search, of several models.

All is judged on validation rows, after every epoch: the best epoch counts, and training stops when the bar is reached.
The head's classifier is trained beside θ_d, and its pooler, which would be 148 thousand free parameters in MiniLM, is not.
Where the classifier alone reaches a bar, d is 0 and nothing is searched for.

A bar is a share of the accuracy of full fine-tuning, at the best of its rates, with the same seed: of the model's own
("own"), of the best model's ("best"), of the model's shape with random weights ("random"). A model whose full fine-tuning
does not reach a bar is not held to it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from minipeft.backend import random
from minipeft.errors import Diverged
from minipeft.experiments.cell import OnStep
from minipeft.experiments.problems import tokenizer_of
from minipeft.experiments.studies.bases import RANDOM, place
from minipeft.experiments.studies.frame import Job, Jobs, Lab, Row
from minipeft.models import Pretrained, load_model
from minipeft.peft import FullConfig, HeadConfig, IntrinsicConfig, PeftConfig, get_peft_model
from minipeft.training import Trainer, TrainingConfig, evaluate

FULL, HEAD = "full", "head"
BARS = ["own", "best", "random"]
Scores = Mapping[tuple[str, int], float]  # (model, seed) -> accuracy


@dataclass(frozen=True)
class Variant:
    """How θ moves: the projection, and whether each tensor has a strength of its own (SAID) or not (DID)."""

    projection: str
    said: bool

    @property
    def name(self) -> str:
        """As in "fastfood SAID"."""
        return f"{self.projection} {'SAID' if self.said else 'DID'}"


def dimensions(lab: Lab, models: Sequence[str]) -> Jobs:
    """Full fine-tuning and the classifier alone, of every model; then a search for each model, variant, seed and bar.

    The plan's choices have `share`, `bars`, `grid`, `full_rates`, `head_rates`; for the subspaces `variants` and `rates`;
    for those of models with random weights `random_variants` and `random_rates`.
    """
    choices, rows = lab.plan.choices, []
    for model in models:
        for seed in lab.seeds:
            for lr in choices["full_rates"]:
                rows.append((yield _job(lab, model, FullConfig(), FULL, lr, seed, 1.0)))
            for lr in choices["head_rates"]:
                rows.append((yield _job(lab, model, HeadConfig(), HEAD, lr, seed, 1.0)))
    full, head = best_of(rows, FULL), best_of(rows, HEAD)
    for model in models:
        held = {seed: targets(model, seed, choices["bars"], full, head, choices["share"]) for seed in lab.seeds}
        if not any(held.values()):
            continue
        smallest = tensors(start(lab, model, 0))
        for projection, said in choices["random_variants" if model.startswith(RANDOM) else "variants"]:
            variant = Variant(projection, said)
            if grid := [d for d in choices["grid"] if not said or d > smallest]:
                for seed, bars in held.items():
                    for bar in sorted(bars):
                        yield from search(lab, model, variant, seed, grid, bar, max(bars))


def best_of(rows: Iterable[Mapping[str, Any]], what: str) -> dict[tuple[str, int], float]:
    """(model, seed) -> the best accuracy over the rates, where one did not diverge."""
    best: dict[tuple[str, int], float] = {}
    for row in rows:
        if row.get("what") == what and row["accuracy"] is not None:
            key = row["model"], row["seed"]
            best[key] = max(best.get(key, 0.0), row["accuracy"])
    return best


def best_model(full: Scores) -> str:
    """The model whose full fine-tuning is the most accurate, in the mean over its seeds."""
    models = dict.fromkeys(model for model, _ in full)
    return max(models, key=lambda model: mean(score for (name, _), score in full.items() if name == model))


def bar_model(model: str, bar: str, full: Scores) -> str | None:
    """The model whose full fine-tuning sets the bar "own", "best" or "random" for `model`; None where it was not run."""
    named = {"own": model, "random": RANDOM + model.removeprefix(RANDOM).partition("@")[0]}
    name = best_model(full) if bar == "best" and full else named.get(bar)
    return name if any(name == known for known, _ in full) else None


def targets(model: str, seed: int, bars: Iterable[str], full: Scores, head: Scores, share: float) -> set[float]:
    """The bars to search for: those that full fine-tuning reaches and the classifier alone does not."""
    wanted = {share * full[key] for bar in bars if (key := (bar_model(model, bar, full) or "", seed)) in full}
    return {bar for bar in wanted if head.get((model, seed), 0.0) < bar <= full.get((model, seed), 0.0)}


def search(
    lab: Lab, model: str, variant: Variant, seed: int, grid: Sequence[int], bar: float, stop: float
) -> Generator[Job, Row, int | None]:
    """d₉₀ by halving the grid, on which accuracy is taken to rise with d; None when its largest d does not reach the bar.

    Each d has the plan's rates in turn until one reaches the bar: with Adam a step of θ_d M grows with d, so that no rate
    is right for all. A training ends at `stop`, the highest of the bars that its result will be held to.
    """
    below, reached = -1, len(grid)
    while reached - below > 1:
        d = _middle(below, grid[:reached])
        for lr in lab.plan.choices["random_rates" if model.startswith(RANDOM) else "rates"]:
            row = yield _subspace(lab, model, variant, d, lr, seed, stop)
            if (row["accuracy"] or 0.0) >= bar:
                reached = grid.index(d)
                break
        else:
            below = grid.index(d)
    return grid[reached] if reached < len(grid) else None


def _middle(below: int, grid: Sequence[int]) -> int:
    return grid[(below + len(grid)) // 2]


def start(lab: Lab, name: str, seed: int) -> Pretrained:
    """A model by name, or one of its shape with random weights, as at the first step."""
    random.seed(seed)
    model = load_model(place(lab.out, name), labels=lab.task.labels, dropout=0.0)
    if name.startswith(RANDOM):
        tokenizer = model.tokenizer
        kind: Any = type(model)  # every family's own class takes its config
        model = kind(model.hf_config, model.task, model.labels, 0.0)
        model.tokenizer = tokenizer
    return model


def tensors(model: Pretrained) -> int:
    """The parameter tensors outside the head: SAID spends one of d on each."""
    return sum(not name.startswith("head.") for name, _ in model.named_parameters())


class _Reached(Exception):
    """The bar is reached: there is nothing more to train for."""


def _subspace(lab: Lab, model: str, variant: Variant, d: int, lr: float, seed: int, stop: float) -> Job:
    config = IntrinsicConfig(d=d, projection=variant.projection, structure_aware=variant.said, seed=seed)
    return _job(lab, model, config, variant.name, lr, seed, stop)


def _job(lab: Lab, model: str, config: PeftConfig, what: str, lr: float, seed: int, stop: float) -> Job:
    d = getattr(config, "d", None)

    def run(on_step: OnStep | None) -> Row:
        row: Row = {"model": model, "what": what, "seed": seed, "lr": lr, "d": d, "accuracy": None, "loss": None}
        base = start(lab, model, seed)
        row["D"] = sum(p.numel() for name, p in base.named_parameters() if not name.startswith("head."))
        peft = get_peft_model(base, config)
        pooler = getattr(base.head, "pooler", None)
        if pooler is not None and not isinstance(config, FullConfig):
            for parameter in pooler.parameters():
                parameter.requires_grad = False
        row["trainable_params"] = peft.count_parameters().trainable
        train = lab.rows("train", lab.settings.train_size, model)
        validation = lab.rows("validation", lab.validation_size, model)
        labels = validation.labels.tolist()
        row["majority"] = round(max(labels.count(label) for label in set(labels)) / len(labels), 6)
        row["epochs"] = 0
        settings, pad_id = lab.settings, tokenizer_of(peft).pad_id

        def watch(step: int, steps: int, loss: Any) -> None:
            if on_step is not None:
                on_step(step, steps, loss)
            if step % trainer.steps_per_epoch == 0:
                found = evaluate(peft, validation, pad_id)
                row["epochs"] += 1
                best = (-1.0, 0.0) if row["accuracy"] is None else (row["accuracy"], -row["loss"])
                if math.isfinite(found.loss) and (found.accuracy, -found.loss) > best:
                    row["accuracy"], row["loss"] = round(found.accuracy, 6), round(found.loss, 6)
                if (row["accuracy"] or 0.0) >= stop:
                    raise _Reached

        training = TrainingConfig(lr, settings.epochs, settings.batch_size, workers=settings.workers)
        trainer = Trainer(peft, train, pad_id, training, on_step=watch)
        with contextlib.suppress(_Reached, Diverged):
            trainer.run()
        return row

    where = f" d={d}" if d is not None else ""
    return Job(f"{model} {what}{where} at {lr:g}, seed {seed}", run)

"""Intrinsic dimension: the smallest d on a grid that reaches 90 % of full fine-tuning's accuracy (arXiv 2012.13255).

All is judged on validation rows, after every epoch: the best epoch counts, and training stops when the bar is reached. The
head's classifier is trained beside θ_d, and its pooler, which would be 148 thousand free parameters in MiniLM, is not.
Several models are compared at the bar of their own full fine-tuning and at that of the best of them, unless their full
fine-tuning does not reach it. So are the states of a model along its pre-training (`minipeft pretrain --keep`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from minipeft.backend import random
from minipeft.errors import Diverged
from minipeft.experiments.cell import OnStep, Settings
from minipeft.experiments.problems import tokenizer_of
from minipeft.experiments.studies.frame import Job, Jobs, Lab, Plan, Row, Study
from minipeft.models import Pretrained, load_model
from minipeft.peft import FullConfig, IntrinsicConfig, PeftConfig, get_peft_model
from minipeft.training import Trainer, TrainingConfig, evaluate

RANDOM = "random:"  # before a model's name: its shape with random weights


@dataclass(frozen=True)
class Variant:
    """How θ moves: the projection, and whether each tensor has a strength of its own (SAID) or not (DID)."""

    projection: str
    said: bool

    @property
    def name(self) -> str:
        """As in "fastfood SAID"."""
        return f"{self.projection} {'SAID' if self.said else 'DID'}"


def jobs(lab: Lab) -> Jobs:
    """Full fine-tuning of every model first, which sets the bars; then a search for each model, variant and seed."""
    choices = lab.plan.choices
    bars: dict[tuple[str, int], float] = {}
    for model in choices["models"]:
        for seed in lab.seeds:
            found = []
            for lr in choices["full_rates"]:
                found.append((yield _job(lab, model, FullConfig(), f"full at {lr:g}", lr, seed, 1.0)))
            bars[model, seed] = choices["share"] * max(row["accuracy"] or 0.0 for row in found)
    for model in choices["models"]:
        smallest = tensors(start(lab, model, 0))
        for projection, said in choices["variants"]:
            variant = Variant(projection, said)
            grid = [d for d in choices["grid"] if not said or d > smallest]
            for seed in lab.seeds:
                most = bars[model, seed] / choices["share"]  # what cannot be expected of fewer parameters than all
                wanted = {bar for bar in (bars[model, seed], bars[best_model(bars), seed]) if bar <= most}
                for bar in sorted(wanted):
                    yield from search(lab, model, variant, seed, grid, bar, max(wanted))


def best_model(bars: Mapping[tuple[str, int], float]) -> str:
    """Of the bars by (model, seed): the model whose full fine-tuning is the most accurate, over all seeds."""
    models = dict.fromkeys(model for model, _ in bars)
    return max(models, key=lambda model: sum(bar for (name, _), bar in bars.items() if name == model))


def search(
    lab: Lab, model: str, variant: Variant, seed: int, grid: list[int], bar: float, stop: float
) -> Generator[Job, Row, int | None]:
    """d₉₀ by halving the grid, on which accuracy is taken to rise with d; None when its largest d does not reach the bar.

    A training ends at `stop`, the highest of the bars that its result will be held to.
    """
    below, reached = -1, len(grid)
    while reached - below > 1:
        middle = (below + reached) // 2
        d = grid[middle]
        config = IntrinsicConfig(d=d, projection=variant.projection, structure_aware=variant.said, seed=seed)
        row = yield _job(lab, model, config, f"{variant.name} d={d}", lab.plan.choices["lr"], seed, stop)
        if (row["accuracy"] or 0.0) >= bar:
            reached = middle
        else:
            below = middle
    return grid[reached] if reached < len(grid) else None


def start(lab: Lab, name: str, seed: int) -> Pretrained:
    """A model by name, or one of its shape with random weights, as at the first step."""
    random.seed(seed)
    model = load_model(name.removeprefix(RANDOM), labels=lab.task.labels, dropout=0.0)
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


def _job(lab: Lab, model: str, config: PeftConfig, what: str, lr: float, seed: int, stop: float) -> Job:
    def run(on_step: OnStep | None) -> Row:
        row: Row = {"model": model, "seed": seed, "lr": lr, "d": getattr(config, "d", None), "accuracy": None}
        if isinstance(config, IntrinsicConfig):
            row["variant"] = Variant(config.projection, config.structure_aware).name
        base = start(lab, model, seed)
        row["D"] = sum(p.numel() for name, p in base.named_parameters() if not name.startswith("head."))
        peft = get_peft_model(base, config)
        pooler = getattr(base.head, "pooler", None)
        if pooler is not None and not isinstance(config, FullConfig):
            for parameter in pooler.parameters():
                parameter.requires_grad = False
        row["trainable_params"] = peft.count_parameters().trainable
        name = model.removeprefix(RANDOM)
        train = lab.rows("train", lab.settings.train_size, name)
        validation = lab.rows("validation", lab.validation_size, name)
        labels = validation.labels.tolist()
        row["majority"] = round(max(labels.count(label) for label in set(labels)) / len(labels), 6)
        row["epochs"] = 0
        settings, pad_id = lab.settings, tokenizer_of(peft).pad_id

        def watch(step: int, steps: int, loss: Any) -> None:
            if on_step is not None:
                on_step(step, steps, loss)
            if step % trainer.steps_per_epoch == 0:
                accuracy = evaluate(peft, validation, pad_id).accuracy
                row["accuracy"] = round(max(row["accuracy"] or 0.0, accuracy), 6)
                row["epochs"] += 1
                if row["accuracy"] >= stop:
                    raise _Reached

        training = TrainingConfig(lr, settings.epochs, settings.batch_size, workers=settings.workers, cache_mb=0)
        trainer = Trainer(peft, train, pad_id, training, on_step=watch)
        with contextlib.suppress(_Reached, Diverged):
            trainer.run()
        return row

    return Job(f"{model} {what}, seed {seed}", run)


GRID = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000]
VARIANTS = [["fastfood", False], ["fastfood", True], ["sparse", False], ["sparse", True]]
STUDY = Study(
    "d90",
    "How few dimensions reach 90 % of full fine-tuning, and does pre-training make them fewer?",
    full=Plan(
        Settings(test_size=500),
        3,
        {
            "models": ["minilm", "random:minilm"],
            "variants": VARIANTS,
            "grid": GRID,
            "share": 0.9,
            "lr": 1e-3,
            "full_rates": [6e-5, 3e-4],
        },
    ),
    quick=Plan(
        Settings("glassllm", train_size=200, test_size=200, epochs=3),
        1,
        {
            "models": ["glassllm", "random:glassllm"],
            "variants": VARIANTS[:2],
            "grid": GRID[:-2],
            "share": 0.9,
            "lr": 1e-2,
            "full_rates": [1e-3],
        },
    ),
    jobs=jobs,
)

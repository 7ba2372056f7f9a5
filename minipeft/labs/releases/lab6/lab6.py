"""Lab 6: the comparison. Read handout.md first.

One pre-trained model, one new task, and every method of this course side by side. `python lab6.py` runs it all, when tasks
1 to 4 are done: about two minutes on a laptop. Everything of minipeft may be used, except minipeft.experiments and
minipeft.report.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import minipeft as mp
from minipeft import functional
from minipeft.nn import ClassificationHead, Transformer, TransformerConfig
from minipeft.peft import (
    AdapterConfig,
    FullConfig,
    HeadConfig,
    LoraConfig,
    PeftConfig,
    TopKConfig,
    get_peft_model,
)

Rows = tuple[np.ndarray, np.ndarray]  # token ids (n, 8), classes (n,)

# ---- Given: the data, the model, and how it is trained. Nothing to write here.


def make_rows(n: int, seed: int, new: bool = True) -> Rows:
    """Rows of 8 tokens of 24, in four groups of 6. The old task: which group comes most often? The new one: is group 0
    there twice or more?
    """
    ids = np.random.default_rng(seed).integers(1, 25, (n, 8))
    counts = np.stack([((ids - 1) // 6 == group).sum(axis=1) for group in range(4)], axis=1)
    return ids, (counts[:, 0] >= 2).astype(int) if new else counts.argmax(axis=1)


def new_model(state: dict[str, Any], seed: int, classes: int = 2) -> Transformer:
    """A fresh model with the pre-trained weights `state` below a fresh head, which is drawn from `seed`."""
    mp.seed(seed)
    config = TransformerConfig(25, d_model=32, layers=3, heads=4, d_ff=64, max_positions=8, norm_eps=1e-5)
    model = Transformer(config, ClassificationHead(32, classes))
    model.load_state_dict({**model.state_dict(), **state})
    return model


def train(model: Any, rows: Rows, steps: int, lr: float, seed: int) -> None:
    """AdamW on batches of 32 rows, with a learning rate that falls to zero."""
    ids, classes = rows
    optimizer, rng = mp.optim.AdamW(model.parameters(), lr=lr), np.random.default_rng(seed)
    for step in range(steps):
        pick = rng.integers(0, len(ids), 32)
        optimizer.zero_grad()
        functional.cross_entropy(model(ids[pick]), classes[pick]).backward()
        optimizer.step(lr * (1 - step / steps))


def pretrain() -> dict[str, Any]:
    """The weights of a model that has learnt the old task, without its head."""
    model = new_model({}, seed=0, classes=4)
    train(model, make_rows(4000, seed=1, new=False), steps=400, lr=3e-3, seed=0)
    return {name: values.copy() for name, values in model.state_dict().items() if not name.startswith("head.")}


METHODS: dict[str, tuple[PeftConfig, float]] = {
    "head": (HeadConfig(), 1e-2),
    "LoRA r=1": (LoraConfig(r=1, lora_alpha=2), 5e-3),
    "LoRA r=4": (LoraConfig(r=4, lora_alpha=8), 5e-3),
    "adapter R=4": (AdapterConfig(bottleneck=4), 5e-3),
    "top-1": (TopKConfig(1), 2e-3),
    "top-2": (TopKConfig(2), 2e-3),
    "full": (FullConfig(), 1e-3),
}

# ---- Yours.


def run_cell(
    state: dict[str, Any], config: PeftConfig, train_rows: Rows, test_rows: Rows, steps: int, lr: float, seed: int
) -> dict[str, Any]:
    """Task 1. One method, one seed: {"trainable": the number of trained parameters, "accuracy": on the test rows}.

    Make a fresh model (`new_model`), attach the method (`get_peft_model(model, config)`), `train` it, then compare its
    classes (the largest logit) with those of the test rows, inside `with mp.no_grad():`. The accuracy is in [0, 1].
    """
    raise NotImplementedError("Lab 6, task 1: a fresh model, the method, training, and the accuracy on the test rows.")


def compare(
    state: dict[str, Any],
    methods: dict[str, tuple[PeftConfig, float]],
    train_rows: Rows,
    test_rows: Rows,
    steps: int,
    seeds: int,
) -> list[dict[str, Any]]:
    """Task 1. `run_cell` for every method (name -> config and learning rate), and for each of the seeds 0 to seeds - 1.

    A list of {"method", "seed", "trainable", "accuracy"}, method by method in the order given.
    """
    raise NotImplementedError("Lab 6, task 1: a row for every method and seed.")


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Task 2. One {"method", "trainable", "mean", "sd", "n"} a method, from the fewest trained parameters to the most.

    `mean` is of the accuracies of its n seeds, `sd` their standard deviation (divide by n - 1); None for a single seed.
    """
    raise NotImplementedError("Lab 6, task 2: group by method, then mean and standard deviation.")


def plot(table: list[dict[str, Any]]) -> Figure:
    """Task 3. Accuracy against trainable parameters: a Figure with one axes.

    One `ax.errorbar([x], [y], yerr=..., marker=..., label=method)` a method, x its trained parameters, y its mean accuracy
    in per cent, the error bar its sd in per cent (none where sd is None). The x axis is logarithmic. Every method has a
    marker of its own, so that the figure can be read without colours. A legend; axis labels that say "trainable parameters"
    and "accuracy" with its unit, %.
    """
    raise NotImplementedError("Lab 6, task 3: a point with an error bar for each method, on a logarithmic axis.")


def frontier(table: list[dict[str, Any]]) -> list[str]:
    """Task 4. The methods that no other one beats, from the fewest trained parameters to the most.

    One method beats another if it has a mean accuracy that is at least as high with at most as many trained parameters,
    and is better in one of the two.
    """
    raise NotImplementedError("Lab 6, task 4: leave out every method that another one beats.")


def cheapest_within(table: list[dict[str, Any]], points: float) -> str:
    """Task 4. The method with the fewest trained parameters whose mean accuracy is at most `points` percentage points below
    the best one's.
    """
    raise NotImplementedError("Lab 6, task 4: of those that are close enough to the best, the one with the fewest parameters.")


if __name__ == "__main__":
    rows = compare(pretrain(), METHODS, make_rows(400, 3), make_rows(1000, 4), steps=80, seeds=3)
    table = summarise(rows)
    for line in table:
        print(line)
    plot(table).savefig("curve.png", dpi=160)
    print("frontier:", frontier(table))
    print("cheapest within 2 points of the best:", cheapest_within(table, 2.0))

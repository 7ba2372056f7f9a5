"""Evaluation: accuracy and loss of a classifier, likelihood of a language model; nothing is recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from minipeft.autograd import functional
from minipeft.backend import active
from minipeft.backend.workers import Workers
from minipeft.data import EncodedSet, TokenRows, collate, sorted_order
from minipeft.errors import UserError
from minipeft.nn import Module, evaluating
from minipeft.training.targets import logits_and_targets


@dataclass(frozen=True)
class Score:
    """`accuracy` in [0, 1], mean cross-entropy `loss` in nats, and the predicted class of each row, in its order."""

    accuracy: float
    loss: float
    predictions: list[int]


def evaluate(model: Module, dataset: EncodedSet, pad_id: int, batch_size: int = 32, workers: int = 1) -> Score:
    """Score a classifier. Dropout is off inside, and as it was afterwards. The batches are shared among the workers.

    Raises:
        UserError: the data set is empty, or a label is not one of the model's classes.
    """
    if not len(dataset):
        raise UserError("There are no rows to evaluate on.")

    batches = sorted_order(dataset.lengths, batch_size)
    classes, losses = active().shared((len(dataset),), "int64"), active().shared((len(batches),), "float64")

    def score(place: int, indices: Any) -> None:
        batch = collate(dataset, indices, pad_id)
        logits = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        losses[place] = functional.cross_entropy(logits, batch.labels, reduction="sum").data
        classes[active().asarray(indices)] = logits.data.argmax(axis=-1)

    with Workers(active().useful_workers(workers)) as pool, evaluating(model):
        for place, indices in pool.mine(list(enumerate(batches))):
            score(place, indices)
    predictions = active().to_numpy(classes).tolist()
    right = sum(int(a == b) for a, b in zip(predictions, dataset.labels.tolist(), strict=True))
    return Score(right / len(dataset), float(losses.sum()) / len(dataset), predictions)


@dataclass(frozen=True)
class TokenScore:
    """How likely a language model finds some targets: -log likelihood `nats` in all, over `targets` tokens.

    `rows` has the same of each row, in their order.
    """

    nats: float
    targets: int
    rows: list[float]

    @property
    def loss(self) -> float:
        """The mean cross-entropy of a target, in nats."""
        return self.nats / self.targets

    @property
    def perplexity(self) -> float:
        """exp(loss): among so many tokens the model seems to choose."""
        return math.exp(self.loss)


def evaluate_tokens(
    model: Module, dataset: TokenRows, pad_id: int, batch_size: int = 16, workers: int = 1
) -> TokenScore:
    """The likelihood of a data set's targets. Dropout is off inside. The batches are shared among the workers.

    Raises:
        UserError: the data set is empty.
    """
    if not len(dataset):
        raise UserError("There are no rows to evaluate on.")
    nats = active().shared((len(dataset),), "float64")
    with Workers(active().useful_workers(workers)) as pool, evaluating(model):
        for indices in pool.mine(sorted_order(dataset.lengths, batch_size)):
            batch = dataset.batch(indices, pad_id)
            logits, targets = logits_and_targets(model, batch)
            for place, i in enumerate(indices):
                nats[i] = functional.cross_entropy(logits[place], targets[place], reduction="sum").data
    rows = active().to_numpy(nats).tolist()
    return TokenScore(sum(rows), dataset.targets(range(len(dataset))), rows)

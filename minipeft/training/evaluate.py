"""Evaluation: accuracy and loss on a data set, with nothing recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minipeft.autograd import functional, no_grad
from minipeft.backend import active
from minipeft.backend.workers import Workers
from minipeft.data import EncodedSet, collate, sorted_order
from minipeft.errors import UserError
from minipeft.nn import Module


@dataclass(frozen=True)
class Score:
    """`accuracy` in [0, 1], mean cross-entropy `loss` in nats, and the predicted class of each row, in its order."""

    accuracy: float
    loss: float
    predictions: list[int]


def evaluate(model: Module, dataset: EncodedSet, pad_id: int, batch_size: int = 64, workers: int = 1) -> Score:
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

    was_training = model.training
    model.eval()
    try:
        with Workers(active().useful_workers(workers)) as pool, no_grad(), model.prepared():
            for place, indices in pool.mine(list(enumerate(batches))):
                score(place, indices)
    finally:
        model.train(was_training)
    predictions = active().to_numpy(classes).tolist()
    right = sum(int(a == b) for a, b in zip(predictions, dataset.labels.tolist(), strict=True))
    return Score(right / len(dataset), float(losses.sum()) / len(dataset), predictions)

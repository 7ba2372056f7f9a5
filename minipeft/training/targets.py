"""The logits that a batch's targets are compared with, and no others."""

from __future__ import annotations

from typing import Any

from minipeft.autograd import Tensor
from minipeft.data import IGNORE, Batch
from minipeft.nn import Module


def logits_and_targets(model: Module, batch: Batch) -> tuple[Tensor, Any]:
    """Call the model: (batch, classes) and the classes (batch,); or (batch, n, vocab) and the tokens (batch, n).

    A language model's head is left out for the first positions, where no row has a target: with instructions, whose
    targets are at the end, that is most of them, and the head is a fifth of SmolLM2's work.
    """
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    first = 0
    if batch.labels.ndim == 2:
        first = int((batch.labels != IGNORE).any(axis=0).argmax())
    if not first:
        return model(*inputs), batch.labels
    return model(*inputs, first=first), batch.labels[:, first:]

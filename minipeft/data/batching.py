"""From encoded texts to batches of similar length, padded to the longest of the batch.

Attention and every matrix product cost as much for a padding token as for a real one, so texts of similar length go
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minipeft.data.splits import Example
from minipeft.data.tokenize import Encoded, Tokenizer

POOL_BATCHES = 50  # more: less padding; fewer: batches that are mixed better


@dataclass(frozen=True)
class Batch:
    """What a model takes and what the loss compares with: int32 arrays.

    `input_ids`, `attention_mask` (1 for a token, 0 for padding) and `token_type_ids` are (batch, seq); `labels` is
    (batch,), a class a row, or (batch, seq), the next token after each, -100 where none is asked for.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class TrainingSet(Protocol):
    """What a trainer asks of its data, whatever a row and a target are."""

    def __len__(self) -> int:
        """The number of rows that an epoch goes through."""

    def order(self, batch_size: int, rng: np.random.Generator) -> list[Any]:
        """One epoch: the rows of each batch, as `batch` takes them. A function of its arguments alone."""

    def batch(self, indices: Any, pad_id: int) -> Batch:
        """Some rows of one batch, padded to the longest of them."""

    def targets(self, indices: Any) -> int:
        """How many targets these rows have: the loss is their mean."""


@dataclass(frozen=True)
class EncodedSet:
    """n encoded examples: `encodings[i]` has `lengths[i]` tokens and the class `labels[i]`; both are int32 (n,)."""

    encodings: tuple[Encoded, ...]
    labels: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.encodings)

    def order(self, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """As `bucketed_order`."""
        return bucketed_order(self.lengths, batch_size, rng)

    def batch(self, indices: np.ndarray | Sequence[int], pad_id: int) -> Batch:
        """As `collate`."""
        return collate(self, indices, pad_id)

    def targets(self, indices: np.ndarray | Sequence[int]) -> int:
        """A class a row."""
        return len(indices)


def encode_examples(tokenizer: Tokenizer, examples: Sequence[Example], max_length: int = 128) -> EncodedSet:
    """Encode the texts, or the pairs, of `examples` to at most `max_length` tokens each.

    Raises:
        ValueError: some examples have a `text_pair` and some have none.
        UserError: as `Tokenizer.encode`.
    """
    pairs = [example.text_pair for example in examples if example.text_pair is not None]
    if pairs and len(pairs) != len(examples):
        raise ValueError(f"{len(pairs)} of {len(examples)} examples have a text_pair; all of them need one, or none")
    encodings = tokenizer.encode([example.text for example in examples], pairs or None, max_length)
    return EncodedSet(
        encodings=tuple(encodings),
        labels=np.array([example.label for example in examples], dtype=np.int32),
        lengths=np.array([len(encoded.input_ids) for encoded in encodings], dtype=np.int32),
    )


def collate(dataset: EncodedSet, indices: np.ndarray | Sequence[int], pad_id: int) -> Batch:
    """The examples at `indices`, in that order, as one batch, padded on the right to the longest of them."""
    indices = np.asarray(indices, dtype=np.intp)
    if indices.size == 0:
        raise ValueError("a batch needs at least one index")
    lengths = dataset.lengths[indices]
    shape = (len(indices), int(lengths.max()))
    input_ids = np.full(shape, pad_id, dtype=np.int32)
    token_type_ids = np.zeros(shape, dtype=np.int32)
    for row, index in enumerate(indices):
        encoded = dataset.encodings[index]
        input_ids[row, : lengths[row]] = encoded.input_ids
        token_type_ids[row, : lengths[row]] = encoded.token_type_ids
    attention_mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int32)  # (seq,) < (batch, 1) -> (batch, seq)
    return Batch(input_ids, attention_mask, token_type_ids, dataset.labels[indices])


def pad(rows: Sequence[Sequence[int] | np.ndarray], pad_id: int, side: str = "right") -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens as one int32 array (batch, longest), filled up at "right" or "left", and its mask of 0 and 1."""
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int32)
    mask = np.zeros((len(rows), width), dtype=np.int32)
    for place, row in enumerate(rows):
        cut = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[place, cut], mask[place, cut] = row, 1
    return ids, mask


def bucketed_order(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One epoch for training: batches of indices, each index once, of similar length within a batch.

    The indices are shuffled, cut into pools of 50 batches, sorted by length within a pool and cut into batches, and the
    batches are shuffled. A function of its arguments alone: the same state of `rng` gives the same batches. At most one
    batch is short.
    """
    lengths = _checked(lengths, batch_size)
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for pool in _cut(order, POOL_BATCHES * batch_size):
        batches += _cut(pool[np.argsort(lengths[pool], kind="stable")], batch_size)
    return [batches[index] for index in rng.permutation(len(batches))]


def sorted_order(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """One pass for evaluation: batches of indices, longest first (what does not fit in memory fails at once)."""
    lengths = _checked(lengths, batch_size)
    return _cut(np.argsort(-lengths.astype(np.int64), kind="stable"), batch_size)


def _checked(lengths: np.ndarray, batch_size: int) -> np.ndarray:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    return np.asarray(lengths)


def _cut(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]

"""Rows for a language model: at every token a target, the token that comes next, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minipeft.data.batching import Batch, bucketed_order, pad
from minipeft.errors import UserError

IGNORE = -100  # the target of a token after which nothing is asked for


@dataclass(frozen=True)
class TokenRows:
    """n rows of tokens: `ids[i]` and its targets `labels[i]`, int32 (length,) both; each row has a target somewhere."""

    ids: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each row, int32 (n,)."""
        return np.array([len(row) for row in self.ids], dtype=np.int32)

    def order(self, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Batches of rows of similar length, see `bucketed_order`."""
        return bucketed_order(self.lengths, batch_size, rng)

    def batch(self, indices: Sequence[int] | np.ndarray, pad_id: int) -> Batch:
        """The rows at `indices`, padded on the right; padding has no target."""
        ids, mask = pad([self.ids[i] for i in indices], pad_id)
        labels, _ = pad([self.labels[i] for i in indices], IGNORE)
        return Batch(ids, mask, np.zeros_like(ids), labels)

    def targets(self, indices: Sequence[int] | np.ndarray) -> int:
        """The tokens that are to be predicted."""
        return int(sum((self.labels[i] != IGNORE).sum() for i in indices))

    def sample(self, n: int) -> TokenRows:
        """n rows (or all, where there are fewer) at equal distances: of a text, from its beginning to its end."""
        n = min(n, len(self))
        places = [i * len(self) // n for i in range(n)]
        return TokenRows(tuple(self.ids[i] for i in places), tuple(self.labels[i] for i in places))


@dataclass(frozen=True)
class PackedTokens:
    """A long text as one array of tokens (N,), cut into windows of `context` tokens without any padding.

    Where the first window of an epoch begins is drawn, so that a token does not stand in the same place each time. A row
    is named by the place of its first token.

    Raises:
        UserError: the text is shorter than two windows.
    """

    tokens: np.ndarray
    context: int

    def __post_init__(self) -> None:
        if self.context < 1:
            raise UserError(f"context={self.context}: a window has 1 token or more.")
        if len(self.tokens) < 2 * self.context:
            raise UserError(
                f"The text has {len(self.tokens)} tokens, too few for windows of {self.context}: at least "
                f"{2 * self.context} are needed. Give more text, or a shorter context."
            )

    def __len__(self) -> int:
        return (len(self.tokens) - self.context) // self.context

    def order(self, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Batches of windows in a random order; together they cover the text once."""
        starts = rng.permutation(len(self)) * self.context + rng.integers(self.context)
        return [starts[at : at + batch_size] for at in range(0, len(starts), batch_size)]

    def batch(self, indices: Sequence[int] | np.ndarray, pad_id: int = 0) -> Batch:
        """The windows that begin at `indices`, and the token after each of theirs."""
        windows = self.tokens[np.asarray(indices)[:, None] + np.arange(self.context + 1)]
        ids = windows[:, :-1]
        return Batch(ids, np.ones_like(ids), np.zeros_like(ids), windows[:, 1:])

    def targets(self, indices: Sequence[int] | np.ndarray) -> int:
        """Every token of every window."""
        return len(indices) * self.context


def windows(tokens: Sequence[int] | np.ndarray, context: int) -> TokenRows:
    """A text to be measured, cut so that each of its tokens but the first is a target exactly once.

    The windows do not overlap: a token is predicted from the tokens before it in its window.
    """
    array = np.asarray(tokens, dtype=np.int32)
    starts = range(0, len(array) - 1, context)
    ids = tuple(array[at : at + context][: len(array) - 1 - at] for at in starts)
    return TokenRows(ids, tuple(array[at + 1 : at + 1 + context] for at in starts))

"""Choosing the next token from its logits: the likeliest one, or a draw from what temperature, top-k and top-p leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minipeft.backend import Array, active
from minipeft.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token, and when to stop.

    Attributes:
        max_new_tokens: the most tokens to write.
        temperature: T in softmax(logits / T); 0 takes the likeliest token each time (greedy).
        top_k: draw among the k likeliest tokens alone; 0 for all.
        top_p: draw among the fewest likeliest tokens that have a probability of top_p together (nucleus sampling,
            arXiv 1904.09751, section 3.1); 1 for all. After top_k.
        stop: texts that end the continuation where they first appear; they are not part of it.
        use_cache: keep keys and values (see `nn/cache.py`); without, every token is computed again at each step.
    """

    max_new_tokens: int = 100
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    use_cache: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens}: write 1 token or more.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(
                f"temperature={self.temperature}: 0 for the likeliest token, or a positive number like 0.8."
            )
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k}: the number of tokens to draw among; 0 for all.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: a probability in (0, 1]; 1 for all tokens.")
        if isinstance(self.stop, str) or not all(self.stop):
            raise UserError(f"stop={self.stop!r}: a tuple of texts, none of them empty.")


def choose(logits: Array, sampling: Sampling, draws: Sequence[float]) -> list[int]:
    """(batch, vocab) -> a token for each row; `draws` are numbers in [0, 1), one a row."""
    backend, xp = active(), active().xp
    if sampling.temperature == 0:
        return [int(token) for token in backend.to_numpy(logits.argmax(axis=-1))]
    order = xp.argsort(-logits, axis=-1)  # the likeliest first
    if sampling.top_k:
        order = order[:, : sampling.top_k]
    kept = xp.take_along_axis(logits, order, axis=-1).astype("float64")
    p = xp.exp((kept - kept[:, :1]) / sampling.temperature)
    p /= p.sum(axis=-1, keepdims=True)
    before = xp.cumsum(p, axis=-1) - p  # of all likelier tokens together
    p = xp.where(before < sampling.top_p, p, 0.0)  # the first stays always
    total = xp.cumsum(p, axis=-1)
    threshold = xp.asarray(list(draws), dtype="float64")[:, None] * total[:, -1:]
    place = xp.minimum((total <= threshold).sum(axis=-1), (p > 0).sum(axis=-1) - 1)
    return [int(token) for token in backend.to_numpy(xp.take_along_axis(order, place[:, None], axis=-1)[:, 0])]

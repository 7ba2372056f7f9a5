"""Reading prompts with a causal model: what they have in common once, the rest of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minipeft.backend import Array
from minipeft.data.batching import pad
from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError
from minipeft.nn import KVCache, Module


def base_of(model: Module) -> Any:
    """The model itself, or the one that a method is attached to.

    Raises:
        UserError: it is not a causal language model with a tokenizer.
    """
    base: Any = getattr(model, "model", model)
    if getattr(base, "task", None) != "causal-lm":
        raise UserError("A causal language model is needed: load_model(..., task='causal-lm') of a GPT-2 or a Llama.")
    return base


def tokenizer_of(model: Module) -> Tokenizer:
    """The tokenizer of a causal model. Raises UserError when its folder has none."""
    tokenizer: Tokenizer | None = base_of(model).tokenizer
    if tokenizer is None:
        raise UserError("The model's folder has no tokenizer, so it can neither read nor write texts.")
    return tokenizer


def context_of(model: Module) -> int:
    """The most tokens of a text that a causal model reads, beside those that its method puts before them."""
    method = getattr(model, "method", None)
    most: int = base_of(model).config.max_positions - (method.virtual_tokens if method is not None else 0)
    return most


def read(
    model: Module, rows: Sequence[Sequence[int]], pad_id: int, prefix: KVCache | None = None
) -> tuple[KVCache, Array]:
    """Read rows of tokens, none of them empty: what the model has seen, and the logits of what comes next, (batch, vocab).

    The tokens that all rows begin with are read once. The others are read together, filled up on the left, so that the
    last token of every row is in the last place.

    Args:
        model: a causal language model.
        rows: the tokens of each row.
        pad_id: fills the rows up.
        prefix: a cache of one row, which all rows continue; it stays as it is.
    """
    shared = common_prefix(rows)
    layers = base_of(model).config.layers
    cache = KVCache(layers) if prefix is None else prefix.rows([0])
    if len(rows) > 1 and shared:
        model(*pad([rows[0][:shared]], pad_id), cache=cache, last=True)
        rows = [row[shared:] for row in rows]
    ids, mask = pad(rows, pad_id, "left")
    if len(rows) > 1 and cache.slots:
        cache = cache.repeat(len(rows))
    return cache, model(ids, mask, cache=cache, last=True).data[:, -1]


def read_afresh(model: Module, rows: Sequence[Sequence[int]], pad_id: int) -> Array:
    """The logits of `read`, computed without a cache: every token of every row runs through the model again."""
    ids, mask = pad(rows, pad_id)
    ends = [len(row) - 1 for row in rows]
    return model(ids, mask).data[list(range(len(rows))), ends]


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with; the last token of each row is not counted."""
    most = min(len(row) for row in rows) - 1
    for place in range(most):
        if any(row[place] != rows[0][place] for row in rows):
            return place
    return most

"""Cached activations: what enters the lowest trained block is computed once for each row, not once in every epoch.

Below the cut of top-K nothing changes while training: the frozen blocks give the same output for a row each time, as long
as no dropout is drawn there. The rows are computed before the first step, in an order of their own, so that a resumed run
has the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minipeft.autograd import Tensor, no_grad
from minipeft.backend import Array, active
from minipeft.backend.workers import current_workers
from minipeft.data import EncodedSet, TokenRows, TrainingSet, sorted_order
from minipeft.nn import Module, Transformer
from minipeft.peft import PeftModel


@dataclass(frozen=True)
class CachedBatch:
    """`hidden` (batch, seq, d), zero at padding; `attention_mask` (batch, seq); `labels` as the batch's."""

    hidden: Array
    attention_mask: Any
    labels: Any

    def __len__(self) -> int:
        return len(self.labels)


class ActivationCache:
    """The activations at a cut for every row of a data set; make it before the workers start, `fill` it among them.

    Args:
        model: its blocks from `cut` on are trained, those below are not.
        cut: the index of the lowest trained block; the number of blocks when the head alone is trained.
        dataset: the rows; each takes 4 · tokens · d bytes.
        pad_id: fills a batch up.
    """

    def __init__(self, model: Transformer, cut: int, dataset: EncodedSet | TokenRows, pad_id: int) -> None:
        self.model, self.cut, self.dataset, self.pad_id = model, cut, dataset, pad_id
        self.ends = dataset.lengths.cumsum(dtype="int64")
        size = (int(self.ends[-1]), model.config.d_model)  # the tokens of all rows, end to end
        self.tokens = active().shared(size, next(model.parameters()).dtype)

    def fill(self, batch_size: int = 64) -> None:
        """Compute all rows, `batch_size` at a time, each worker its part; when all have come back, it is done."""
        workers = current_workers()
        with no_grad():
            for indices in workers.mine(sorted_order(self.dataset.lengths, batch_size)):
                batch = self.dataset.batch(indices, self.pad_id)
                hidden = self.model.lower(batch.input_ids, batch.attention_mask, batch.token_type_ids, self.cut).data
                for i, row in zip(indices, hidden, strict=True):
                    self._row(i)[...] = row[: self.dataset.lengths[i]]
        workers.barrier()

    def _row(self, i: int) -> Array:
        return self.tokens[self.ends[i] - self.dataset.lengths[i] : self.ends[i]]

    def batch(self, indices: Sequence[int]) -> CachedBatch:
        """The rows at `indices`, padded with zeros to the longest."""
        plain = self.dataset.batch(indices, self.pad_id)
        hidden = active().xp.zeros((*plain.attention_mask.shape, self.model.config.d_model), dtype=self.tokens.dtype)
        for place, i in enumerate(indices):
            hidden[place, : self.dataset.lengths[i]] = self._row(i)
        return CachedBatch(hidden, plain.attention_mask, plain.labels)

    def logits(self, batch: CachedBatch) -> Tensor:
        """The rest of the forward pass."""
        return self.model.upper(Tensor(batch.hidden), batch.attention_mask, self.cut)


def cache_for(model: Module, dataset: TrainingSet, pad_id: int, budget_mb: float) -> ActivationCache | None:
    """A cache for a model with a cut, or None.

    None when nothing is frozen below it, when dropout is drawn, when it is over the budget, or when the rows are others in
    each epoch.
    """
    if not isinstance(dataset, EncodedSet | TokenRows):
        return None
    if not isinstance(model, PeftModel) or not isinstance(model.model, Transformer):
        return None
    cut, config = model.method.cut(model.model), model.model.config
    size = 4 * int(dataset.lengths.sum()) * config.d_model
    if cut == 0 or config.dropout or config.attention_dropout or size > 1e6 * budget_mb:
        return None
    return ActivationCache(model.model, cut, dataset, pad_id)

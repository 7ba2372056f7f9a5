"""The heads: what turns the last hidden states into logits of classes, or of the next token."""

from __future__ import annotations

from typing import Any

from minipeft.autograd import Tensor, functional
from minipeft.backend import active, random
from minipeft.nn.layers import Dropout, Embedding, Linear
from minipeft.nn.module import Module


class ClassificationHead(Module):
    """Logits from the first position, tanh(x₀ W_p + b_p) W_c + b_c: BERT's pooler and a classifier (arXiv 1810.04805).

    `reads` says which positions count, so that the last block computes no others.
    """

    reads = slice(0, 1)

    def __init__(self, d: int, num_labels: int, dropout: float = 0.0, rng: random.Generator | None = None) -> None:
        self.pooler = Linear(d, d, rng=rng)
        self.classifier = Linear(d, num_labels, rng=rng)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq, d) -> (batch, num_labels)."""
        return self.classifier(self.dropout(self.pooler(x[:, 0]).tanh()))


class LastTokenHead(Module):
    """Logits from the last token, x_n W_c: the only one that has seen the whole text in a causal model."""

    def __init__(self, d: int, num_labels: int, dropout: float = 0.0, rng: random.Generator | None = None) -> None:
        self.classifier = Linear(d, num_labels, bias=False, rng=rng)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        """(batch, seq, d), mask (batch, seq) -> (batch, num_labels)."""
        xp = active().xp
        if mask is None:
            last = x[:, -1]
        else:  # the largest position that counts
            places = (xp.arange(x.shape[1]) * (mask != 0)).argmax(axis=1)
            rows = x.reshape(-1, x.shape[2])  # (batch · seq, d)
            last = functional.embedding(rows, xp.arange(x.shape[0]) * x.shape[1] + places)
        return self.classifier(self.dropout(last))


class LanguageHead(Module):
    """Logits of the next token after each: X Eᵀ with the word table E (tied), or X W with a matrix of its own.

    It is part of the pre-trained model, not a fresh task head: methods leave it as it is.
    """

    def __init__(self, table: Embedding, tied: bool = True, rng: random.Generator | None = None) -> None:
        vocab, d = table.weight.shape
        self.weight = table.weight if tied else Linear(d, vocab, bias=False, rng=rng).weight
        self.tied = tied

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq, d) -> (batch, seq, vocab)."""
        return functional.unembed(x, self.weight) if self.tied else functional.linear(x, self.weight)

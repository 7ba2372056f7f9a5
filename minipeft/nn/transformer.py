"""The transformer: `Embeddings`, `Block`, `ClassificationHead`, and `Transformer` over them.

The parts carry the names that every model family and every method's targets share:
`embed`, `blocks.N.{q_proj, k_proj, v_proj, o_proj, up_proj, down_proj, attn_norm, mlp_norm}`, `final_norm`, `head`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minipeft.autograd import Tensor, functional
from minipeft.backend import active, random
from minipeft.errors import UserError
from minipeft.nn.layers import Dropout, Embedding, LayerNorm, Linear
from minipeft.nn.module import Module


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a transformer.

    Attributes:
        vocab_size: rows of the word table.
        d_model: width of the residual stream, d.
        layers: number of blocks, L.
        heads: attention heads; they divide d.
        d_ff: inner width of the feed-forward part.
        max_positions: the longest sequence, in tokens.
        type_vocab: rows of the segment table; 0 for none.
        norm_eps: ε of the layer norms.
        norm_first: True for pre-norm blocks x + f(norm(x)), False for post-norm ones norm(x + f(x)).
        activation: "gelu" (exact) or "gelu_tanh".
        causal: whether a position sees only those up to itself.
        dropout: probability after the embeddings, each sub-layer, and before the classifier.
        attention_dropout: probability for attention weights.
    """

    vocab_size: int
    d_model: int
    layers: int
    heads: int
    d_ff: int
    max_positions: int = 512
    type_vocab: int = 0
    norm_eps: float = 1e-12
    norm_first: bool = False
    activation: str = "gelu"
    causal: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "heads", "d_ff", "max_positions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: a transformer needs at least 1.")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: a probability in [0, 1) is needed.")
        if self.d_model % self.heads:
            raise UserError(f"{self.heads} heads do not divide a width of {self.d_model}.")
        if self.activation not in ("gelu", "gelu_tanh"):
            raise UserError(f"Unknown activation {self.activation!r}. Known: gelu, gelu_tanh.")


class Embeddings(Module):
    """Word + position (+ segment) rows, normalised in a post-norm model (arXiv 1810.04805, figure 2)."""

    def __init__(self, config: TransformerConfig, rng: random.Generator | None = None) -> None:
        d = config.d_model
        self.word = Embedding(config.vocab_size, d, rng)
        self.position = Embedding(config.max_positions, d, rng)
        self.segment = Embedding(config.type_vocab, d, rng) if config.type_vocab else None
        self.norm = None if config.norm_first else LayerNorm(d, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, ids: Any, segments: Any = None) -> Tensor:
        """Integer arrays (batch, seq) -> (batch, seq, d)."""
        longest = self.position.weight.shape[0]
        if ids.shape[1] > longest:
            raise UserError(f"The sequence has {ids.shape[1]} tokens; this model reads at most {longest}. Truncate it.")
        x = self.word(ids) + self.position.weight[: ids.shape[1]]  # (batch, seq, d) + (seq, d)
        if self.segment is not None:
            x = x + self.segment(0 * ids if segments is None else segments)
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x)


class Block(Module):
    """Attention, then a feed-forward part, each inside a residual connection (arXiv 1706.03762, section 3)."""

    def __init__(self, config: TransformerConfig, rng: random.Generator | None = None) -> None:
        d = config.d_model
        self.config = config
        self.q_proj = Linear(d, d, rng=rng)
        self.k_proj = Linear(d, d, rng=rng)
        self.v_proj = Linear(d, d, rng=rng)
        self.o_proj = Linear(d, d, rng=rng)
        self.attn_norm = LayerNorm(d, config.norm_eps)
        self.up_proj = Linear(d, config.d_ff, rng=rng)
        self.down_proj = Linear(config.d_ff, d, rng=rng)
        self.mlp_norm = LayerNorm(d, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Any = None, wanted: slice | None = None) -> Tensor:
        """(batch, seq, d), mask (batch, seq) -> (batch, seq, d), or the `wanted` positions of it alone.

        Those see all positions as ever: what is left out is the rest's queries, and all that comes after attention.
        """
        if self.config.norm_first:
            h = self.attn_norm(x)
            x = _cut(x, wanted) + self.dropout(self.attend(h, mask, wanted))
            return x + self.dropout(self.feed_forward(self.mlp_norm(x)))
        x = self.attn_norm(_cut(x, wanted) + self.dropout(self.attend(x, mask, wanted)))
        return self.mlp_norm(x + self.dropout(self.feed_forward(x)))

    def attend(self, x: Tensor, mask: Any = None, wanted: slice | None = None) -> Tensor:
        """softmax(Q Kᵀ/√d_h) V · W_O over the heads, with Q = X W_Q, K = X W_K, V = X W_V."""
        p = self.config.attention_dropout if self.training else 0.0
        q, k, v = self.q_proj(_cut(x, wanted)), self.k_proj(x), self.v_proj(x)
        mixed = functional.attention(q, k, v, self.config.heads, mask=mask, causal=self.config.causal, dropout_p=p)
        return self.o_proj(mixed)

    def feed_forward(self, x: Tensor) -> Tensor:
        """gelu(X W_up + b) W_down + b."""
        approximate = "tanh" if self.config.activation == "gelu_tanh" else "none"
        return self.down_proj(functional.gelu(self.up_proj(x), approximate))


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


class Transformer(Module):
    """Embeddings, blocks, a final norm in pre-norm models, and a head (None to return the hidden states)."""

    def __init__(
        self, config: TransformerConfig, head: Module | None = None, rng: random.Generator | None = None
    ) -> None:
        self.config = config
        self.embed = Embeddings(config, rng)
        self.blocks = [Block(config, rng) for _ in range(config.layers)]
        self.final_norm = LayerNorm(config.d_model, config.norm_eps) if config.norm_first else None
        self.head = head

    def forward(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> Tensor:
        """Integer arrays (batch, seq) -> the head's output, or (batch, seq, d) without a head.

        `attention_mask` is nonzero at the tokens that count and zero at padding.
        """
        return self.upper(self.lower(input_ids, attention_mask, token_type_ids), attention_mask)

    def lower(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, cut: int = 0) -> Tensor:
        """The embeddings and the blocks below `cut`: what enters block `cut`, (batch, seq, d)."""
        ids, mask, segments = _inputs(input_ids, attention_mask, token_type_ids)
        x = self.embed(ids, segments)
        for block in self.blocks[:cut]:
            x = block(x, mask)
        return x

    def upper(self, x: Tensor, attention_mask: Any = None, cut: int = 0) -> Tensor:
        """The blocks from `cut` on, the final norm and the head. The last block computes only what the head reads."""
        mask = _mask(attention_mask)
        wanted = None if self.config.causal else getattr(self.head, "reads", None)
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks[cut:], start=cut):
            x = block(x, mask, wanted if i == last else None)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return self.head(x) if self.head is not None else x


def _cut(x: Tensor, wanted: slice | None) -> Tensor:
    """(batch, seq, d) -> (batch, the wanted positions, d)."""
    return x if wanted is None else x[:, wanted]


def _inputs(ids: Any, mask: Any, segments: Any) -> tuple[Any, Any, Any]:
    """The inputs, checked against each other on the host; only the mask is an array of the backend by now, or None."""
    arrays: list[Any] = []
    for name, value in (("input_ids", ids), ("attention_mask", mask), ("token_type_ids", segments)):
        array = None if value is None else active().to_numpy(value)
        if array is not None and (array.ndim != 2 or array.dtype.kind not in "iub"):
            raise UserError(f"{name} is an integer array (batch, seq), not {array.dtype} of shape {array.shape}.")
        if array is not None and arrays and array.shape != arrays[0].shape:
            raise UserError(f"{name} has shape {array.shape}, input_ids {arrays[0].shape}; they must be equal.")
        arrays.append(array)
    return arrays[0], _mask(arrays[1]), arrays[2]


def _mask(mask: Any) -> Any:
    """The mask as an array of the backend; None when it hides nothing."""
    if mask is None:
        return None
    host = active().to_numpy(mask)
    return None if host.all() else active().asarray(host)

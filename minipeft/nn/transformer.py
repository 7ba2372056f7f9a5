"""The transformer: `Embeddings`, `Block`, and `Transformer` over them.

The parts carry the names that every model family and every method's targets share:
`embed`, `blocks.N.{q_proj, k_proj, v_proj, o_proj, up_proj, gate_proj, down_proj, attn_norm, mlp_norm}`, `final_norm`,
`head`. BERT, GPT-2 and Llama are three configs of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minipeft.autograd import Tensor, functional
from minipeft.autograd.rope import rope
from minipeft.autograd.tensor import grad_enabled
from minipeft.backend import Array, active, random
from minipeft.errors import UserError
from minipeft.nn.cache import KVCache, LayerCache
from minipeft.nn.heads import LastTokenHead
from minipeft.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm
from minipeft.nn.module import Module

ACTIVATIONS = ("gelu", "gelu_tanh", "swiglu")
NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layer": LayerNorm, "rms": RMSNorm}


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a transformer.

    Attributes:
        vocab_size: rows of the word table.
        d_model: width of the residual stream, d.
        layers: number of blocks, L.
        heads: attention heads; they divide d.
        kv_heads: heads of keys and values, each shared by a group of query heads; 0 for as many as `heads`.
        d_ff: inner width of the feed-forward part.
        max_positions: the longest sequence, in tokens.
        rope_base: the base of rotary positions; 0 for a table of learned ones.
        type_vocab: rows of the segment table; 0 for none.
        norm: "layer" or "rms".
        norm_eps: ε of the norms.
        norm_first: True for pre-norm blocks x + f(norm(x)), False for post-norm ones norm(x + f(x)).
        activation: "gelu" (exact), "gelu_tanh", or "swiglu", which has a third matrix, gate_proj.
        attention_bias: whether q_proj, k_proj, v_proj and o_proj have a b.
        mlp_bias: whether the feed-forward part's have.
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
    kv_heads: int = 0
    rope_base: float = 0.0
    norm: str = "layer"
    attention_bias: bool = True
    mlp_bias: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "heads", "d_ff", "max_positions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: a transformer needs at least 1.")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: a probability in [0, 1) is needed.")
        if self.d_model % self.heads:
            raise UserError(f"{self.heads} heads do not divide a width of {self.d_model}.")
        if self.kv_heads < 0 or self.heads % (self.kv_heads or self.heads):
            raise UserError(f"{self.kv_heads} heads of keys and values do not divide {self.heads} query heads.")
        if self.rope_base and (self.rope_base < 0 or self.d_model // self.heads % 2):
            raise UserError(
                f"rope_base={self.rope_base}, heads of width {self.d_model // self.heads}: rotary positions need a "
                "positive base and an even width."
            )
        if self.activation not in ACTIVATIONS:
            raise UserError(f"Unknown activation {self.activation!r}. Known: {', '.join(ACTIVATIONS)}.")
        if self.norm not in NORMS:
            raise UserError(f"Unknown norm {self.norm!r}. Known: {', '.join(NORMS)}.")

    @property
    def d_kv(self) -> int:
        """The width of all keys (or values) of a position."""
        return (self.kv_heads or self.heads) * (self.d_model // self.heads)

    def make_norm(self) -> LayerNorm | RMSNorm:
        """A norm of the kind and width of this model."""
        return NORMS[self.norm](self.d_model, self.norm_eps)


class Embeddings(Module):
    """Word (+ position, unless rotary) (+ segment) rows, normalised in a post-norm model (arXiv 1810.04805, figure 2)."""

    def __init__(self, config: TransformerConfig, rng: random.Generator | None = None) -> None:
        d = config.d_model
        self.word = Embedding(config.vocab_size, d, rng)
        self.position = None if config.rope_base else Embedding(config.max_positions, d, rng)
        self.segment = Embedding(config.type_vocab, d, rng) if config.type_vocab else None
        self.norm = None if config.norm_first else config.make_norm()
        self.dropout = Dropout(config.dropout)
        self.max_positions = config.max_positions

    def forward(self, ids: Any, segments: Any = None, past: LayerCache | None = None) -> Tensor:
        """Integer arrays (batch, seq) -> (batch, seq, d)."""
        return self.place(self.word(ids), 0 * ids if segments is None else segments, past)

    def place(self, x: Tensor, segments: Any, past: LayerCache | None = None, start: int = 0) -> Tensor:
        """Word rows, or what stands for them, and their segments -> (batch, seq, d); the first position is `start`."""
        seen = start + x.shape[1] if past is None else past.seen
        if seen > self.max_positions:
            raise UserError(
                f"The sequence has {seen} tokens; this model reads at most {self.max_positions}. Truncate it."
            )
        if self.position is not None:  # (batch, seq, d) + (seq, d)
            x = x + (self.position.weight[start:seen] if past is None else self.position(past.positions))
        if self.segment is not None:
            x = x + self.segment(segments)
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x)


class Block(Module):
    """Attention, then a feed-forward part, each inside a residual connection (arXiv 1706.03762, section 3)."""

    def __init__(self, config: TransformerConfig, rng: random.Generator | None = None) -> None:
        d = config.d_model
        self.config = config
        self.q_proj = Linear(d, d, config.attention_bias, rng)
        self.k_proj = Linear(d, config.d_kv, config.attention_bias, rng)
        self.v_proj = Linear(d, config.d_kv, config.attention_bias, rng)
        self.o_proj = Linear(d, d, config.attention_bias, rng)
        self.attn_norm = config.make_norm()
        self.up_proj = Linear(d, config.d_ff, config.mlp_bias, rng)
        self.gate_proj = Linear(d, config.d_ff, config.mlp_bias, rng) if config.activation == "swiglu" else None
        self.down_proj = Linear(config.d_ff, d, config.mlp_bias, rng)
        self.mlp_norm = config.make_norm()
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Any = None, past: LayerCache | None = None, wanted: slice | None = None
    ) -> Tensor:
        """(batch, seq, d), mask (batch, past + seq) -> (batch, seq, d). `past` holds the tokens before these.

        Of `wanted` positions alone, if given: they see all others as ever; what is left out is the others' queries, and
        all that comes after attention.
        """
        if self.config.norm_first:
            h = self.attn_norm(x)
            x = _cut(x, wanted) + self.dropout(self.attend(h, mask, past, wanted))
            return x + self.dropout(self.feed_forward(self.mlp_norm(x)))
        x = self.attn_norm(_cut(x, wanted) + self.dropout(self.attend(x, mask, past, wanted)))
        return self.mlp_norm(x + self.dropout(self.feed_forward(x)))

    def attend(
        self, x: Tensor, mask: Any = None, past: LayerCache | None = None, wanted: slice | None = None
    ) -> Tensor:
        """softmax(Q Kᵀ/√d_h) V · W_O over the heads, with Q = X W_Q, K = X W_K, V = X W_V, Q and K turned where rotary."""
        config = self.config
        p = config.attention_dropout if self.training else 0.0
        kv = config.kv_heads or config.heads
        q, k, v = self.q_proj(_cut(x, wanted)), self.k_proj(x), self.v_proj(x)
        if config.rope_base:
            positions = positions_of(x, past)
            q, k = rope(q, config.heads, positions, config.rope_base), rope(k, kv, positions, config.rope_base)
        if past is not None:
            k, v = past.extend(k, v)
        mixed = functional.attention(q, k, v, config.heads, mask=mask, causal=config.causal, dropout_p=p, kv_heads=kv)
        return self.o_proj(mixed)

    def feed_forward(self, x: Tensor) -> Tensor:
        """gelu(X W_up + b) W_down + b, or (silu(X W_gate) ⊙ X W_up) W_down."""
        if self.gate_proj is not None:
            return self.down_proj(functional.swiglu(self.gate_proj(x), self.up_proj(x)))
        approximate = "tanh" if self.config.activation == "gelu_tanh" else "none"
        return self.down_proj(functional.gelu(self.up_proj(x), approximate))


class Transformer(Module):
    """Embeddings, blocks, a final norm in pre-norm models, and a head (None to return the hidden states)."""

    def __init__(
        self, config: TransformerConfig, head: Module | None = None, rng: random.Generator | None = None
    ) -> None:
        self.config = config
        self.embed = Embeddings(config, rng)
        self.blocks = [Block(config, rng) for _ in range(config.layers)]
        self.final_norm = config.make_norm() if config.norm_first else None
        self.head = head

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        cache: KVCache | None = None,
        last: bool = False,
        first: int = 0,
    ) -> Tensor:
        """Integer arrays (batch, seq) -> the head's output, or (batch, seq, d) without a head.

        Args:
            input_ids: the tokens.
            attention_mask: nonzero at the tokens that count and zero at padding.
            token_type_ids: the segment of each token, where the model has segments.
            cache: for generation: what a causal model has read before these tokens; they are added to it.
            last: with a cache: compute the output of the last position alone.
            first: compute the outputs from this position on.
        """
        if cache is not None:
            return self._read_on(input_ids, attention_mask, cache, last)
        return self.upper(self.lower(input_ids, attention_mask, token_type_ids), attention_mask, first=first)

    def lower(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, cut: int = 0) -> Tensor:
        """The embeddings and the blocks below `cut`: what enters block `cut`, (batch, seq, d)."""
        ids, mask, segments = checked_inputs(input_ids, attention_mask, token_type_ids)
        x = self.embed(ids, segments)
        for block in self.blocks[:cut]:
            x = block(x, mask)
        return x

    def upper(
        self,
        x: Tensor,
        attention_mask: Any = None,
        cut: int = 0,
        first: int = 0,
        pasts: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """The blocks from `cut` on; for the positions from `first` on, the final norm and the head.

        The last block computes only what the head reads. `pasts`, one a block, hold keys and values that come before
        those of x and are always seen.
        """
        mask = seen = _mask(attention_mask)
        if pasts is not None and mask is not None:
            ones = active().xp.ones((mask.shape[0], pasts[0].start), dtype=mask.dtype)
            seen = active().xp.concatenate([ones, mask], axis=1)
        wanted = None if self.config.causal else getattr(self.head, "reads", None)
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks[cut:], start=cut):
            x = block(x, seen, pasts[i] if pasts is not None else None, wanted if i == last else None)
        return self._finish(x[:, first:] if first else x, mask)

    def _finish(self, x: Tensor, mask: Any) -> Tensor:
        if self.final_norm is not None:
            x = self.final_norm(x)
        if self.head is None:
            return x
        return self.head(x, mask) if isinstance(self.head, LastTokenHead) else self.head(x)

    def _read_on(self, input_ids: Any, attention_mask: Any, cache: KVCache, last: bool) -> Tensor:
        if not self.config.causal or grad_enabled():
            raise UserError("A cache of keys and values needs a causal model and `with no_grad():`.")
        ids, mask, _ = checked_inputs(input_ids, attention_mask, None)
        mask = cache.advance(ids.shape, mask)
        x = self.embed(ids, None, cache.layers[0])
        for block, past in zip(self.blocks, cache.layers, strict=True):
            x = block(x, mask, past)
        return self._finish(x[:, -1:] if last else x, mask)


def positions_of(x: Any, past: LayerCache | None) -> Array:
    """The positions of the tokens in x (batch, seq, ...): (seq,), or (batch, seq) where the rows' pasts differ."""
    return active().xp.arange(x.shape[1]) if past is None else past.positions


def _cut(x: Tensor, wanted: slice | None) -> Tensor:
    """(batch, seq, d) -> (batch, the wanted positions, d)."""
    return x if wanted is None else x[:, wanted]


def checked_inputs(ids: Any, mask: Any, segments: Any) -> tuple[Any, Any, Any]:
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

"""Prefix tuning: n learned keys and values stand before those of the text, in every block (arXiv 2101.00190, section 4).

Attention sees (P_k; K) and (P_v; V) with P_k, P_v ∈ R^{n × d_kv} of the block's own. The text is read from position n on,
as if n tokens had gone before. The paper's network that makes P while training is left out, as in PEFT's default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from minipeft.autograd import Tensor
from minipeft.autograd.ops import concatenate
from minipeft.backend import active, random
from minipeft.errors import UserError
from minipeft.nn import Module, Transformer
from minipeft.nn.cache import KVCache, LayerCache
from minipeft.nn.layers import normal
from minipeft.nn.transformer import checked_inputs
from minipeft.peft.method import Method, PeftConfig


@dataclass(frozen=True)
class PrefixTuningConfig(PeftConfig):
    """2 · n · d_kv parameters a block.

    Attributes:
        num_virtual_tokens: n.
        init_std: P starts as N(0, init_std²).
    """

    peft_type: ClassVar[str] = "MINIPEFT_PREFIX_TUNING"

    num_virtual_tokens: int = 20
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.num_virtual_tokens < 1:
            raise UserError(f"num_virtual_tokens={self.num_virtual_tokens}: a prefix has 1 row or more.")
        if self.init_std < 0:
            raise UserError(f"init_std={self.init_std}: a standard deviation is not negative.")

    def attach(self, model: Module) -> Method:
        """Make P_k and P_v. Raises UserError for what is no transformer, or reads fewer positions than n."""
        if not isinstance(model, Transformer):
            raise UserError(f"Prefix tuning needs a Transformer with blocks, not a {type(model).__name__}.")
        if self.num_virtual_tokens >= model.config.max_positions:
            raise UserError(
                f"num_virtual_tokens={self.num_virtual_tokens}: this model reads at most {model.config.max_positions} "
                "tokens, and the text needs some of them."
            )
        return PrefixMethod(model, self)


class Prefix(LayerCache):
    """The past of one block as it sees it: P_k and P_v (n, d_kv), the same for every row."""

    def __init__(self, keys: Tensor, values: Tensor, seq: int) -> None:
        self.keys, self.values, self.start = keys, values, keys.shape[0]
        self.seen = self.start + seq
        self.positions = active().xp.arange(self.start, self.seen)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, seq, d_kv) twice -> (batch, n + seq, d_kv) twice."""
        zeros = active().xp.zeros((k.shape[0], 1, 1), dtype=k.dtype)
        return concatenate([self.keys + zeros, k], axis=1), concatenate([self.values + zeros, v], axis=1)


class PrefixMethod(Method):
    """P_k and P_v of every block, (blocks, n, d_kv). No change of a weight does the same, so they cannot be merged."""

    def __init__(self, model: Transformer, config: PrefixTuningConfig) -> None:
        rng, self.n = random.stream("init"), config.num_virtual_tokens
        shape = (len(model.blocks), self.n, model.config.d_kv)
        self.keys, self.values = normal(shape, config.init_std, rng), normal(shape, config.init_std, rng)
        self.enabled = True

    def run(
        self,
        model: Module,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        cache: KVCache | None = None,
        last: bool = False,
        first: int = 0,
    ) -> Tensor:
        """As the model's."""
        assert isinstance(model, Transformer)
        if not self.enabled:
            return model(input_ids, attention_mask, token_type_ids, cache, last, first)
        ids, mask, segments = checked_inputs(input_ids, attention_mask, token_type_ids)
        pasts = [Prefix(self.keys[i], self.values[i], ids.shape[1]) for i in range(len(model.blocks))]
        if cache is not None:
            if not cache.slots:  # nothing has been read: the prefix comes first
                cache.advance((ids.shape[0], self.n))
                for past, kept in zip(pasts, cache.layers, strict=True):
                    zeros = active().xp.zeros((ids.shape[0], 1, 1), dtype=self.keys.dtype)
                    kept.extend(past.keys + zeros, past.values + zeros)
            return model(ids, mask, None, cache, last)
        x = model.embed.place(model.embed.word(ids), 0 * ids if segments is None else segments, start=self.n)
        return model.upper(x, mask, first=first, pasts=pasts)

    @property
    def virtual_tokens(self) -> int:
        """n, or 0 while switched off."""
        return self.n if self.enabled else 0

    def enable(self, on: bool) -> None:
        """Attend to the prefix, or not."""
        self.enabled = on

    def merge(self) -> None:
        """Always an error: attention has more keys with it."""
        raise UserError("A prefix adds keys and values and cannot be merged; use disable_adapter() for the base.")

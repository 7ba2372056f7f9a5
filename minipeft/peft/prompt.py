"""Prompt tuning: n learned rows stand before the words' own, and nothing else is trained (arXiv 2104.08691, section 2).

The model reads (P; E) with P ∈ R^{n × d}, at positions 0 to n - 1, and the text from position n on. A head that reads the
first position, as BERT's, reads what became of P's first row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from minipeft.autograd import Tensor
from minipeft.autograd.ops import concatenate
from minipeft.backend import active, random
from minipeft.errors import UserError, unknown
from minipeft.nn import Module, Parameter, Transformer
from minipeft.nn.cache import KVCache
from minipeft.nn.layers import normal
from minipeft.nn.transformer import checked_inputs
from minipeft.peft.method import Method, PeftConfig


@dataclass(frozen=True)
class PromptTuningConfig(PeftConfig):
    """n · d parameters, and a text that is n tokens longer to read.

    Attributes:
        num_virtual_tokens: n.
        init: how P starts: "vocab", rows of random words, the better start of the paper (section 3.2), or "random",
            N(0, 0.02²).
    """

    peft_type: ClassVar[str] = "MINIPEFT_PROMPT_TUNING"

    num_virtual_tokens: int = 20
    init: str = "vocab"

    def __post_init__(self) -> None:
        if self.num_virtual_tokens < 1:
            raise UserError(f"num_virtual_tokens={self.num_virtual_tokens}: a prompt has 1 row or more.")
        if self.init not in ("vocab", "random"):
            raise unknown("prompt init", self.init, ("vocab", "random"))

    def attach(self, model: Module) -> Method:
        """Make P. Raises UserError for what is no transformer, or reads fewer positions than P has."""
        if not isinstance(model, Transformer):
            raise UserError(f"Prompt tuning needs a Transformer, not a {type(model).__name__}.")
        if self.num_virtual_tokens >= model.config.max_positions:
            raise UserError(
                f"num_virtual_tokens={self.num_virtual_tokens}: this model reads at most {model.config.max_positions} "
                "tokens, and the text needs some of them."
            )
        return PromptMethod(model, self)


class PromptMethod(Method):
    """P, which is put before the text on its way into a model. It is no change of a weight, so it cannot be merged."""

    def __init__(self, model: Transformer, config: PromptTuningConfig) -> None:
        rng, table = random.stream("init"), model.embed.word.weight
        self.n = config.num_virtual_tokens
        if config.init == "vocab":
            self.prompt = Parameter(table.data[active().asarray(rng.integers(0, table.shape[0], self.n))])
        else:
            self.prompt = normal((self.n, table.shape[1]), 0.02, rng)
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
        """As the model's; of the outputs of all positions, those of the text."""
        assert isinstance(model, Transformer)
        if not self.enabled:
            return model(input_ids, attention_mask, token_type_ids, cache, last, first)
        ids, mask, segments = checked_inputs(input_ids, attention_mask, token_type_ids)
        xp, embed, batch = active().xp, model.embed, ids.shape[0]
        prompt = self.prompt + xp.zeros((batch, 1, 1), dtype=self.prompt.dtype)  # (batch, n, d)
        columns = [0] * self.n + list(range(ids.shape[1]))
        segments = (0 * ids if segments is None else segments)[:, columns]
        segments[:, : self.n] = 0
        if cache is not None:
            if not cache.slots:  # nothing has been read: P comes first
                cache.advance((batch, self.n))
                x = embed.place(prompt, segments[:, : self.n], cache.layers[0])
                for block, past in zip(model.blocks, cache.layers, strict=True):
                    x = block(x, None, past)
            return model(ids, mask, None, cache, last)
        if mask is not None:
            mask = xp.concatenate([xp.ones((batch, self.n), dtype=mask.dtype), mask], axis=1)
        x = embed.place(concatenate([prompt, embed.word(ids)], axis=1), segments)
        if first:
            return model.upper(x, mask, first=self.n + first)
        y = model.upper(x, mask)
        return y[:, self.n :] if len(y.shape) == 3 else y

    @property
    def virtual_tokens(self) -> int:
        """n, or 0 while switched off."""
        return self.n if self.enabled else 0

    def enable(self, on: bool) -> None:
        """Read the text with P before it, or alone."""
        self.enabled = on

    def merge(self) -> None:
        """Always an error: P is part of the input."""
        raise UserError("A prompt is part of the input and cannot be merged; use disable_adapter() for the base.")

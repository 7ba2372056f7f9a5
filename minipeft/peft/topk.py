"""Top-K: only the K blocks nearest to the output are trained, the others stay as they were pre-trained.

The gradient stops by itself below the lowest trained block: with K of L blocks, the backward pass costs about K/L of a
full one, and no activation below the cut is kept. K = L with the embeddings is full fine-tuning; K = 0 trains the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minipeft.errors import UserError
from minipeft.nn import Module, Parameter, Transformer
from minipeft.peft.method import Method, OwnWeights, PeftConfig


@dataclass(frozen=True)
class TopKConfig(PeftConfig):
    """Train the top `k` blocks: k · (12d² + 13d) parameters for d_ff = 4d, and the head.

    Attributes:
        k: number of blocks, from 0 to the model's own.
        train_embeddings: train the embeddings too; then the gradient goes all the way down.
        train_final_norm: train the norm after the last block, where a model has one.
        train_head: train the task head.
    """

    peft_type: ClassVar[str] = "TOPK"

    k: int
    train_embeddings: bool = False
    train_final_norm: bool = True
    train_head: bool = True

    def attach(self, model: Module) -> Method:
        """Unfreeze the top blocks. Raises UserError when the model does not have that many."""
        if not isinstance(model, Transformer):
            raise UserError(f"Top-K needs a Transformer with blocks, not a {type(model).__name__}.")
        if not 0 <= self.k <= len(model.blocks):
            raise UserError(f"k={self.k}: this model has {len(model.blocks)} blocks, so k is 0 to {len(model.blocks)}.")
        parts: list[Module | None] = list(model.blocks[len(model.blocks) - self.k :])
        parts.append(model.embed if self.train_embeddings else None)
        parts.append(model.final_norm if self.train_final_norm else None)
        for part in parts:
            for parameter in part.parameters() if part is not None else ():
                parameter.requires_grad = True
        return OwnWeights()

    def head_parameters(self, model: Module) -> list[Parameter]:
        """The head, unless it is switched off."""
        return super().head_parameters(model) if self.train_head else []

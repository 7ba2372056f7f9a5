"""Lab 2: attention and the transformer block. Read handout.md first.

You write with Tensors of minipeft: `+ - * / @`, `x.mT` (the last two axes exchanged), `x.reshape(...)`, `x.swapaxes(i, j)`,
`x.sum(axis, keepdims)`, `x.mean(axis, keepdims)`, `x.sqrt()`; and `functional.softmax` and `functional.gelu`. The gradients
come by themselves. A NumPy array among Tensors is a constant.
"""

from __future__ import annotations

import math

import numpy as np

from minipeft import Tensor, functional
from minipeft.nn import Linear, Module


def attention(q: Tensor, k: Tensor, v: Tensor, mask: np.ndarray | None = None, causal: bool = False) -> Tensor:
    """Task 1. softmax(Q Kᵀ / √d_h) V: three times (batch, heads, seq, d_h) -> (batch, heads, seq, d_h).

    Args:
        q: queries; k and v may have another seq than q.
        k: keys.
        v: values.
        mask: (batch, seq of k), 1 for a token that may be attended to and 0 for padding; None when all may.
        causal: query i sees the keys 0 to i alone.

    What may not be seen gets a weight of exactly zero: add -1e30 to its score before the softmax. Make the constants with
    the dtype of q (`q.dtype`), or float32 becomes float64.
    """
    ### BEGIN SOLUTION 1: scores, masks, softmax, and the weighted sum of the values
    scores = (q @ k.mT) * (1 / math.sqrt(q.shape[-1]))  # (batch, heads, seq of q, seq of k)
    hidden = np.zeros((1, 1, q.shape[-2], k.shape[-2]), dtype=bool)
    if mask is not None:
        hidden = hidden | (np.asarray(mask) == 0)[:, None, None, :]
    if causal:
        hidden = hidden | (np.arange(k.shape[-2])[None, :] > np.arange(q.shape[-2])[:, None])
    return functional.softmax(scores + np.where(hidden, -1e30, 0.0).astype(q.dtype)) @ v
    ### END SOLUTION


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Task 2. (batch, seq, d) -> (batch, heads, seq, d / heads). Head h has the columns h · d/heads to (h + 1) · d/heads.

    Raises:
        ValueError: `heads` does not divide d.
    """
    ### BEGIN SOLUTION 2: give every head its columns
    batch, seq, d = x.shape
    if d % heads:
        raise ValueError(f"{heads} heads do not divide a width of {d}")
    return x.reshape(batch, seq, heads, d // heads).swapaxes(1, 2)
    ### END SOLUTION


def merge_heads(x: Tensor) -> Tensor:
    """Task 2. Back again: (batch, heads, seq, d_h) -> (batch, seq, heads · d_h)."""
    ### BEGIN SOLUTION 2: put the heads side by side again
    batch, heads, seq, d_h = x.shape
    return x.swapaxes(1, 2).reshape(batch, seq, heads * d_h)
    ### END SOLUTION


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Task 3. x̂ ⊙ weight + bias, x̂ = (x - mean) / √(var + eps): (..., d) -> (..., d).

    Mean and variance are those along the last axis; the variance divides by d, not by d - 1.
    """
    ### BEGIN SOLUTION 3: normalise along the last axis, then scale and shift
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / (variance + eps).sqrt() * weight + bias
    ### END SOLUTION


class Block(Module):
    """A transformer block over parts that it is given.

    Args:
        attend: a Module, (batch, seq, d) -> (batch, seq, d): multi-head attention with its projections.
        up: a Linear, d -> d_ff.
        down: a Linear, d_ff -> d.
        attn_norm: the norm of the attention half, a Module.
        mlp_norm: the norm of the feed-forward half, a Module.
        norm_first: pre-norm, x + f(norm(x)), as in GPT-2; or post-norm, norm(x + f(x)), as in BERT.
    """

    def __init__(
        self, attend: Module, up: Linear, down: Linear, attn_norm: Module, mlp_norm: Module, norm_first: bool
    ) -> None:
        self.attend, self.up, self.down = attend, up, down
        self.attn_norm, self.mlp_norm = attn_norm, mlp_norm
        self.norm_first = norm_first

    def feed_forward(self, x: Tensor) -> Tensor:
        """Task 4. gelu(X W_up + b_up) W_down + b_down: (batch, seq, d) -> the same."""
        ### BEGIN SOLUTION 4: up, GELU, down
        return self.down(functional.gelu(self.up(x)))
        ### END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """Task 4. Attention, then the feed-forward part, each inside a residual connection: (batch, seq, d) -> the same."""
        ### BEGIN SOLUTION 4: two sub-layers, each with its residual and its norm
        if self.norm_first:
            x = x + self.attend(self.attn_norm(x))
            return x + self.feed_forward(self.mlp_norm(x))
        x = self.attn_norm(x + self.attend(x))
        return self.mlp_norm(x + self.feed_forward(x))
        ### END SOLUTION


def count_block(d: int, d_ff: int) -> int:
    """Task 4. The parameters of a block: four d × d projections (q, k, v, o), up and down, all with biases, and two layer
    norms with weight and bias.
    """
    ### BEGIN SOLUTION 4: count weights and biases
    return 4 * (d * d + d) + (d * d_ff + d_ff) + (d_ff * d + d) + 2 * 2 * d
    ### END SOLUTION

"""Lab 4: adapters and top-K. Read handout.md first.

Two ways to train a part of a model. Adapters put small new layers into every block; top-K trains the last K blocks as they
are. Both train few parameters, and they cost very different amounts of memory. You will see why.

Everything of minipeft may be used, except minipeft.peft and minipeft.cost.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minipeft import Tensor, functional
from minipeft.autograd.saved import buffer_of, saved_arrays
from minipeft.nn import Linear, Module, Transformer


class Adapter(Module):
    """A bottleneck: d numbers are narrowed to R, and widened again.

    Attributes:
        down: a Linear, d -> R.
        up: a Linear, R -> d.
    """

    def __init__(self, down: Linear, up: Linear) -> None:
        self.down, self.up = down, up

    def forward(self, h: Tensor) -> Tensor:
        """Task 1. h + gelu(h W_down + b_down) W_up + b_up: (..., d) -> (..., d)."""
        ### BEGIN SOLUTION 1: down, GELU, up, and the residual
        return h + self.up(functional.gelu(self.down(h)))
        ### END SOLUTION


def new_adapter(d: int, R: int, seed: int) -> Adapter:
    """Task 1. An adapter that changes nothing yet: W_up, b_up and b_down are zero.

    W_down = 0.02 · `np.random.default_rng(seed).standard_normal((d, R))`, as float32. `Linear(d, R)` makes a layer whose
    weights you then write: `layer.weight.data[...] = ...`.
    """
    ### BEGIN SOLUTION 1: two Linears, the second of zeros
    down, up = Linear(d, R), Linear(R, d)
    down.weight.data[...] = 0.02 * np.random.default_rng(seed).standard_normal((d, R))
    up.weight.data[...] = 0
    return Adapter(down, up)
    ### END SOLUTION


class Sequence(Module):
    """One module after the other. This class is complete."""

    def __init__(self, first: Module, second: Module) -> None:
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return self.second(self.first(x))


def add_adapters(model: Transformer, R: int, seed: int) -> None:
    """Task 1. Freeze everything but `model.head`; put a new adapter behind every `o_proj` and every `down_proj`.

    That is where Houlsby et al. put them: behind each half of a block, before the residual sum. Exchange
    `block.o_proj` for `Sequence(block.o_proj, adapter)`. The adapters of block i have the seeds seed + 2 i (o_proj) and
    seed + 2 i + 1 (down_proj). The width d is `model.config.d_model`.
    """
    ### BEGIN SOLUTION 1: freeze, then put two adapters into each block
    for parameter in model.parameters():
        parameter.requires_grad = False
    for parameter in model.head.parameters():
        parameter.requires_grad = True
    d = model.config.d_model
    for i, block in enumerate(model.blocks):
        block.o_proj = Sequence(block.o_proj, new_adapter(d, R, seed + 2 * i))
        block.down_proj = Sequence(block.down_proj, new_adapter(d, R, seed + 2 * i + 1))
    ### END SOLUTION


def train_top(model: Transformer, k: int) -> None:
    """Task 2. Train the last k blocks, `model.final_norm` where there is one, and `model.head`; freeze the rest.

    k = 0 trains the head (and the final norm) alone. It works again and again on one model: each call stands for itself.

    Raises:
        ValueError: k is negative, or the model has fewer blocks. Then nothing has been changed.
    """
    ### BEGIN SOLUTION 2: freeze all, then unfreeze the last k blocks, the final norm and the head
    if not 0 <= k <= len(model.blocks):
        raise ValueError(f"k={k}, but the model has {len(model.blocks)} blocks")
    for parameter in model.parameters():
        parameter.requires_grad = False
    parts = [*model.blocks[len(model.blocks) - k :], model.final_norm, model.head]
    for part in parts:
        for parameter in part.parameters() if part is not None else ():
            parameter.requires_grad = True
    ### END SOLUTION


def gradient_norms(model: Transformer, ids: Any, labels: Any) -> list[float | None]:
    """Task 3. How large the gradient is in [model.embed, block 0, block 1, ..., model.head] for one batch.

    Compute the loss, functional.cross_entropy(model(ids), labels), and its backward pass. The size of a part is
    √(Σ g²) over all elements of all gradients in it; None where no gradient has arrived at all.
    Gradients that an earlier batch has left (`parameter.grad`) must not count.
    """
    ### BEGIN SOLUTION 3: clear the gradients, go back once, and measure each part
    for parameter in model.parameters():
        parameter.grad = None
    functional.cross_entropy(model(ids), labels).backward()
    norms: list[float | None] = []
    for part in [model.embed, *model.blocks, model.head]:
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        norms.append(math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients)) if gradients else None)
    return norms
    ### END SOLUTION


def kept_bytes(loss: Tensor, model: Module) -> int:
    """Task 4. How many bytes the tape below `loss` keeps for the backward pass, besides the model's own parameters.

    `saved_arrays(loss)` lists the arrays that the tape holds; `array.nbytes` is the size of one. Parameters are among them
    (a frozen weight is needed to hand the gradient on), and they are there anyway: leave out every array that is the
    buffer of a parameter, `buffer_of(parameter.data)`. Compare arrays by identity (`is`, or `id()`), not by value.
    """
    ### BEGIN SOLUTION 4: add up what is held and is no parameter
    own = {id(buffer_of(p.data)) for p in model.parameters()}
    return sum(int(array.nbytes) for array in saved_arrays(loss) if id(array) not in own)
    ### END SOLUTION


def training_bytes(model: Module) -> int:
    """Task 4. The bytes of the gradient and of AdamW's two moments m and v, which only trained parameters have."""
    ### BEGIN SOLUTION 4: three numbers for each trained one
    return sum(3 * int(p.data.nbytes) for p in model.parameters() if p.requires_grad)
    ### END SOLUTION


def count_adapters(d: int, R: int, blocks: int) -> int:
    """Task 4. The parameters of two adapters in each block: weights and biases."""
    ### BEGIN SOLUTION 4: count W_down, b_down, W_up and b_up
    return blocks * 2 * (d * R + R + R * d + d)
    ### END SOLUTION

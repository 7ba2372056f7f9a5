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
        raise NotImplementedError("Lab 4, task 1: down, GELU, up, and the residual.")


def new_adapter(d: int, R: int, seed: int) -> Adapter:
    """Task 1. An adapter that changes nothing yet: W_up, b_up and b_down are zero.

    W_down = 0.02 · `np.random.default_rng(seed).standard_normal((d, R))`, as float32. `Linear(d, R)` makes a layer whose
    weights you then write: `layer.weight.data[...] = ...`.
    """
    raise NotImplementedError("Lab 4, task 1: two Linears, the second of zeros.")


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
    raise NotImplementedError("Lab 4, task 1: freeze, then put two adapters into each block.")


def train_top(model: Transformer, k: int) -> None:
    """Task 2. Train the last k blocks, `model.final_norm` where there is one, and `model.head`; freeze the rest.

    k = 0 trains the head (and the final norm) alone. It works again and again on one model: each call stands for itself.

    Raises:
        ValueError: k is negative, or the model has fewer blocks. Then nothing has been changed.
    """
    raise NotImplementedError("Lab 4, task 2: freeze all, then unfreeze the last k blocks, the final norm and the head.")


def gradient_norms(model: Transformer, ids: Any, labels: Any) -> list[float | None]:
    """Task 3. How large the gradient is in [model.embed, block 0, block 1, ..., model.head] for one batch.

    Compute the loss, functional.cross_entropy(model(ids), labels), and its backward pass. The size of a part is
    √(Σ g²) over all elements of all gradients in it; None where no gradient has arrived at all.
    Gradients that an earlier batch has left (`parameter.grad`) must not count.
    """
    raise NotImplementedError("Lab 4, task 3: clear the gradients, go back once, and measure each part.")


def kept_bytes(loss: Tensor, model: Module) -> int:
    """Task 4. How many bytes the tape below `loss` keeps for the backward pass, besides the model's own parameters.

    `saved_arrays(loss)` lists the arrays that the tape holds; `array.nbytes` is the size of one. Parameters are among them
    (a frozen weight is needed to hand the gradient on), and they are there anyway: leave out every array that is the
    buffer of a parameter, `buffer_of(parameter.data)`. Compare arrays by identity (`is`, or `id()`), not by value.
    """
    raise NotImplementedError("Lab 4, task 4: add up what is held and is no parameter.")


def training_bytes(model: Module) -> int:
    """Task 4. The bytes of the gradient and of AdamW's two moments m and v, which only trained parameters have."""
    raise NotImplementedError("Lab 4, task 4: three numbers for each trained one.")


def count_adapters(d: int, R: int, blocks: int) -> int:
    """Task 4. The parameters of two adapters in each block: weights and biases."""
    raise NotImplementedError("Lab 4, task 4: count W_down, b_down, W_up and b_up.")

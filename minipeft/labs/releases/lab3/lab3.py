"""Lab 3: LoRA. Read handout.md first.

A weight W ∈ R^{in × out} is frozen; what training adds to it is a product of two thin matrices:

    Y = X W + b + s · X A B,    A ∈ R^{in × r},  B ∈ R^{r × out},  s = α / r

Everything of minipeft may be used, except minipeft.peft: that is what you write here.
"""

from __future__ import annotations

import numpy as np

from minipeft import Tensor
from minipeft.nn import Linear, Module, Parameter


class LoRALinear(Module):
    """A frozen `linear` with a trained change of rank r beside it.

    Args:
        linear: the pre-trained layer; `linear.weight` is W (in, out), `linear.bias` is b (out,) or None.
        A: a Parameter, (in, r).
        B: a Parameter, (r, out).
        alpha: α; the scale is s = α / r.
    """

    def __init__(self, linear: Linear, A: Parameter, B: Parameter, alpha: float) -> None:
        self.linear = linear
        self.A, self.B = A, B
        self.alpha = alpha
        self.merged = False  # for task 3: whether s · A B has been added to W
        self.W0 = None  # for task 3: the weight as it was before `merge`

    def forward(self, x: Tensor) -> Tensor:
        """Task 1. (..., in) -> (..., out), without ever forming the product A B.

        While `merged` is True the change is in W already, and must not be added a second time.
        `self.linear(x)` gives X W + b; `x @ self.A` is a matrix product of Tensors; `2.0 * x` scales one.
        """
        raise NotImplementedError("Lab 3, task 1: return X W + b + s · X A B.")

    def merge(self) -> None:
        """Task 3. W <- W + s · A B, in place (`self.linear.weight.data` is a NumPy array). A second call changes nothing.

        Keep what `unmerge` needs in `self.W0`, and set `self.merged`.
        """
        raise NotImplementedError("Lab 3, task 3: add s · A B to the weight, once.")

    def unmerge(self) -> None:
        """Task 3. Bring W back to the very same bits as before `merge`. Without a `merge` before, nothing happens."""
        raise NotImplementedError("Lab 3, task 3: restore the weight to the last bit.")


def start(d_in: int, d_out: int, r: int, rng: np.random.Generator) -> tuple[Parameter, Parameter]:
    """Task 2. A and B as training begins: A ~ N(0, 1/r²), that is of standard deviation 1/r, and B = 0.

    Draw A with one call of `rng.standard_normal((d_in, r))`, so that everyone gets the same numbers. Both are float32.
    """
    raise NotImplementedError("Lab 3, task 2: draw A from N(0, 1/r²) and let B be zero.")


def freeze(module: Module) -> None:
    """Task 2. No parameter of `module` needs a gradient from now on (`requires_grad`)."""
    raise NotImplementedError("Lab 3, task 2: switch requires_grad off for every parameter.")


def lora_from(linear: Linear, r: int, alpha: float, seed: int) -> LoRALinear:
    """Task 2. `linear`, frozen, as a LoRALinear at its start, drawn from `np.random.default_rng(seed)`."""
    raise NotImplementedError("Lab 3, task 2: freeze the layer and put a fresh A and B beside it.")


def count_lora(shapes: list[tuple[int, int]], r: int) -> int:
    """Task 4. The number of trained parameters that LoRA of rank r adds to weights of these shapes (in, out)."""
    raise NotImplementedError("Lab 3, task 4: count the entries of A and B over all the weights.")


def apply_lora(model: Module, targets: list[str], r: int, alpha: float, seed: int = 0) -> list[str]:
    """Task 4. Freeze `model`, then put a fresh LoRALinear (task 2) in the place of every Linear that a target names.

    A target is the last part of a dotted name: "q_proj" names "blocks.0.q_proj", "blocks.1.q_proj", and so on.
    `model.named_modules()` gives the pairs (dotted name, module), `model.set_submodule(name, new)` exchanges one.
    The i-th layer that is replaced, in the order of `named_modules`, gets the seed `seed + i`.

    Returns:
        The dotted names of what was replaced, in order.

    Raises:
        ValueError: a target names nothing. The message says which; the model is then as it was.
    """
    raise NotImplementedError("Lab 3, task 4: replace every target, and refuse a target that names nothing.")

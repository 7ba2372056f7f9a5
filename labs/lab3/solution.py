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
        ### BEGIN SOLUTION 1: return X W + b + s · X A B
        y = self.linear(x)
        if self.merged:
            return y
        s = self.alpha / self.A.shape[1]
        return y + ((x @ self.A) * s) @ self.B
        ### END SOLUTION

    def merge(self) -> None:
        """Task 3. W <- W + s · A B, in place (`self.linear.weight.data` is a NumPy array). A second call changes nothing.

        Keep what `unmerge` needs in `self.W0`, and set `self.merged`.
        """
        ### BEGIN SOLUTION 3: add s · A B to the weight, once
        if not self.merged:
            W = self.linear.weight.data
            self.W0 = W.copy()
            W += self.alpha / self.A.shape[1] * (self.A.data @ self.B.data)
            self.merged = True
        ### END SOLUTION

    def unmerge(self) -> None:
        """Task 3. Bring W back to the very same bits as before `merge`. Without a `merge` before, nothing happens."""
        ### BEGIN SOLUTION 3: restore the weight to the last bit
        if self.merged:
            self.linear.weight.data[...] = self.W0
            self.W0 = None
            self.merged = False
        ### END SOLUTION


def start(d_in: int, d_out: int, r: int, rng: np.random.Generator) -> tuple[Parameter, Parameter]:
    """Task 2. A and B as training begins: A ~ N(0, 1/r²), that is of standard deviation 1/r, and B = 0.

    Draw A with one call of `rng.standard_normal((d_in, r))`, so that everyone gets the same numbers. Both are float32.
    """
    ### BEGIN SOLUTION 2: draw A from N(0, 1/r²) and let B be zero
    A = rng.standard_normal((d_in, r)) / r
    return Parameter(A.astype(np.float32)), Parameter(np.zeros((r, d_out), dtype=np.float32))
    ### END SOLUTION


def freeze(module: Module) -> None:
    """Task 2. No parameter of `module` needs a gradient from now on (`requires_grad`)."""
    ### BEGIN SOLUTION 2: switch requires_grad off for every parameter
    for parameter in module.parameters():
        parameter.requires_grad = False
    ### END SOLUTION


def lora_from(linear: Linear, r: int, alpha: float, seed: int) -> LoRALinear:
    """Task 2. `linear`, frozen, as a LoRALinear at its start, drawn from `np.random.default_rng(seed)`."""
    ### BEGIN SOLUTION 2: freeze the layer and put a fresh A and B beside it
    freeze(linear)
    d_in, d_out = linear.weight.shape
    A, B = start(d_in, d_out, r, np.random.default_rng(seed))
    return LoRALinear(linear, A, B, alpha)
    ### END SOLUTION


def count_lora(shapes: list[tuple[int, int]], r: int) -> int:
    """Task 4. The number of trained parameters that LoRA of rank r adds to weights of these shapes (in, out)."""
    ### BEGIN SOLUTION 4: count the entries of A and B over all the weights
    return sum(r * (d_in + d_out) for d_in, d_out in shapes)
    ### END SOLUTION


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
    ### BEGIN SOLUTION 4: replace every target, and refuse a target that names nothing
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, Linear) and name.rpartition(".")[2] in targets
    ]
    last = {name.rpartition(".")[2] for name, _ in found}
    for target in targets:
        if target not in last:
            raise ValueError(f"the target {target!r} names no Linear of the model")
    freeze(model)
    for i, (name, linear) in enumerate(found):
        model.set_submodule(name, lora_from(linear, r, alpha, seed + i))
    return [name for name, _ in found]
    ### END SOLUTION

"""Measuring the memory of a training step.

What the tape's closures hold is what a step must keep between its forward and its backward pass; it is read off the tape
itself. The allocator's peak is the backend's: from `tracemalloc`, to which NumPy reports every array, or from CuPy's pool.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

from minipeft.autograd import Tensor
from minipeft.autograd.saved import buffer_of, saved_arrays
from minipeft.backend import active
from minipeft.cost.flops import count_flops
from minipeft.nn import Module


@dataclass(frozen=True)
class StepCost:
    """One training step without the optimizer's part: operations, and bytes.

    `activations` is what the tape holds when the backward pass begins, `peak` the most that was allocated at once beyond
    what was there before (activations and temporaries).
    """

    forward_flops: int
    backward_flops: int
    activations: int
    peak: int


def activation_bytes(loss: Tensor, model: Module) -> int:
    """The bytes that the tape below `loss` keeps alive, the tensors that the model holds left out."""
    held = [value for _, module in model.named_modules() for value in vars(module).values()]
    own = {id(buffer_of(value.data)) for value in held if isinstance(value, Tensor)}
    return sum(int(array.nbytes) for array in saved_arrays(loss) if id(array) not in own)


def measure_step(model: Module, loss_of: Callable[[], Tensor]) -> StepCost:
    """Run a forward and backward pass twice and measure the second. Gradients are added to `grad`, as in any backward pass.

    The first run is for what is done once a process (imports, caches): the figures do not depend on what ran before.

    Args:
        model: whose parameters do not count as activations.
        loss_of: computes the loss (a scalar) of the batch that stands for the others.
    """
    loss_of().backward()
    gc.collect()
    with active().memory_peak() as memory:
        with count_flops() as forward:
            loss = loss_of()
        activations = activation_bytes(loss, model)
        with count_flops() as backward:
            loss.backward()
    return StepCost(forward.flops, backward.flops, activations, memory.peak)

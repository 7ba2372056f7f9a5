"""Check a gradient against finite differences, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minipeft.autograd.tensor import Tensor
from minipeft.backend import active, random
from minipeft.errors import UserError


class GradientError(AssertionError):
    """A gradient and its finite difference disagree; the message shows both."""


def gradcheck(
    f: Callable[..., Tensor],
    *inputs: Tensor,
    directions: int = 3,
    step: float = 1e-6,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> None:
    """Compare backward's gradient of Σ c ⊙ f(inputs) with (L(x + h·u) - L(x - h·u)) / 2h, for random c and directions u.

    Each input that requires a gradient is moved alone, then all of them together.

    Args:
        f: a function of Tensors that returns one Tensor; it must give the same value for the same input.
        inputs: float64 Tensors; those with `requires_grad` are checked.
        directions: how many random directions u an input is moved in (u has unit-variance entries).
        step: h.
        rtol: allowed difference relative to the larger of the two numbers.
        atol: allowed difference besides.

    Raises:
        GradientError: they disagree, or a gradient is missing; the message names the argument and shows both numbers.
        UserError: an input is not float64, or none requires a gradient.
    """
    xp = active().xp
    checked = [i for i, x in enumerate(inputs) if x.requires_grad]
    if not checked:
        raise UserError("gradcheck: no input requires a gradient.")
    for i in checked:
        if inputs[i].dtype != xp.float64:
            raise UserError(f"gradcheck: argument {i} is {inputs[i].dtype}; finite differences need float64.")
    rng = random.generator("gradcheck")

    def draw(shape: tuple[int, ...]) -> Any:
        return active().asarray(rng.standard_normal(shape))

    for x in inputs:
        x.grad = None
    out = f(*inputs)
    c = draw(out.shape)
    out.backward(c)

    def loss_at(moves: dict[int, Any], h: float) -> float:
        moved = [Tensor(x.data + h * moves[i]) if i in moves else x.detach() for i, x in enumerate(inputs)]
        return float((f(*moved).data * c).sum())

    for which in [[i] for i in checked] + ([checked] if len(checked) > 1 else []):
        for _ in range(directions):
            moves = {i: draw(inputs[i].shape) for i in which}
            numeric = (loss_at(moves, step) - loss_at(moves, -step)) / (2 * step)
            analytic = 0.0
            for i in which:
                gradient = inputs[i].grad
                if gradient is None:
                    raise GradientError(f"argument {i}: backward left no gradient; finite differences say {numeric}.")
                analytic += float((gradient * moves[i]).sum())
            if not abs(numeric - analytic) <= atol + rtol * max(abs(numeric), abs(analytic)):
                name = f"argument {which[0]}" if len(which) == 1 else f"arguments {which} together"
                raise GradientError(f"{name}: backward says {analytic!r}, finite differences say {numeric!r}.")

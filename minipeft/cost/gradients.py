"""Where the gradient arrives: its length in each layer, read off the parameters after a backward pass."""

from __future__ import annotations

from minipeft.backend import active
from minipeft.nn import Module


def gradient_norms(model: Module) -> dict[str, float]:
    """‖dL/dθ‖ over the trained parameters of each layer that has some, from the gradients that are there.

    Layers are "embed", "blocks.0", ..., "final_norm" and "head", in the model's order; "method" is for parameters that
    belong to no layer, such as θ_d. A layer without trained parameters is not named.
    """
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        parts = name.removeprefix("model.").split(".")
        layer = ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]
        g = parameter.grad
        squares[layer] = squares.get(layer, 0.0) + (0.0 if g is None else float(active().to_numpy((g * g).sum())))
    return {layer: square**0.5 for layer, square in squares.items()}

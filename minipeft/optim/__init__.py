"""Layer 3: optimizers on one flat vector, learning-rate schedules, clipping."""

from minipeft.optim.adamw import AdamW
from minipeft.optim.clip import clip_factor, clip_grad_norm
from minipeft.optim.flat import FlatParameters, Optimizer
from minipeft.optim.schedule import SCHEDULES, constant, cosine, linear
from minipeft.optim.sgd import SGD

__all__ = [
    "SCHEDULES",
    "SGD",
    "AdamW",
    "FlatParameters",
    "Optimizer",
    "clip_factor",
    "clip_grad_norm",
    "constant",
    "cosine",
    "linear",
]

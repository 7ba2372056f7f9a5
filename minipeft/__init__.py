"""minipeft: every way of fine-tuning a transformer, from scratch and side by side.

import minipeft as mp
model = mp.load_model("minilm", task="classification", num_labels=2)
m = mp.peft.get_peft_model(model, mp.peft.LoraConfig(r=8, lora_alpha=16))
m.print_trainable_parameters()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from minipeft import nn, optim
from minipeft.autograd import Tensor, functional, gradcheck, no_grad
from minipeft.backend import set_backend
from minipeft.backend.random import seed
from minipeft.errors import UserError

if TYPE_CHECKING:
    from minipeft import data, peft, training
    from minipeft.models import load_model

__version__ = "0.1.0"
__all__ = [
    "Tensor",
    "UserError",
    "data",
    "functional",
    "gradcheck",
    "load_model",
    "nn",
    "no_grad",
    "optim",
    "peft",
    "seed",
    "set_backend",
    "training",
]


def __getattr__(name: str) -> Any:
    """Import what brings further libraries along when it is first used: `import minipeft` stays quick."""
    if name == "load_model":
        return importlib.import_module("minipeft.models").load_model
    if name in ("data", "models", "peft", "training"):
        return importlib.import_module(f"minipeft.{name}")
    raise AttributeError(f"module 'minipeft' has no attribute {name!r}")

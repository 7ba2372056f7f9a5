"""The models that studies start from, as names.

"minilm" and folders; "random:minilm", minilm's shape with random weights; "made:tiny", a Llama that the study pre-trains
itself (`pretraining.py`); "made:tiny@120", the same as it was at step 120; "random:made:tiny".
"""

from __future__ import annotations

from pathlib import Path

from minipeft.errors import unknown
from minipeft.experiments.prompt_vs_finetune import SHAPES as TWO_SHAPES
from minipeft.models.hub import find_model

RANDOM, MADE = "random:", "made:"
SHAPES = {"micro": (32, 1, 2), "mini": (64, 2, 2), **TWO_SHAPES}  # width, blocks, heads


def shape_of(name: str) -> str:
    """The shape of a model that a study pre-trains, at any step or with random weights; "" for any other model."""
    base = name.removeprefix(RANDOM)
    return base.removeprefix(MADE).partition("@")[0] if base.startswith(MADE) else ""


def place(out: Path, name: str) -> str:
    """The name or folder that `load_model` takes."""
    base, shape = name.removeprefix(RANDOM), shape_of(name)
    if not shape:
        return base
    step = base.partition("@")[2]
    return str(out / "models" / shape / (f"kept/step-{step}" if step else "model"))


def check_model(name: str) -> None:
    """Raises UserError when there is no such model or shape, before anything is trained."""
    shape = shape_of(name)
    if not shape:
        find_model(place(Path(), name))
    elif shape not in SHAPES:
        raise unknown("shape of a model to pre-train", shape, SHAPES)

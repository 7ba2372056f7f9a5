"""What is timed: shapes, their inputs, and the recipe that all sides share."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

LR, WEIGHT_DECAY, CLIP = 1e-4, 0.01, 1.0


class Unsupported(Exception):
    """This side does not have this method or shape; the message says why, and the cell is left out."""


@dataclass(frozen=True)
class Shape:
    """A model and a batch. `kind` is "gpt" (pre-norm, causal, loss at every position), "llama" (that with RMSNorm, SwiGLU,
    rotary positions and `kv_heads`), "tied" (a llama whose word table is its output matrix, which only full fine-tuning
    trains), "bert" (post-norm, two classes from the first position) or "mlp" (d -> d_ff -> ...
    -> classes, `layers` hidden layers).
    """

    name: str
    kind: str
    d: int
    layers: int
    heads: int
    d_ff: int
    seq: int
    batch: int
    vocab: int
    classes: int = 2
    positions: int = 512
    kv_heads: int = 0
    about: str = ""


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("a", "gpt", 128, 4, 4, 512, 64, 32, 1024, about="GPT, d 128, 4 layers, seq 64, batch 32"),
        Shape("b", "bert", 384, 6, 12, 1536, 64, 16, 30522, about="MiniLM, d 384, 6 layers, seq 64, batch 16"),
        Shape(
            *("smollm2", "llama", 576, 4, 9, 1536, 64, 8, 4096),
            kv_heads=3,
            about="SmolLM2's block, d 576, 9 heads over 3, 4 layers, seq 64, batch 8, vocab 4096",
        ),
        Shape(
            *("smollm2-135m", "tied", 576, 30, 9, 1536, 64, 8, 49152),
            kv_heads=3,
            about="the whole of SmolLM2-135M, seq 64, batch 8",
        ),
        Shape("mlp", "mlp", 128, 2, 1, 512, 1, 256, 1, classes=10, about="MLP 128-512-512-10, batch 256"),
    )
}


def parse_shape(text: str) -> Shape:
    """A name of SHAPES, with changes after slashes: "a" or "a/layers=1/d=32/d_ff=64"."""
    name, *changes = text.strip().split("/")
    if name not in SHAPES:
        raise SystemExit(f"Unknown shape {name!r}. Known: {', '.join(SHAPES)}.")
    numbers = {field.name for field in fields(Shape) if field.type == "int"}
    values = {}
    for change in changes:
        key, _, value = change.partition("=")
        if key not in numbers or not value.isdigit():
            raise SystemExit(f"{text!r}: after a slash comes one of {', '.join(sorted(numbers))}, =, and a number.")
        values[key] = int(value)
    return replace(SHAPES[name], **values)


def inputs(shape: Shape) -> tuple[Any, Any]:
    """Random token ids (batch, seq) and labels: (batch, seq) for "gpt", else (batch,). For "mlp", X (batch, d) float32."""
    rng = np.random.default_rng(0)
    if shape.kind == "mlp":
        X = rng.standard_normal((shape.batch, shape.d), dtype=np.float32)
        return X, rng.integers(0, shape.classes, shape.batch)
    ids = rng.integers(0, shape.vocab, (shape.batch, shape.seq))
    if shape.kind in ("gpt", "llama", "tied"):
        return ids, rng.integers(0, shape.vocab, ids.shape)
    return ids, rng.integers(0, shape.classes, shape.batch)


def widths(shape: Shape) -> list[int]:
    """The widths of an MLP's layers."""
    return [shape.d, *[shape.d_ff] * shape.layers, shape.classes]


def split_method(method: str) -> tuple[str, int, bool]:
    """A method as `minipeft compare` writes it -> (family, number, whether its activations are cached)."""
    family, *rest = method.split(":")
    return family, int(rest[0]) if rest else 0, "cached" in rest


def peers_of(shape: Shape, method: str) -> tuple[str, ...]:
    """The peers that a cell is written for.

    PEFT has LoRA; what the other methods need is written in torch here. The small engines train the whole of the MLP and of
    the GPT, which are written here as well: they have no transformer of their own.
    """
    family = split_method(method)[0]
    if shape.kind == "mlp":
        return ("autograd", "mygrad")
    written = {"lora": ("torch", "peft"), **dict.fromkeys(("full", "topk", "adapter", "intrinsic"), ("torch",))}
    peers = written.get(family, ())
    return (*peers, "autograd", "mygrad") if family == "full" and shape.kind == "gpt" else peers


def threads() -> int:
    """The threads of every side: the processors that this process may use, at most 4 (the default of `minipeft`, too)."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 4)

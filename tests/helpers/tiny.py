"""A tiny encoder and a tiny classification task, made on the spot: no network, no files, milliseconds."""

from __future__ import annotations

from typing import Any

import numpy as np

import minipeft as mp
from minipeft.autograd import functional
from minipeft.backend import active
from minipeft.data import Batch, EncodedSet, collate
from minipeft.data.tokenize import Encoded
from minipeft.nn import ClassificationHead, Module, Transformer, TransformerConfig
from minipeft.optim import AdamW

VOCAB, POSITIONS, TYPES, D, LAYERS, HEADS, FF, CLASSES = 40, 12, 2, 16, 3, 2, 24, 3
PAD = 0

# The sizes of the parts, from the formulas: a norm has 2d numbers, a linear layer in · out + out.
NORM = 2 * D
BLOCK = 4 * (D * D + D) + (D * FF + FF) + (FF * D + D) + 2 * NORM
EMBED = (VOCAB + POSITIONS + TYPES) * D + NORM
POOLER = D * D + D
CLASSIFIER = D * CLASSES + CLASSES
HEAD = POOLER + CLASSIFIER
TOTAL = EMBED + LAYERS * BLOCK + HEAD


def tiny_model(
    seed: int = 0, *, layers: int = LAYERS, dropout: float = 0.0, norm_first: bool = False, d_ff: int = FF
) -> Transformer:
    """A post-norm encoder whose every parameter, biases and norms too, is far from its starting value."""
    mp.seed(seed)
    config = TransformerConfig(
        VOCAB,
        D,
        layers,
        HEADS,
        d_ff,
        POSITIONS,
        TYPES,
        dropout=dropout,
        attention_dropout=dropout,
        norm_first=norm_first,
    )
    model = Transformer(config, ClassificationHead(D, CLASSES, dropout))
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data += active().asarray((0.2 * rng.standard_normal(parameter.shape)).astype(np.float32))
    return model


def tiny_data(rows: int = 40, seed: int = 0) -> EncodedSet:
    """Sequences of 3 to 9 tokens; the class of a row is written in its second token."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 10, rows).astype(np.int32)
    encodings = []
    for length in lengths:
        ids = rng.integers(1, VOCAB, length).astype(np.int32)
        types = (np.arange(length) >= length // 2).astype(np.int32)
        encodings.append(Encoded(ids, types))
    labels = np.array([encoded.input_ids[1] % CLASSES for encoded in encodings], dtype=np.int32)
    return EncodedSet(tuple(encodings), labels, lengths)


DATA = tiny_data()
BATCH = collate(DATA, range(8), PAD)


def call(model: Module, batch: Batch = BATCH) -> mp.Tensor:
    """The logits, recorded."""
    return model(batch.input_ids, batch.attention_mask, batch.token_type_ids)


def logits(model: Module, batch: Batch = BATCH) -> np.ndarray:
    """The logits as an array, with nothing recorded."""
    with mp.no_grad():
        return call(model, batch).numpy().copy()


def loss_of(model: Module, batch: Batch = BATCH) -> mp.Tensor:
    """The mean cross-entropy."""
    return functional.cross_entropy(call(model, batch), batch.labels)


def take_steps(model: Module, steps: int = 3, lr: float = 0.02, weight_decay: float = 0.0) -> AdamW:
    """A few AdamW steps on different batches. Without weight decay, what moves moves by its gradient."""
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, collate(DATA, range(8 * step, 8 * step + 8), PAD)).backward()
        optimizer.step()
    return optimizer


def bits(model: Module) -> dict[str, bytes]:
    """Every parameter's bytes, by name."""
    return {name: parameter.numpy().tobytes() for name, parameter in model.named_parameters()}


def disturb(model: Any, std: float = 0.1, seed: int = 1) -> None:
    """Move every trainable parameter at random, in place: a method that has left its starting point."""
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += active().asarray((std * rng.standard_normal(parameter.shape)).astype(parameter.dtype))

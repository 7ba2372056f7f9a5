"""What a method costs on an architecture, from its shapes alone: nothing is loaded, and no array has a value.

The architecture is built, the method attached, and one training step run by the very code that trains, on arrays that have
a shape and no values (backend/shape_backend.py). So the figures are those of the live model, of a method of your own too,
and GPT-3 is counted in seconds on a laptop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minipeft.autograd import Tensor, functional
from minipeft.backend import active
from minipeft.backend.shape_backend import shapes_only
from minipeft.cost.flops import count_flops
from minipeft.cost.memory import activation_bytes
from minipeft.cost.presets import CLASSES, NO_STEP, build, computes
from minipeft.errors import UserError
from minipeft.nn import Module, Parameter
from minipeft.optim import AdamW
from minipeft.peft import PeftConfig, get_peft_model
from minipeft.peft.io import saved_bytes
from minipeft.peft.method import ParameterCount


@dataclass(frozen=True)
class StepCount:
    """Of one training step: operations of the matrix products, and the bytes that the tape keeps for the backward pass."""

    forward_flops: int
    backward_flops: int
    activations: int


@dataclass(frozen=True)
class Count:
    """What a method costs: parameters, and bytes in float32.

    Attributes:
        parameters: in the head and of the method.
        base: parameters of the model alone.
        gradient: of what is trained.
        optimizer: AdamW's m and v.
        saved: the tensors of the file of `save_pretrained`; more than is trained where PEFT keeps LoRA of several layers in
            one pair, as on GPT-2's c_attn.
        trained: the shape of each trained tensor.
        step: None where it is not asked for or cannot be counted; then `note` says why.
    """

    parameters: ParameterCount
    base: int
    gradient: int
    optimizer: int
    saved: int
    trained: dict[str, tuple[int, ...]]
    step: StepCount | None
    note: str = ""


def count_each(
    hf_config: Mapping[str, Any],
    methods: Mapping[str, PeftConfig],
    batch: int = 0,
    length: int = 0,
    task: str | None = None,
    labels: tuple[str, ...] = CLASSES,
) -> dict[str, Count | UserError]:
    """Count several methods, by name; one that does not fit the architecture has its error in its place.

    A step is counted where the architecture computes one. Raises UserError, the first, when no method fits.
    """
    batch = batch if computes(hf_config) else 0
    counts: dict[str, Count | UserError] = {}
    for name, method in methods.items():
        try:
            counts[name] = count(hf_config, method, batch, length, task, labels)
        except UserError as error:
            counts[name] = error
    errors = [found for found in counts.values() if isinstance(found, UserError)]
    if len(errors) == len(counts) > 0:
        raise errors[0]
    return counts


def count(
    hf_config: Mapping[str, Any],
    method: PeftConfig,
    batch: int = 0,
    length: int = 0,
    task: str | None = None,
    labels: tuple[str, ...] = CLASSES,
) -> Count:
    """Count a method on the architecture of a config.json; with a batch of `batch` rows of `length` tokens, a step too.

    Raises:
        UserError: the config or the method's settings do not fit, or the rows are longer than the model reads.
    """
    with shapes_only():
        model = build(hf_config, task, labels)
        base = sum(p.numel() for p in model.parameters())
        m = get_peft_model(model, method)
        parameters, trained = m.count_parameters(), m.trainable_parameters()
        shapes = {name: p.shape for name, p in trained.items()}
        saved = saved_bytes(m)
        step = count_step(m, batch, length) if batch else None
        optimizer = AdamW(m.parameters())
        gradient, note = int(optimizer.flat.grad.nbytes), "" if computes(hf_config) else NO_STEP
        return Count(parameters, base, gradient, optimizer.state_bytes(), saved, shapes, step, note)


def count_step(model: Module, batch: int, length: int) -> StepCount:
    """A forward and a backward pass over full rows of `length` tokens: (batch, length). Gradients are left behind.

    Raises:
        UserError: a row is longer than the model reads, or shorter than its task needs.
    """
    if min(batch, length) < 1:
        raise UserError(f"batch {batch}, length {length}: a step needs 1 row of 1 token or more.")
    vocabulary = _vocabulary(model)
    ids = active().to_numpy([[i % vocabulary for i in range(length)]] * batch)
    with count_flops() as forward:
        loss = _loss(model, ids)
    activations = activation_bytes(loss, model)
    with count_flops() as backward:
        loss.backward()
    return StepCount(forward.flops, backward.flops, activations)


def _loss(model: Module, ids: Any) -> Tensor:
    """The mean cross-entropy: of a classifier against class 0, of a language model against the ids (unshifted)."""
    logits = model(ids)
    return functional.cross_entropy(logits, ids if len(logits.shape) == 3 else ids[:, 0] * 0)


def _vocabulary(model: Module) -> int:
    tables = (p for name, p in model.named_parameters() if name.endswith("embed.word.weight"))
    table: Parameter | None = next(tables, None)
    if table is None:
        raise UserError("This model has no word table, so no step of it can be counted.")
    return table.shape[0]

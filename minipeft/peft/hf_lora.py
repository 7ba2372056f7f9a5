"""LoRA as Hugging Face PEFT writes it, for every family here: names and shapes. Reading is in hf_read.py.

PEFT keeps Aᵀ (r, in) and Bᵀ (out, r). Where the files of a family hold several of our layers side by side, as GPT-2's
c_attn holds q, k and v, one pair has to do for all: (A_q | A_v) of rank 2r, and a B with A_q's rows in q's columns and
A_v's in v's, zero elsewhere. The other way round, each of q, k and v gets PEFT's whole A and its own columns of B.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from minipeft.backend import Array, active
from minipeft.errors import UserError
from minipeft.models.pretrained import Pretrained
from minipeft.peft.dora import DoraConfig
from minipeft.peft.lora import LoraConfig, divisor

PREFIX = "base_model.model."
TASKS = {"classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM", "features": "FEATURE_EXTRACTION"}
HEADS = ("pooler", "classifier", "score")  # PEFT's names of what lies in our `head`


def places(model: Pretrained, names: Iterable[str]) -> dict[str, tuple[list[str], bool]]:
    """Hugging Face's name of each of our parameters -> ours, side by side, and whether they lie transposed there."""
    found: dict[str, tuple[list[str], bool]] = {}
    for ours in names:
        theirs, transposed = model.hf_name(ours)
        found.setdefault(model.in_file(theirs), ([], transposed))[0].append(ours)
    return found


def to_files(
    model: Pretrained, names: Iterable[str], config: LoraConfig, state: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Any], dict[str, str]]:
    """PEFT's tensors, its config, and metadata of ours, which PEFT does not look at.

    Args:
        model: the base, with LoRA in it.
        names: of its own parameters, before anything was attached.
        config: of LoRA, or of DoRA.
        state: the arrays to be saved, by our names.

    Raises:
        UserError: layers that share a pair differ in scale.
    """
    tensors: dict[str, Array] = {}
    settings: dict[str, tuple[int, float]] = {}  # PEFT's module -> its rank and α
    parts: dict[str, dict[str, list[float]]] = {}  # PEFT's module -> ours in it, with ranks and α's of their own
    wanted = []
    parameters = dict(model.named_parameters())
    for theirs, (ours, transposed) in places(model, names).items():
        module, _, leaf = theirs.rpartition(".")
        inside = [name.rpartition(".")[0] for name in ours]
        own = [name for name in inside if f"{name}.A" in state]
        held = [f"{part}.linear.{leaf}" if f"{part}.A" in state else f"{part}.{leaf}" for part in inside]
        values = [parameters[name].data for name in held]
        if leaf == "weight" and own:
            tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = _pair(
                inside, [value.shape[1] for value in values], state
            )
            scale = _scale([config.at(name) for name in own], own, model)
            r, alpha = sum(config.at(name).r for name in own), config.at(own[0]).lora_alpha
            settings[module] = r, alpha if len(own) == 1 else scale * divisor(r, config.use_rslora)
            if len(inside) > 1:
                parts[module] = {name: [config.at(name).r, config.at(name).lora_alpha] for name in own}
            if isinstance(config, DoraConfig):
                tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = _magnitude(inside, values, state)
        if any(name in state for name in held):
            check_whole(model, module, leaf, bool(own), "embed.word.weight" in held)
            value = active().xp.concatenate(values, axis=-1)
            tensors[PREFIX + (f"{module}.base_layer.{leaf}" if own else theirs)] = value.T if transposed else value
            if not own and leaf != "bias":
                wanted.append(module)
    usual = Counter(settings.values()).most_common(1)[0][0]
    whole = [name for name in HEADS if any(name in module.split(".") for module in wanted)]
    whole += [module for module in wanted if not set(HEADS) & set(module.split("."))]
    hf_config = {
        "peft_type": "LORA",
        "task_type": TASKS[model.task],
        "base_model_name_or_path": None,
        "r": usual[0],
        "lora_alpha": usual[1],
        "lora_dropout": config.lora_dropout,
        # each by its whole name: the end of one, such as output.dense, may stand for two layers of a block
        "target_modules": list(settings),
        "rank_pattern": {name: r for name, (r, _) in settings.items() if r != usual[0]},
        "alpha_pattern": {name: alpha for name, (_, alpha) in settings.items() if alpha != usual[1]},
        "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
        "use_rslora": config.use_rslora,
        "use_dora": isinstance(config, DoraConfig),
        "bias": config.bias,
        "fan_in_fan_out": model.family == "GPT-2",
        "modules_to_save": whole or None,
        "inference_mode": True,
    }
    return tensors, hf_config, {"parts": json.dumps(parts)} if parts else {}


def check_whole(model: Pretrained, module: str, leaf: str, has_lora: bool, is_table: bool) -> None:
    """Refuse to save a module whole where PEFT would compute something else with it."""
    if leaf == "weight" and has_lora:
        raise UserError(f"{module} is one matrix in the files of a {model.family}: LoRA on a part of it, another saved "
                        "whole, has no place there.")  # fmt: skip
    if is_table and getattr(model.head, "tied", False):
        raise UserError(
            f"{module} is tied to the output matrix, and PEFT would train a copy: it cannot be in modules_to_save."
        )


def _scale(configs: list[LoraConfig], own: list[str], model: Pretrained) -> float:
    scale = configs[0].scale
    if any(config.scale != scale for config in configs):
        raise UserError(
            f"The files of a {model.family} keep {', '.join(own)} in one matrix, which has one scale in PEFT; give them "
            "the same r and lora_alpha."
        )
    return scale


def _pair(parts: list[str], widths: list[int], state: Mapping[str, Array]) -> tuple[Array, Array]:
    """Aᵀ and Bᵀ of the layers that lie side by side, some of which may have no LoRA."""
    xp = active().xp
    A = xp.concatenate([state[f"{part}.A"] for part in parts if f"{part}.A" in state], axis=1)
    B = xp.zeros((A.shape[1], sum(widths)), dtype=A.dtype)
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if f"{part}.B" in state:
            r = state[f"{part}.B"].shape[0]
            B[row : row + r, column : column + width] = state[f"{part}.B"]
            row += r
        column += width
    return A.T, B.T


def _magnitude(parts: list[str], weights: list[Array], state: Mapping[str, Array]) -> Array:
    """DoRA's m of the layers that lie side by side; ‖W‖ where one has no DoRA."""
    xp = active().xp
    return xp.concatenate(
        [
            state[f"{part}.magnitude"] if f"{part}.A" in state else xp.sqrt((W * W).sum(axis=0))
            for part, W in zip(parts, weights, strict=True)
        ]
    )

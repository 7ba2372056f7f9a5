"""Saving what was trained, and only that: adapter_config.json and adapter_model.safetensors.

LoRA on a BERT is written as Hugging Face PEFT writes it (A and B transposed, under PEFT's names) and loads there. The other
methods use the same two files with a `peft_type` of their own. What is saved is the method's parameters and the head,
never merged weights, so that loading cannot apply them twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipeft.backend import active, storage
from minipeft.errors import UserError, unknown
from minipeft.files import atomic_write
from minipeft.models.bert import BLOCK, Bert, hf_part
from minipeft.nn import Module

if TYPE_CHECKING:
    from minipeft.peft.model import PeftConfig, PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LORA = "LORA"
PREFIX = "base_model.model."


def save(model: PeftModel, folder: str | Path) -> None:
    """Write the two files. Raises UserError when the disk is full or LoRA trains biases, which has no file format here."""
    folder = Path(folder)
    state = {name: active().to_numpy(p.data) for name, p in model.saved_parameters().items()}
    metadata = {"format": "pt", "base": fingerprint(model)}
    config: dict[str, Any]
    if model.config.peft_type == LORA and isinstance(model.model, Bert):
        config = _hf_config(model.config, [name.removesuffix(".A") for name in state if name.endswith(".A")])
        has_head = model.model.head is not None
        renamed = {_hf_name(name, has_head): name for name in state}
        state = {theirs: state[ours].T if state[ours].ndim == 2 else state[ours] for theirs, ours in renamed.items()}
    else:
        config = {"peft_type": model.config.peft_type, **dataclasses.asdict(model.config)}
    storage.write_tensors(folder / WEIGHTS, state, metadata)
    atomic_write(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load_config(folder: str | Path, kinds: dict[str, type[PeftConfig]]) -> PeftConfig:
    """The config in a folder; `kinds` maps each known `peft_type` to its class.

    Raises:
        UserError: a file is missing or damaged, or has a type, field or value that is not known here; each is named.
    """
    path = Path(folder) / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG}: it does not hold a trained method.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(raw, dict) or raw.get("peft_type") not in kinds:
        given = raw.get("peft_type") if isinstance(raw, dict) else raw
        raise unknown(f"peft_type in {path}:", given, kinds)
    kind = kinds[raw.pop("peft_type")]
    ours = kind.peft_type != LORA or "init" in raw  # PEFT has no field of that name
    fields = raw if ours else _from_hf(raw, path)
    known = {field.name for field in dataclasses.fields(kind)}
    if fields.keys() - known:
        raise UserError(f"{path}: fields that are not known here: {', '.join(sorted(fields.keys() - known))}.")
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    try:
        return kind(**fields)
    except TypeError as error:
        raise UserError(f"{path}: {error}.") from None


def load_weights(model: PeftModel, folder: str | Path) -> None:
    """Write a folder's weights into the trainable parameters of a model with the same method attached.

    Raises:
        UserError: they were trained on another base, or a tensor is missing, unknown or of another shape. Then nothing
            has been written.
    """
    path = Path(folder) / WEIGHTS
    tensors, metadata = storage.read_tensors(path)
    if "base" in metadata and metadata["base"] != fingerprint(model):
        raise UserError(f"{folder} was trained on a model of another shape; load the one that it was trained on.")
    own = model.saved_parameters()
    hf = model.config.peft_type == LORA and isinstance(model.model, Bert)
    has_head = getattr(model.model, "head", None) is not None
    names = {(_hf_name(ours, has_head) if hf else ours): ours for ours in own}
    if names.keys() != tensors.keys():
        missing, extra = sorted(names.keys() - tensors.keys()), sorted(tensors.keys() - names.keys())
        raise UserError(f"{path} does not fit the model: missing {missing[:3]}, unknown {extra[:3]}.")
    state = {
        ours: tensors[theirs].T if hf and tensors[theirs].ndim == 2 else tensors[theirs]
        for theirs, ours in names.items()
    }
    for name, parameter in own.items():
        if state[name].shape != parameter.shape:
            raise UserError(f"{path}: {name} has shape {state[name].shape}, the model's {parameter.shape}.")
    for name, parameter in own.items():
        parameter.data[...] = active().asarray(state[name], dtype=parameter.dtype)


def fingerprint(model: PeftModel) -> str:
    """A short hash of the names and shapes of the base's parameters, whatever has been attached to it."""
    lines = [f"{name} {shape}" for name, shape in model.base_shapes.items() if not name.startswith("head.classifier")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# ---- Hugging Face PEFT's names


def _hf_name(ours: str, has_head: bool) -> str:
    part, _, leaf = ours.rpartition(".")
    if leaf in ("A", "B"):
        return f"{PREFIX}{hf_part(part, has_head)}.lora_{leaf}.weight"
    if part.startswith("head."):
        return f"{PREFIX}{hf_part(part, has_head)}.{leaf}"
    raise UserError(
        f"LoRA with trained biases ({ours}) cannot be saved; use bias='none', or merge_and_unload() and save."
    )


def _hf_config(config: Any, layers: list[str]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": None,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        # each by its whole name: the end of one, such as output.dense, may stand for two layers of a block
        "target_modules": [hf_part(layer, True) for layer in layers],
        "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
        "use_rslora": config.use_rslora,
        "bias": config.bias,
        "fan_in_fan_out": False,
        "modules_to_save": ["pooler", "classifier"],
        "inference_mode": True,
    }


def _from_hf(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of a LoraConfig from those of PEFT's; one that asks for what is not built here is an error."""
    theirs = {name: ours for ours, name in BLOCK.items()}
    targets = raw.get("target_modules")
    if not isinstance(targets, str | list):
        raise UserError(f"{path}: target_modules must be a name or a list of names, not {targets!r}.")
    names = [targets] if isinstance(targets, str) else sorted(targets)
    fields: dict[str, Any] = {
        "r": raw.get("r", 8),
        "lora_alpha": raw.get("lora_alpha", 8),
        "lora_dropout": raw.get("lora_dropout", 0.0),
        "use_rslora": raw.get("use_rslora", False),
        "bias": raw.get("bias", "none"),
        "init": "gaussian" if raw.get("init_lora_weights") == "gaussian" else "kaiming",
    }
    if targets == "all-linear":
        fields["target_modules"] = targets
    else:
        fields["target_modules"] = tuple(_our_target(name, theirs, path) for name in names)
    harmless = {"task_type", "base_model_name_or_path", "modules_to_save", "inference_mode", "revision", "auto_mapping"}
    harmless |= {"target_modules", "init_lora_weights", "peft_version", *fields}
    harmless |= {"megatron_core", "qalora_group_size"}  # details of features that other fields switch on
    asks = {key: value for key, value in raw.items() if key not in harmless and value not in (None, False, {}, [], "")}
    if asks:
        raise UserError(f"{path} asks for what is not built here: {', '.join(f'{k}={v!r}' for k, v in asks.items())}.")
    return fields


def _our_target(name: str, theirs: dict[str, str], path: Path) -> str:
    """PEFT's target: the end of a module's dotted name, at a dot."""
    if name.startswith(("bert.encoder.layer.", "encoder.layer.")):
        n, _, rest = name.removeprefix("bert.").removeprefix("encoder.layer.").partition(".")
        if rest in theirs:
            return f"blocks.{n}.{theirs[rest]}"
    matches = [ours for full, ours in theirs.items() if full == name or full.endswith(f".{name}")]
    if len(matches) != 1:
        raise UserError(
            f"{path}: the target {name!r} stands for {matches or 'nothing'} in a BERT; one layer was expected."
        )
    return matches[0]


def base_shapes(model: Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, taken before anything is attached to it."""
    return {name: p.shape for name, p in model.named_parameters()}

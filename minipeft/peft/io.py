"""Saving what was trained, and only that: adapter_config.json and adapter_model.safetensors.

LoRA on a BERT, a GPT-2 or a Llama is written as Hugging Face PEFT writes it, and loads there (hf_lora.py, hf_read.py); so
are DoRA, PiSSA and LoRA+. The other methods use the same two files with a `peft_type` of their own and all their settings.
What is saved is the method's parameters and the head, never merged weights, so that loading cannot apply them twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipeft.backend import Array, active, storage
from minipeft.errors import UserError, unknown
from minipeft.files import atomic_write
from minipeft.models.pretrained import Pretrained
from minipeft.nn import Module
from minipeft.peft import hf_lora, hf_read
from minipeft.peft.fields import checked, make
from minipeft.peft.lora import LoraConfig
from minipeft.peft.method import PeftConfig

if TYPE_CHECKING:
    from minipeft.peft.model import PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class Saved:
    """What two files hold: the config, and each parameter's values by the name that it has once the config is attached.

    `optional` names parameters that may be missing: the base's own then stay.
    """

    config: PeftConfig
    state: Mapping[str, Any]
    optional: set[str]
    folder: Path


def save(model: PeftModel, folder: str | Path) -> None:
    """Write the two files. Raises UserError when the disk is full, or PEFT's format has no place for a setting."""
    folder = Path(folder)
    tensors, fields, metadata = _contents(model)
    storage.write_tensors(folder / WEIGHTS, {name: active().to_numpy(a) for name, a in tensors.items()}, metadata)
    atomic_write(folder / CONFIG, json.dumps(fields, indent=2) + "\n")


def saved_bytes(model: PeftModel) -> int:
    """The bytes of the tensors that `save` writes, without their names, and whether or not they have values.

    Raises:
        UserError: PEFT's format has no place for a setting, or the adapter is switched off.
    """
    return sum(int(array.nbytes) for array in _contents(model)[0].values())


def _contents(model: PeftModel) -> tuple[dict[str, Array], dict[str, Any], dict[str, str]]:
    """The tensors, the fields of the config, and the metadata."""
    config, state = model.exported()
    metadata = {"format": "pt", "base": fingerprint(model.base_shapes)}
    if isinstance(config, LoraConfig) and isinstance(model.model, Pretrained):
        tensors, fields, more = hf_lora.to_files(model.model, model.base_shapes, config, state)
        return tensors, fields, metadata | more
    return state, {"peft_type": config.peft_type, "version": config.version, **dataclasses.asdict(config)}, metadata


def read(model: Module, folder: str | Path, kinds: dict[str, type[PeftConfig]]) -> Saved:
    """What a folder holds for `model`, a plain one; `kinds` maps each known `peft_type` to its class.

    Raises:
        UserError: a file is missing or damaged; it has a type, field or value that is not known here, each is named; or
            it was trained on another base.
    """
    path = Path(folder) / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG}: it does not hold a trained method.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from None
    given = raw.get("peft_type") if isinstance(raw, dict) else raw
    if not isinstance(raw, dict) or not isinstance(given, str) or given not in kinds:
        raise unknown(f"peft_type in {path}:", given, kinds)
    tensors, metadata = storage.read_tensors(Path(folder) / WEIGHTS)
    if "base" in metadata and metadata["base"] != fingerprint(base_shapes(model)):
        raise UserError(f"{folder} was trained on a model of another shape; load the one that it was trained on.")
    kind = kinds[given]
    if kind is LoraConfig and "version" not in raw:  # PEFT has no field of that name
        if not isinstance(model, Pretrained):
            raise UserError(f"{folder} holds LoRA for a BERT, a GPT-2 or a Llama, not for a {type(model).__name__}.")
        config, state, optional = hf_read.from_files(model, raw, tensors, metadata, path)
        return Saved(config, state, optional, Path(folder))
    return Saved(_own_config(raw, kind, path), tensors, set(), Path(folder))


def _own_config(raw: dict[str, Any], kind: type[PeftConfig], path: Path) -> PeftConfig:
    version = raw.get("version")
    if version != kind.version:
        raise UserError(
            f"{path} is of version {version!r} of {kind.peft_type}, and this is {kind.version}: the same settings would "
            "not rebuild the same method. Load it with the minipeft that saved it."
        )
    fields = {key: value for key, value in raw.items() if key not in ("peft_type", "version")}
    known = {field.name for field in dataclasses.fields(kind)}
    if fields.keys() != known:
        lacking, extra = sorted(known - fields.keys()), sorted(fields.keys() - known)
        raise UserError(f"{path}: fields that are not known here: {extra}; fields that are missing: {lacking}.")
    return make(kind, checked(kind, fields, path), path)


def load_weights(model: PeftModel, saved: Saved) -> None:
    """Write what was read into the parameters of a model with the same method attached.

    Raises:
        UserError: a tensor is missing, unknown or of another shape. Then nothing has been written.
    """
    own = model.saved_parameters()
    missing, extra = sorted(own.keys() - saved.state.keys() - saved.optional), sorted(saved.state.keys() - own.keys())
    if missing or extra:
        raise UserError(f"{saved.folder} does not fit the model: missing {missing[:3]}, unknown {extra[:3]}.")
    for name, array in saved.state.items():
        if tuple(array.shape) != own[name].shape:
            raise UserError(f"{saved.folder}: {name} has shape {tuple(array.shape)}, the model's {own[name].shape}.")
    for name, array in saved.state.items():
        own[name].data[...] = active().asarray(array, dtype=own[name].dtype)


def fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A short hash of the names and shapes of a base's parameters; the classifier's may differ."""
    lines = [f"{name} {shape}" for name, shape in shapes.items() if not name.startswith("head.classifier")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def base_shapes(model: Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, taken before anything is attached to it."""
    return {name: p.shape for name, p in model.named_parameters()}

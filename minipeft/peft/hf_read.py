"""Reading LoRA that Hugging Face PEFT wrote: what its config may ask for, and whose values its tensors are."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minipeft.backend import Array, active
from minipeft.errors import UserError
from minipeft.models.pretrained import Pretrained
from minipeft.peft.dora import DoraConfig
from minipeft.peft.hf_lora import HEADS, PREFIX, check_whole, places
from minipeft.peft.lora import LoraConfig, divisor

READ = ("r", "lora_alpha", "lora_dropout", "use_rslora", "bias")  # fields that mean the same here
# Fields that say nothing of what is computed, or only details of a feature that another field switches on.
HARMLESS = {"task_type", "base_model_name_or_path", "inference_mode", "revision", "auto_mapping", "peft_version"}
HARMLESS |= {"fan_in_fan_out", "megatron_core", "qalora_group_size"}
TRANSLATED = {"peft_type", "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "init_lora_weights"}
TRANSLATED |= {"use_dora"}


def from_files(
    model: Pretrained, raw: Mapping[str, Any], tensors: Mapping[str, Any], metadata: Mapping[str, str], path: Path
) -> tuple[LoraConfig, dict[str, Any], set[str]]:
    """Our config, the parameters under the names that they have once it is attached, and those that may be missing.

    Raises:
        UserError: a field asks for what is not built here, a target stands for no layer or for one that cannot have LoRA
            here, or the tensors are not those that the config speaks of; each is named.
    """
    asks = {
        k: v for k, v in raw.items() if k not in {*READ, *HARMLESS, *TRANSLATED} and v not in (None, False, {}, [], "")
    }
    if raw.get("init_lora_weights", True) not in (True, False, "gaussian"):
        asks["init_lora_weights"] = raw["init_lora_weights"]  # such a start changes the base's weights as well
    if asks:
        raise UserError(f"{path} asks for what is not built here: {', '.join(f'{k}={v!r}' for k, v in asks.items())}.")
    base = places(model, (name for name, _ in model.named_parameters()))
    modules = {theirs.rpartition(".")[0]: [o.rpartition(".")[0] for o in ours] for theirs, (ours, _) in base.items()}
    layers = _layers(raw, tensors, modules, path)
    parts = json.loads(metadata.get("parts", "{}"))
    state: dict[str, Any] = {}
    settings: dict[str, tuple[int, float]] = {}  # our layer -> its rank and α
    for module in layers:
        r = _pattern(raw, "rank_pattern", module, raw.get("r", 8))
        alpha = _pattern(raw, "alpha_pattern", module, raw.get("lora_alpha", 8))
        A, B = (tensors[f"{PREFIX}{module}.lora_{X}.weight"].T for X in "AB")  # (in, r), (r, out)
        if r < 1:
            raise UserError(f"{path}: r={r}: the rank of LoRA is 1 or more.")
        if A.shape[1] != r or B.shape[0] != r:
            raise UserError(f"{path}: r is {r} for {module}, but its tensors have rank {A.shape[1]}.")
        scale = alpha / divisor(r, bool(raw.get("use_rslora")))
        magnitude = tensors.get(f"{PREFIX}{module}.lora_magnitude_vector")
        if (magnitude is not None) != bool(raw.get("use_dora")):
            raise UserError(f"{path}: use_dora={raw.get('use_dora')} does not fit the tensors of {module}.")
        row = column = 0
        for ours in modules[module]:
            weight = model.get_submodule(ours).weight  # type: ignore[attr-defined]
            width, rank, own_alpha = weight.shape[1], r, alpha
            if module in parts:  # each part has rows of its own
                if ours not in parts[module]:
                    column += width
                    continue
                rank, own_alpha = parts[module][ours]
                own_scale = own_alpha / divisor(rank, bool(raw.get("use_rslora")))
                if not math.isclose(own_scale, scale, rel_tol=1e-9):  # somebody has changed the config since
                    own_alpha *= scale / own_scale
            settings[ours] = (rank, own_alpha)
            state[f"{ours}.A"] = A[:, row : row + rank]
            state[f"{ours}.B"] = B[row : row + rank, column : column + width]
            if magnitude is not None:
                state[f"{ours}.magnitude"] = magnitude[column : column + width]
            row += rank if module in parts else 0
            column += width
    whole = _modules_to_save(raw, modules, path)
    if "embed.word" in whole:
        check_whole(model, "the word table", "weight", False, True)
    unmoved = _plain(model, tensors, base, settings, state, path)
    usual = Counter(settings.values()).most_common(1)[0][0]
    config = (DoraConfig if raw.get("use_dora") else LoraConfig)(
        **{key: raw[key] for key in READ if key in raw and key not in ("r", "lora_alpha")},
        r=usual[0],
        lora_alpha=usual[1],
        target_modules=tuple(settings),
        rank_pattern={name: r for name, (r, _) in settings.items() if r != usual[0]},
        alpha_pattern={name: alpha for name, (_, alpha) in settings.items() if alpha != usual[1]},
        init="gaussian" if raw.get("init_lora_weights") == "gaussian" else "kaiming",
        modules_to_save=tuple(name for name in whole if not name.startswith("head.")),
    )
    optional = {n for n, _ in model.named_parameters() if n.startswith("head.") and n.rpartition(".")[0] not in whole}
    return config, state, optional | unmoved


def _layers(
    raw: Mapping[str, Any], tensors: Mapping[str, Any], modules: Mapping[str, list[str]], path: Path
) -> list[str]:
    """PEFT's modules that have LoRA, checked against what target_modules says."""
    targets = raw.get("target_modules")
    if not isinstance(targets, str | list):
        raise UserError(f"{path}: target_modules must be a name or a list of names, not {targets!r}.")
    there = {
        key.removeprefix(PREFIX).removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")
    }
    there |= {
        key.removeprefix(PREFIX).removesuffix(".lora_B.weight") for key in tensors if key.endswith(".lora_B.weight")
    }
    can = {module for module, ours in modules.items() if ours[0].endswith("_proj")}
    for module in sorted(there - can):
        raise UserError(
            f"{path}: LoRA on {module} is not built here, only on {', '.join(sorted({m.rpartition('.')[2] for m in can}))}."
        )
    if targets == "all-linear":
        meant = can
    elif isinstance(targets, str):
        meant = {module for module in modules if re.fullmatch(targets, module)}
    else:
        for target in targets:
            if not any(module == target or module.endswith(f".{target}") for module in modules):
                raise UserError(f"{path}: the target {target!r} stands for nothing in this model.")
        meant = {module for module in modules if any(module == t or module.endswith(f".{t}") for t in targets)}
    if not meant & can or meant & can != there:
        differ = sorted((meant & can) ^ there)[:3]
        raise UserError(
            f"{path}: target_modules {targets!r} does not fit the tensors beside it; they differ in {differ}."
        )
    for module in there:
        for X in "AB":
            if f"{PREFIX}{module}.lora_{X}.weight" not in tensors:
                raise UserError(f"{path}: there is no {module}.lora_{X}.weight beside it.")
    return [module for module in modules if module in there]


def _pattern(raw: Mapping[str, Any], field: str, module: str, default: Any) -> Any:
    """As PEFT reads a pattern: the first key that, as a regular expression, is the end of the name at a dot."""
    pattern = raw.get(field) or {}
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _modules_to_save(raw: Mapping[str, Any], modules: Mapping[str, list[str]], path: Path) -> list[str]:
    """Our modules that PEFT's modules_to_save stands for: those at, or below, a name that ends so."""
    whole: list[str] = []
    for name in raw.get("modules_to_save") or ():
        parents = {m: [".".join(m.split(".")[: i + 1]) for i in range(m.count(".") + 1)] for m in modules}
        found = [ours for m, above in parents.items() if any(p.endswith(name) for p in above) for ours in modules[m]]
        if not found and name not in HEADS:  # PEFT names the heads of all families at once
            raise UserError(f"{path}: modules_to_save names {name!r}, which is no part of this model.")
        whole += [ours for ours in found if ours not in whole]
    return whole


def _plain(
    model: Pretrained,
    tensors: Mapping[str, Any],
    base: Mapping[str, tuple[list[str], bool]],
    layers: Mapping[str, Any],
    state: dict[str, Any],
    path: Path,
) -> set[str]:
    """Put the tensors that are no A and no B into `state`: the head, biases, modules_to_save.

    Returns the parts of fused ones that are as the base has them, trained or not.
    """
    unmoved: set[str] = set()
    own: dict[str, Array] = {name: p.data for name, p in model.named_parameters()}
    for key, array in tensors.items():
        bare = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        if ".lora_" in key or ".original_module." in key or ".modules_to_save." in key:
            continue  # with bias="all", PEFT writes a head's bias three times
        if bare not in base:
            raise UserError(f"{path.parent} holds the tensor {key}, which is no part of this model.")
        ours, transposed = base[bare]
        array, start = array.T if transposed else array, 0
        for name in ours:
            width = own[name].shape[-1]
            piece = array[..., start : start + width]
            start += width
            part, _, leaf = name.rpartition(".")
            if len(ours) > 1 and part not in layers and (active().to_numpy(own[name]) == piece).all():
                unmoved.add(name)
                continue
            state[f"{part}.linear.{leaf}" if part in layers else name] = piece
    return unmoved

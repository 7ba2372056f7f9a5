"""LoRA as Hugging Face PEFT writes it, for every family here: names, shapes, and what its config may ask for.

PEFT keeps Aᵀ (r, in) and Bᵀ (out, r). Where the files of a family hold several of our layers side by side, as GPT-2's
c_attn holds q, k and v, one pair has to do for all: (A_q | A_v) of rank 2r, and a B with A_q's rows in q's columns and
A_v's in v's, zero elsewhere. The other way round, each of q, k and v gets PEFT's whole A and its own columns of B.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minipeft.backend import Array, active
from minipeft.errors import UserError
from minipeft.models.pretrained import Pretrained
from minipeft.peft.lora import LoraConfig, LoRALinear

PREFIX = "base_model.model."
TASKS = {"classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM", "features": "FEATURE_EXTRACTION"}
HEADS = ("pooler", "classifier", "score")  # PEFT's names of what lies in our `head`
READ = ("r", "lora_alpha", "lora_dropout", "use_rslora", "bias")  # fields that mean the same here
# Fields that say nothing of what is computed, or only details of a feature that another field switches on.
HARMLESS = {"task_type", "base_model_name_or_path", "inference_mode", "revision", "auto_mapping", "peft_version"}
HARMLESS |= {"fan_in_fan_out", "megatron_core", "qalora_group_size"}
TRANSLATED = {"peft_type", "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "init_lora_weights"}


def places(model: Pretrained, names: Iterable[str]) -> dict[str, tuple[list[str], bool]]:
    """Hugging Face's name of each of our parameters -> ours, side by side, and whether they lie transposed there."""
    found: dict[str, tuple[list[str], bool]] = {}
    for ours in names:
        theirs, transposed = model.hf_name(ours)
        found.setdefault(model.in_file(theirs), ([], transposed))[0].append(ours)
    return found


# ---- writing


def to_files(
    model: Pretrained,
    names: Iterable[str],
    config: LoraConfig,
    layers: Mapping[str, LoRALinear],
    saved: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """PEFT's tensors, its config, and metadata of ours, which PEFT does not look at.

    Args:
        model: the base, with LoRA in it.
        names: of its own parameters, before anything was attached.
        config: of LoRA.
        layers: by our names.
        saved: every parameter to be saved, by our names.

    Raises:
        UserError: layers that share a pair differ in scale.
    """
    tensors: dict[str, Any] = {}
    settings: dict[str, tuple[int, float]] = {}  # PEFT's module -> its rank and α
    parts: dict[str, Any] = {}
    wanted = []
    for theirs, (ours, transposed) in places(model, names).items():
        module, _, leaf = theirs.rpartition(".")
        inside = [name.rpartition(".")[0] for name in ours]
        own = [name for name in inside if name in layers]
        held = [f"{part}.linear.{leaf}" if part in layers else f"{part}.{leaf}" for part in inside]
        if leaf == "weight" and own:
            A, B, scale = _pair([layers.get(name) for name in inside], model, inside)
            tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = A, B
            r = A.shape[0]
            alpha = layers[own[0]].alpha if len(own) == 1 else scale * (math.sqrt(r) if config.use_rslora else r)
            settings[module] = (r, alpha)
            if len(inside) > 1:
                parts[module] = {name: [layers[name].A.shape[1], layers[name].alpha] for name in own}
        if any(name in saved for name in held):
            _check_whole(model, module, leaf, bool(own), "embed.word.weight" in held)
            parameters = dict(model.named_parameters())
            value = active().xp.concatenate([parameters[name].data for name in held], axis=-1)
            key = f"{module}.base_layer.{leaf}" if own else theirs
            tensors[PREFIX + key] = active().to_numpy(value.T if transposed else value)
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
        "bias": config.bias,
        "fan_in_fan_out": model.family == "GPT-2",
        "modules_to_save": whole or None,
        "inference_mode": True,
    }
    return tensors, hf_config, {"parts": json.dumps(parts)} if parts else {}


def _check_whole(model: Pretrained, module: str, leaf: str, has_lora: bool, is_table: bool) -> None:
    """Refuse to save a module whole where PEFT would compute something else with it."""
    if leaf == "weight" and has_lora:
        raise UserError(f"{module} is one matrix in the files of a {model.family}: LoRA on a part of it, another saved "
                        "whole, has no place there.")  # fmt: skip
    if is_table and getattr(model.head, "tied", False):
        raise UserError(
            f"{module} is tied to the output matrix, and PEFT would train a copy: it cannot be in modules_to_save."
        )


def _pair(layers: list[LoRALinear | None], model: Pretrained, names: list[str]) -> tuple[Any, Any, float]:
    """Aᵀ, Bᵀ and the scale of the layers that lie side by side; None where a part has no LoRA."""
    xp, to_numpy = active().xp, active().to_numpy
    there = [layer for layer in layers if layer is not None]
    scale = there[0].scale
    if any(layer.scale != scale for layer in there):
        raise UserError(
            f"The files of a {model.family} keep {', '.join(names)} in one matrix, which has one scale in PEFT; give "
            "them the same r and lora_alpha."
        )
    widths = [model.get_submodule(name if layer is None else f"{name}.linear").weight.shape[1]  # type: ignore[attr-defined]
              for name, layer in zip(names, layers, strict=True)]  # fmt: skip
    A = xp.concatenate([layer.A.data for layer in there], axis=1)
    B = xp.zeros((A.shape[1], sum(widths)), dtype=A.dtype)
    row = column = 0
    for layer, width in zip(layers, widths, strict=True):
        if layer is not None:
            r = layer.A.shape[1]
            B[row : row + r, column : column + width] = layer.B.data
            row += r
        column += width
    return to_numpy(A.T), to_numpy(B.T), scale


# ---- reading


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
        scale = alpha / (math.sqrt(r) if raw.get("use_rslora") else r)
        row = column = 0
        for ours in modules[module]:
            weight = model.get_submodule(ours).weight  # type: ignore[attr-defined]
            width, rank, own_alpha = weight.shape[1], r, alpha
            if module in parts:  # each part has rows of its own
                if ours not in parts[module]:
                    column += width
                    continue
                rank, own_alpha = parts[module][ours]
                own_scale = own_alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)
                if not math.isclose(own_scale, scale, rel_tol=1e-9):  # somebody has changed the config since
                    own_alpha *= scale / own_scale
            settings[ours] = (rank, own_alpha)
            state[f"{ours}.A"] = A[:, row : row + rank]
            state[f"{ours}.B"] = B[row : row + rank, column : column + width]
            row += rank if module in parts else 0
            column += width
    whole = _modules_to_save(raw, modules, path)
    if "embed.word" in whole:
        _check_whole(model, "the word table", "weight", False, True)
    unmoved = _plain(model, tensors, base, settings, state, path)
    usual = Counter(settings.values()).most_common(1)[0][0]
    config = LoraConfig(
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

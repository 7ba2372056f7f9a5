"""Reading LoRA that Hugging Face PEFT wrote: what its config may ask for, and whose values its tensors are."""

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
from minipeft.peft.dora import DoraConfig
from minipeft.peft.fields import checked, converted, make
from minipeft.peft.hf_lora import HEADS, PREFIX, check_whole, places
from minipeft.peft.lora import LoraConfig, divisor
from minipeft.peft.method import PeftConfig

OPTIONAL = ("rank_pattern", "alpha_pattern", "modules_to_save")  # may be null
READ = ("r", "lora_alpha", "lora_dropout", "use_rslora", "bias")  # fields that mean the same here
# Fields that say nothing of what is computed, or only details of a feature that another field switches on.
HARMLESS = {"task_type", "base_model_name_or_path", "inference_mode", "revision", "auto_mapping", "peft_version"}
HARMLESS |= {"fan_in_fan_out", "megatron_core", "qalora_group_size"}
TRANSLATED = {"peft_type", "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "init_lora_weights"}
TRANSLATED |= {"use_dora"}


def from_files(
    model: Pretrained, raw: Mapping[str, Any], tensors: Mapping[str, Any], metadata: Mapping[str, str], path: Path
) -> tuple[PeftConfig, dict[str, Any], set[str]]:
    """Our config, the parameters under the names that they have once it is attached, and those that may be missing.

    Raises:
        UserError: a field is of another kind or asks for what is not built here, a target stands for no layer or for one
            that cannot have LoRA here, or the tensors are not those that the config speaks of; each is named.
    """
    dora = raw.get("use_dora")
    asks = {
        k: v for k, v in raw.items() if k not in {*READ, *HARMLESS, *TRANSLATED} and v not in (None, False, {}, [], "")
    }
    if raw.get("init_lora_weights", True) not in (True, False, "gaussian"):
        asks["init_lora_weights"] = raw["init_lora_weights"]  # such a start changes the base's weights as well
    if dora not in (None, True, False):
        asks["use_dora"] = dora
    if asks:
        raise UserError(f"{path} asks for what is not built here: {', '.join(f'{k}={v!r}' for k, v in asks.items())}.")
    given = {k: raw[k] for k in (*READ, *OPTIONAL) if k in raw and not (k in OPTIONAL and raw[k] is None)}
    given = checked(LoraConfig, {**given, "target_modules": raw.get("target_modules")}, path)
    base = places(model, (name for name, _ in model.named_parameters()))
    modules = {theirs.rpartition(".")[0]: [o.rpartition(".")[0] for o in ours] for theirs, (ours, _) in base.items()}
    layers = _layers(given["target_modules"], tensors, modules, path)
    ranks, alphas = (_patterns(given, field, path) for field in ("rank_pattern", "alpha_pattern"))
    parts = _parts(metadata, {module: modules[module] for module in layers}, path)
    state: dict[str, Any] = {}
    settings: dict[str, tuple[int, float]] = {}  # our layer -> its rank and α
    rest = dict(tensors)
    for module in layers:
        r, alpha = _at(ranks, module, given.get("r", 8)), _at(alphas, module, given.get("lora_alpha", 8))
        if r < 1:
            raise UserError(f"{path}: r={r}: the rank of LoRA is 1 or more.")
        inside = parts.get(module)
        if inside and sum(rank for rank, _ in inside.values()) != r:
            raise UserError(f"{path}: r is {r} for {module}, but its parts, with rank and α, are {inside}.")
        shapes = {ours: model.get_submodule(ours).weight.shape for ours in modules[module]}  # type: ignore[attr-defined]
        A, B, *magnitude = _pair(module, r, shapes, bool(dora), rest, path)
        scale = alpha / divisor(r, given.get("use_rslora", False))
        row = column = 0
        for ours, (_, width) in shapes.items():
            if inside is None or ours in inside:  # each part has rows of its own
                rank, own_alpha = inside[ours] if inside else (r, alpha)
                own_divisor = divisor(rank, given.get("use_rslora", False))
                if not math.isclose(own_alpha / own_divisor, scale, rel_tol=1e-9):  # the config has been changed since
                    own_alpha = scale * own_divisor
                settings[ours] = (rank, own_alpha)
                state[f"{ours}.A"] = A[:, row : row + rank]
                state[f"{ours}.B"] = B[row : row + rank, column : column + width]
                if magnitude:
                    state[f"{ours}.magnitude"] = magnitude[0][column : column + width]
                row += rank if inside else 0
            column += width
    whole = _modules_to_save(given.get("modules_to_save", ()), modules, path)
    if "embed.word" in whole:
        check_whole(model, "the word table", "weight", False, True)
    unmoved = _plain(model, rest, base, settings, state, path)
    usual = Counter(settings.values()).most_common(1)[0][0]
    values = {
        **{key: given[key] for key in READ if key in given},
        "r": usual[0],
        "lora_alpha": usual[1],
        "target_modules": tuple(settings),
        "rank_pattern": {name: r for name, (r, _) in settings.items() if r != usual[0]},
        "alpha_pattern": {name: alpha for name, (_, alpha) in settings.items() if alpha != usual[1]},
        "init": "gaussian" if raw.get("init_lora_weights") == "gaussian" else "kaiming",
        "modules_to_save": tuple(name for name in whole if not name.startswith("head.")),
    }
    optional = {n for n, _ in model.named_parameters() if n.startswith("head.") and n.rpartition(".")[0] not in whole}
    return make(DoraConfig if dora else LoraConfig, values, path), state, optional | unmoved


def _layers(
    targets: str | tuple[str, ...], tensors: Mapping[str, Any], modules: Mapping[str, list[str]], path: Path
) -> list[str]:
    """PEFT's modules that have LoRA, checked against what target_modules says."""
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
        pattern = _regex(targets, "target_modules", path)
        meant = {module for module in modules if pattern.fullmatch(module)}
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
    return [module for module in modules if module in there]


def _pair(
    module: str, r: int, shapes: Mapping[str, tuple[int, ...]], dora: bool, rest: dict[str, Any], path: Path
) -> list[Any]:
    """A (in, r), B (r, out) and DoRA's m (out,) of a module, taken out of `rest`.

    Args:
        module: by PEFT's name.
        r: its rank.
        shapes: (in, width) of each of our layers in it; out is the sum of the widths.
        dora: whether there is to be an m.
        rest: the tensors by key.
        path: the config's, for errors.
    """
    d_in, d_out = next(iter(shapes.values()))[0], sum(width for _, width in shapes.values())
    expected = {"lora_A.weight": (r, d_in), "lora_B.weight": (d_out, r), "lora_magnitude_vector": (d_out,)}
    if (f"{PREFIX}{module}.lora_magnitude_vector" in rest) != dora:
        raise UserError(f"{path}: use_dora={dora} does not fit the tensors of {module}.")
    found = []
    for leaf, shape in list(expected.items())[: 3 if dora else 2]:
        key = f"{PREFIX}{module}.{leaf}"
        if key not in rest:
            raise UserError(f"{path}: there is no {key} beside it.")
        found.append(_of_shape(key, rest.pop(key), shape, f"r={r} on this model's {d_in} × {d_out}", path).T)
    return found


def _of_shape(key: str, array: Any, shape: tuple[int, ...], what: str, path: Path) -> Any:
    if tuple(array.shape) != shape:
        raise UserError(f"{path.parent}: {key} has shape {tuple(array.shape)}, but {what} asks for {shape}.")
    return array


def _parts(
    metadata: Mapping[str, str], modules: Mapping[str, list[str]], path: Path
) -> dict[str, dict[str, tuple[int, float]]]:
    """Of our metadata: PEFT's module -> those of our layers in it that have LoRA, each with its rank and α."""
    text = metadata.get("parts", "{}")
    try:
        parts = converted(json.loads(text), Mapping[str, Mapping[str, tuple[float, ...]]])
        sound = all(inside and inside.keys() <= set(modules.get(module, ())) for module, inside in parts.items())
        pairs = [pair for inside in parts.values() for pair in inside.values()]
        sound = sound and all(len(pair) == 2 and isinstance(pair[0], int) and pair[0] >= 1 for pair in pairs)
    except (ValueError, TypeError):
        sound = False
    if not sound:
        raise UserError(
            f"{path.parent}: the tensors' metadata say parts = {text}; expected is an object with, for any of "
            f'{", ".join(modules)}, an object {{"layer": [rank, alpha]}}.'
        )
    return parts


def _patterns(given: Mapping[str, Any], field: str, path: Path) -> list[tuple[re.Pattern[str], Any]]:
    """As PEFT reads a pattern: a key is, as a regular expression, the end of a name at a dot."""
    return [(_regex(rf"(.*\.)?({key})$", field, path), value) for key, value in given.get(field, {}).items()]


def _at(patterns: list[tuple[re.Pattern[str], Any]], module: str, default: Any) -> Any:
    """The value of the first key that fits."""
    return next((value for pattern, value in patterns if pattern.match(module)), default)


def _regex(text: str, field: str, path: Path) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: {field} has {text!r}, which is no regular expression ({error}).") from None


def _modules_to_save(names: Iterable[str], modules: Mapping[str, list[str]], path: Path) -> list[str]:
    """Our modules that PEFT's modules_to_save stands for: those at, or below, a name that ends so."""
    whole: list[str] = []
    for name in names:
        parents = {m: [".".join(m.split(".")[: i + 1]) for i in range(m.count(".") + 1)] for m in modules}
        found = [ours for m, above in parents.items() if any(p.endswith(name) for p in above) for ours in modules[m]]
        if not found and name not in HEADS:  # PEFT names the heads of all families at once
            raise UserError(f"{path}: modules_to_save names {name!r}, which is no part of this model.")
        whole += [ours for ours in found if ours not in whole]
    return whole


def _plain(
    model: Pretrained,
    rest: Mapping[str, Any],
    base: Mapping[str, tuple[list[str], bool]],
    layers: Mapping[str, Any],
    state: dict[str, Any],
    path: Path,
) -> set[str]:
    """Put the rest of the tensors, which are no A and no B, into `state`: the head, biases, modules_to_save.

    Returns the parts of fused ones that are as the base has them, trained or not.
    """
    unmoved: set[str] = set()
    own: dict[str, Array] = {name: p.data for name, p in model.named_parameters()}
    for bare, key in _named(rest, base, layers, path).items():
        ours, transposed = base[bare]
        shape = (*own[ours[0]].shape[:-1], sum(own[name].shape[-1] for name in ours))
        array = _of_shape(key, rest[key], shape[::-1] if transposed else shape, "this model", path)
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


def _named(
    rest: Mapping[str, Any], base: Mapping[str, tuple[list[str], bool]], layers: Mapping[str, Any], path: Path
) -> dict[str, str]:
    """The base's name of each tensor, in Hugging Face's words -> its key. Raises UserError, which names all strays."""
    found: dict[str, str] = {}
    strays = []
    for key in rest:
        inner = key.removeprefix(PREFIX)
        copied = re.sub(r"\.(original_module|modules_to_save)\.", ".", inner)
        if copied != inner and copied in base and f"{PREFIX}{copied}" in rest:
            continue  # with bias="all", PEFT writes a head's bias three times
        bare = inner.replace(".base_layer.", ".")
        ours = base[bare][0] if bare in base else []
        wrapped = any(name.rpartition(".")[0] in layers for name in ours)
        fits = bare.endswith(".bias") if wrapped else bare == inner
        if key == inner or not ours or not fits or bare in found:
            strays.append(key)
        found[bare] = key
    if strays:
        raise UserError(
            f"{path.parent} holds tensors that no part of this model and its LoRA reads: {', '.join(strays)}."
        )
    return found

"""`load_model`: a known name, a Hugging Face folder or a GGUF file -> a model with its weights and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minipeft.data.assets import fetch
from minipeft.data.bpe import from_vocab_and_merges
from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError, unknown
from minipeft.models.bert import Bert
from minipeft.models.gguf_file import open_gguf
from minipeft.models.glass import read_glass, read_glass_tokenizer
from minipeft.models.gpt2 import GPT2
from minipeft.models.llama import Llama
from minipeft.models.pretrained import Pretrained

MODELS = ("minilm", "smollm2", "glassllm")
TASKS = ("classification", "causal-lm", "features")
FAMILIES: dict[str, Any] = {"bert": Bert, "gpt2": GPT2, "llama": Llama}


def load_model(
    name_or_folder: str | Path,
    task: str = "classification",
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    dropout: float | None = None,
    progress: bool = True,
) -> Pretrained:
    """Load a model by a known name (it is fetched when it must be) or from a folder or file on the disk.

    Args:
        name_or_folder: "minilm", "smollm2", "glassllm"; or where config.json and model.safetensors are, of a BERT, a
            GPT-2 or a Llama; or a .gguf file of a Llama; or a .npz file of glassllm.
        task: "classification" for logits (batch, num_labels), "causal-lm" for those of the next token after each
            (batch, seq, vocab), "features" for hidden states (batch, seq, d).
        num_labels: classes of the head; the folder's own number (or 2) when None.
        labels: their names, instead of num_labels.
        dropout: replaces the config's dropout probabilities.
        progress: show a bar while fetching.

    Raises:
        UserError: an unknown name or task, labels that do not fit their number or are fewer than 2, or a folder that
            does not hold a whole model.
    """
    if task not in TASKS:
        raise unknown("model task", task, TASKS)
    place = find_model(name_or_folder, progress)
    state, tokenizer = None, None
    if place.suffix == ".gguf":
        gguf = open_gguf(place)
        config, state, tokenizer = gguf.hf_config(), gguf.state(), gguf.tokenizer
    elif place.suffix == ".npz":
        config, state = read_glass(place)
        tokenizer = read_glass_tokenizer(place)
    else:
        config = _read_config(place / "config.json")
    kind = FAMILIES.get(str(config.get("model_type")))
    if kind is None:
        raise UserError(
            f"{place} holds a {config.get('model_type')!r} model; this version reads 'bert', 'gpt2' and 'llama' models."
        )
    if task not in kind.architectures:
        raise UserError(f"A {kind.family} is made for {' or '.join(kind.architectures)}, not for {task!r}.")
    names = tuple(labels) if labels is not None else _label_names(config, num_labels)
    if num_labels not in (None, len(names)):
        raise UserError(f"num_labels={num_labels}, but there are {len(names)} labels: {', '.join(names)}.")
    if task == "classification" and len(names) < 2:
        raise UserError(f"A classifier needs at least 2 labels, not {len(names)}.")
    model: Pretrained = kind(config, task, names, dropout)
    if state is None:
        model.load_pretrained(place / "model.safetensors")
        tokenizer = _folder_tokenizer(place)
    else:
        if task != "causal-lm":  # the head is another one: a fresh classifier, or none
            state.pop("head.weight", None)
            state |= {name: array for name, array in model.state_dict().items() if name.startswith("head.")}
        model.load_state_dict(state)
    model.tokenizer = tokenizer
    return model


def load_tokenizer(name_or_folder: str | Path, progress: bool = True) -> Tokenizer:
    """The tokenizer of a model, without its weights. Raises UserError when the model has none."""
    place = find_model(name_or_folder, progress)
    if place.suffix == ".gguf":
        return open_gguf(place).tokenizer
    found = read_glass_tokenizer(place) if place.suffix == ".npz" else _folder_tokenizer(place)
    if found is None:
        raise UserError(f"{place} has no tokenizer.json or vocab.txt, so its texts cannot be read.")
    return found


def find_model(name_or_folder: str | Path, progress: bool = True) -> Path:
    """The folder (or the file) of a model: itself, or of an asset of that name, which is fetched when it must be."""
    known = str(name_or_folder) in MODELS
    place = fetch(str(name_or_folder), progress=progress) if known else Path(name_or_folder)
    if place.is_file() and place.suffix in (".gguf", ".npz"):
        return place
    if not place.is_dir():
        raise unknown("model", name_or_folder, MODELS, "Or give a Hugging Face folder or a .gguf file on the disk.")
    single = [*place.glob("*.gguf"), *place.glob("*.npz")]
    if len(single) == 1 and not (place / "config.json").exists():
        return single[0]
    for file in ("config.json", "model.safetensors"):
        if not (place / file).is_file():
            raise UserError(f"The folder {place} has no {file}; a Hugging Face model folder has both of its files.")
    return place


def _folder_tokenizer(folder: Path) -> Tokenizer | None:
    if (folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists():
        return Tokenizer.from_folder(folder)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return from_vocab_and_merges(folder)
    return None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return config


def _label_names(config: dict[str, Any], num_labels: int | None) -> tuple[str, ...]:
    own = config.get("id2label") or {}
    if not isinstance(own, dict) or not all(str(key).isdecimal() for key in own):
        raise UserError(f'config.json: id2label is {own!r}; it must be an object such as {{"0": "no", "1": "yes"}}.')
    if num_labels is None:
        num_labels = len(own) or 2
    if len(own) == num_labels:
        return tuple(str(own[key]) for key in sorted(own, key=int))
    return tuple(f"LABEL_{i}" for i in range(num_labels))

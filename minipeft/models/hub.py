"""`load_model`: a known name or a Hugging Face folder -> a model with its weights and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minipeft.data.assets import ASSETS, fetch
from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError, unknown
from minipeft.models.bert import Bert

MODELS = ("minilm",)
TASKS = ("classification", "features")


def load_model(
    name_or_folder: str | Path,
    task: str = "classification",
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    dropout: float | None = None,
    progress: bool = True,
) -> Bert:
    """Load a model by a known name ("minilm", fetched when it must be) or from a Hugging Face folder.

    Args:
        name_or_folder: where config.json and model.safetensors are.
        task: "classification" for logits (batch, num_labels), "features" for hidden states (batch, seq, d).
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
    folder = find_model(name_or_folder, progress)
    config = _read_config(folder / "config.json")
    if config.get("model_type") != "bert":
        raise UserError(f"{folder} holds a {config.get('model_type')!r} model; this version reads 'bert' models.")
    names = tuple(labels) if labels is not None else _label_names(config, num_labels)
    if num_labels not in (None, len(names)):
        raise UserError(f"num_labels={num_labels}, but there are {len(names)} labels: {', '.join(names)}.")
    if task == "classification" and len(names) < 2:
        raise UserError(f"A classifier needs at least 2 labels, not {len(names)}.")
    model = Bert(config, task, names, dropout)
    model.load_pretrained(folder / "model.safetensors")
    if (folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists():
        model.tokenizer = Tokenizer.from_folder(folder)
    return model


def find_model(name_or_folder: str | Path, progress: bool = True) -> Path:
    """The folder of a model: itself, or of an asset of that name, which is fetched when it must be."""
    if str(name_or_folder) in MODELS and str(name_or_folder) in ASSETS:
        return fetch(str(name_or_folder), progress=progress)
    folder = Path(name_or_folder)
    if not folder.is_dir():
        raise unknown("model", name_or_folder, MODELS, "Or give a Hugging Face folder on the disk.")
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise UserError(f"The folder {folder} has no {file}; a Hugging Face model folder has both of its files.")
    return folder


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

"""What the families share: a transformer that reads and writes Hugging Face folders.

A family says, for each of its parameters, under which name its files keep it (`hf_name`). Parameters that have one name
in common lie side by side there, along the last axis, as GPT-2's q, k and v do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from minipeft.backend import storage
from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError
from minipeft.files import atomic_write
from minipeft.nn import LanguageHead, LastTokenHead, Module, Transformer, TransformerConfig


class Pretrained(Transformer):
    """A transformer of a known family.

    Attributes:
        hf_config: the folder's config.json, to be written back by `save_pretrained`.
        tokenizer: the folder's tokenizer; None when the folder has none.
        labels: the names of the classes of a classifier.
    """

    family: ClassVar[str]  # as errors name it
    prefix: ClassVar[str]  # before the body's names in the files of a model with a head
    architectures: ClassVar[Mapping[str, str]]  # task -> the class in transformers
    ignored: ClassVar[tuple[str, ...]]  # names begin so, without the prefix, of what a file may hold besides

    hf_config: dict[str, Any]
    tokenizer: Tokenizer | None
    labels: tuple[str, ...]
    task: str

    def hf_name(self, ours: str) -> tuple[str, bool]:
        """The name in the files of a parameter of ours, without the prefix; and whether it lies transposed there.

        Raises KeyError for a parameter that the family does not have.
        """
        raise NotImplementedError(f"{type(self).__name__} has no hf_name.")

    def layout(self) -> dict[tuple[str, bool], list[str]]:
        """(name in the files without the prefix, transposed there) -> our parameters, side by side.

        Raises:
            UserError: a method is attached to the model, so that it is not a plain one.
        """
        places: dict[tuple[str, bool], list[str]] = {}
        for ours, _ in self.named_parameters():
            try:
                places.setdefault(self.hf_name(ours), []).append(ours)
            except KeyError:
                raise UserError(
                    f"{ours} is no part of a {self.family}: merge_and_unload() the method before saving the model."
                ) from None
        return places

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and the tokenizer: a folder that transformers' Auto classes load."""
        folder = Path(folder)
        config = {**self.hf_config, "architectures": [self.architectures[self.task]]}
        if self.task == "classification":
            config["id2label"] = {str(i): label for i, label in enumerate(self.labels)}
            config["label2id"] = {label: i for i, label in enumerate(self.labels)}
            if config.get("pad_token_id") is None and self.tokenizer is not None:
                config["pad_token_id"] = self.tokenizer.pad_id
        state, tensors = self.state_dict(), {}
        for (theirs, transposed), ours in self.layout().items():
            arrays = [state[name].T if transposed else state[name] for name in ours]
            tensors[self.in_file(theirs)] = storage.side_by_side(arrays)
        storage.write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
        atomic_write(folder / "config.json", json.dumps(config, indent=2) + "\n")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def load_pretrained(self, path: Path) -> None:
        """Read a folder's model.safetensors into the parameters. A classifier that the file lacks keeps its fresh start.

        Raises:
            UserError: a tensor is missing, unknown, or of another shape; the message names it.
        """
        tensors, _ = storage.read_tensors(path)
        bare = {name.removeprefix(self.prefix): array for name, array in tensors.items()}
        state = self.state_dict()
        for (theirs, transposed), ours in self.layout().items():
            if theirs in bare:
                array = bare.pop(theirs)
                array = array.T if transposed else array
                widths = [state[name].shape[-1] for name in ours]
                expected = (*state[ours[0]].shape[:-1], sum(widths))
                if array.shape != expected:
                    hint = f" Ask for num_labels={array.shape[-1]}." if ours[0].startswith("head.classifier") else ""
                    raise UserError(
                        f"{path}: {theirs} has shape {array.shape}, but its config.json asks for {expected}"
                        f" (shown as in × out).{hint}"
                    )
                start = 0
                for name, width in zip(ours, widths, strict=True):
                    state[name] = array[..., start : start + width]
                    start += width
            elif self.task != "classification" or not ours[0].startswith("head."):
                raise UserError(
                    f"{path} has no tensor {theirs!r}: it is not a whole {self.family}. Save or fetch it again."
                )
        extra = sorted(name for name in bare if not name.startswith(self.ignored) and not self.harmless(name))
        if extra:
            raise UserError(
                f"{path} holds tensors that a {self.family} does not have: {', '.join(extra[:3])}. Is it another model?"
            )
        self.load_state_dict(state)

    def harmless(self, theirs: str) -> bool:
        """Whether a name in a file is of a constant, which older versions wrote."""
        return False

    def in_file(self, theirs: str) -> str:
        """A name in the files of this model, with the prefix where one belongs."""
        in_body = not theirs.startswith(("classifier.", "score.", "lm_head."))
        return f"{self.prefix}{theirs}" if self.head is not None and in_body else theirs


class Decoder(Pretrained):
    """A causal model, with the head of its task: the next token's logits, a classifier on the last token, or none."""

    def __init__(
        self,
        hf_config: Mapping[str, Any],
        config: TransformerConfig,
        task: str,
        labels: tuple[str, ...] = (),
    ) -> None:
        super().__init__(config)
        self.hf_config, self.task, self.labels, self.tokenizer = dict(hf_config), task, labels, None
        head: Module | None = None
        if task == "causal-lm":
            head = LanguageHead(self.embed.word, tied=bool(hf_config["tie_word_embeddings"]))
        elif task == "classification":
            head = LastTokenHead(config.d_model, len(labels), config.dropout)
        self.head = head


def field(hf: Mapping[str, Any], name: str, kind: type, family: str, default: Any = None) -> Any:
    """A field of config.json as an int, a float or a str; `default` where it is missing or null.

    Raises:
        UserError: it is missing and has no default, or is of another kind.
    """
    value = hf.get(name)
    if value is None and default is not None:
        return default
    if name not in hf:
        raise UserError(f"config.json lacks the field {name!r}; is this a {family} folder?")
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise UserError(f"config.json: {name} is {value!r}; {kind.__name__} is expected.") from None

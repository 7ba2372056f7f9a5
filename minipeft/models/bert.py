"""BERT (arXiv 1810.04805): its config, and where each of its tensors stands in a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minipeft.backend import storage
from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError
from minipeft.files import atomic_write
from minipeft.nn import ClassificationHead, Transformer, TransformerConfig

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

# our name of a part -> Hugging Face's
EMBED = {
    "embed.word": "embeddings.word_embeddings",
    "embed.position": "embeddings.position_embeddings",
    "embed.segment": "embeddings.token_type_embeddings",
    "embed.norm": "embeddings.LayerNorm",
}
BLOCK = {
    "q_proj": "attention.self.query",
    "k_proj": "attention.self.key",
    "v_proj": "attention.self.value",
    "o_proj": "attention.output.dense",
    "attn_norm": "attention.output.LayerNorm",
    "up_proj": "intermediate.dense",
    "down_proj": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
HEAD = {"head.pooler": "pooler.dense", "head.classifier": "classifier"}


class Bert(Transformer):
    """A BERT encoder with a classification head, or without one for its hidden states.

    Attributes:
        hf_config: the folder's config.json, to be written back by `save_pretrained`.
        tokenizer: the folder's tokenizer; None when the folder has none.
    """

    def __init__(self, hf_config: Mapping[str, Any], task: str, labels: tuple[str, ...], dropout: float | None) -> None:
        config = bert_config(hf_config, dropout)
        head = None
        if task == "classification":
            p = hf_config.get("classifier_dropout")
            p = config.dropout if p is None or dropout is not None else float(p)
            head = ClassificationHead(config.d_model, len(labels), p)
        super().__init__(config, head)
        self.hf_config = dict(hf_config)
        self.tokenizer: Tokenizer | None = None
        self.labels = labels

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and the tokenizer: a folder that transformers' Auto classes load."""
        folder = Path(folder)
        config = dict(self.hf_config)
        config["architectures"] = ["BertForSequenceClassification" if self.head else "BertModel"]
        if self.head:
            config["id2label"] = {str(i): label for i, label in enumerate(self.labels)}
            config["label2id"] = {label: i for i, label in enumerate(self.labels)}
        state = self.state_dict()
        tensors = {}
        for ours, theirs in hf_names(self).items():
            tensors[theirs] = state[ours].T if _is_linear(ours) else state[ours]
        storage.write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
        atomic_write(folder / "config.json", json.dumps(config, indent=2) + "\n")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def load_pretrained(self, path: Path) -> None:
        """Read a folder's model.safetensors into the parameters. A head that the file lacks keeps its fresh start.

        Raises:
            UserError: a tensor is missing, unknown, or of another shape; the message names it.
        """
        tensors, _ = storage.read_tensors(path)
        bare = {name.removeprefix("bert."): array for name, array in tensors.items()}
        state = self.state_dict()
        for ours, theirs in hf_names(self).items():
            theirs = theirs.removeprefix("bert.")
            if theirs in bare:
                array = bare.pop(theirs)
                if _is_linear(ours):
                    array = array.T
                if array.shape != state[ours].shape:
                    hint = f" Ask for num_labels={array.shape[-1]}." if theirs.startswith("classifier") else ""
                    raise UserError(
                        f"{path}: {theirs} has shape {array.shape}, but its config.json asks for {state[ours].shape}"
                        f" (shown as in × out).{hint}"
                    )
                state[ours] = array
            elif not ours.startswith("head."):
                raise UserError(f"{path} has no tensor {theirs!r}: it is not a whole BERT. Save or fetch it again.")
        ignored = ("cls.", "pooler.", "classifier.", "embeddings.position_ids")  # other heads, and a constant
        extra = sorted(name for name in bare if not name.startswith(ignored))
        if extra:
            raise UserError(
                f"{path} holds tensors that a BERT does not have: {', '.join(extra[:3])}. Is it another model?"
            )
        self.load_state_dict(state)


def bert_config(hf: Mapping[str, Any], dropout: float | None = None) -> TransformerConfig:
    """The shape in a BERT's config.json; `dropout` replaces both of its dropout probabilities.

    Raises:
        UserError: a field is missing or no number, or the config asks for something that is not built here.
    """
    if hf.get("position_embedding_type", "absolute") != "absolute" or hf.get("is_decoder"):
        raise UserError("This BERT uses relative positions or a decoder; only the absolute encoder is built here.")
    if _field(hf, "hidden_act", str) not in ACTIVATIONS:
        raise UserError(f"config.json: hidden_act {hf['hidden_act']!r}; known: {', '.join(ACTIVATIONS)}.")
    return TransformerConfig(
        vocab_size=_field(hf, "vocab_size", int),
        d_model=_field(hf, "hidden_size", int),
        layers=_field(hf, "num_hidden_layers", int),
        heads=_field(hf, "num_attention_heads", int),
        d_ff=_field(hf, "intermediate_size", int),
        max_positions=_field(hf, "max_position_embeddings", int),
        type_vocab=_field(hf, "type_vocab_size", int),
        norm_eps=_field(hf, "layer_norm_eps", float),
        activation=ACTIVATIONS[hf["hidden_act"]],
        dropout=_field(hf, "hidden_dropout_prob", float) if dropout is None else dropout,
        attention_dropout=_field(hf, "attention_probs_dropout_prob", float) if dropout is None else dropout,
    )


def _field(hf: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field of config.json as an int, a float or a str."""
    if name not in hf:
        raise UserError(f"config.json lacks the field {name!r}; is this a BERT folder?")
    try:
        return kind(hf[name])
    except (TypeError, ValueError):
        raise UserError(f"config.json: {name} is {hf[name]!r}; {kind.__name__} is expected.") from None


def hf_names(model: Transformer) -> dict[str, str]:
    """Our name of every parameter -> Hugging Face's, with the `bert.` prefix that a model with a head has in its files.

    Raises:
        UserError: a method is attached to the model, so that it is not a plain BERT.
    """
    names = {}
    for ours, _ in model.named_parameters():
        part, _, leaf = ours.rpartition(".")
        try:
            names[ours] = f"{hf_part(part, model.head is not None)}.{leaf}"
        except KeyError:
            raise UserError(
                f"{ours} is no part of a BERT: merge_and_unload() the method before saving the model."
            ) from None
    return names


def hf_part(part: str, has_head: bool) -> str:
    """Our name of a layer ("blocks.0.q_proj") -> Hugging Face's. Raises KeyError for one that a BERT does not have."""
    if part.startswith("blocks."):
        _, n, name = part.split(".", 2)
        theirs = f"encoder.layer.{n}.{BLOCK[name]}"
    else:
        theirs = {**EMBED, **HEAD}[part]
    return f"bert.{theirs}" if has_head and part != "head.classifier" else theirs


def _is_linear(ours: str) -> bool:
    """Linear weights are (in, out) here and (out, in) in the files; tables and norms are alike."""
    return ours.endswith("_proj.weight") or ours in ("head.pooler.weight", "head.classifier.weight")

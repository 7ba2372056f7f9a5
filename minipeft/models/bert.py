"""BERT (arXiv 1810.04805): its config, and where each of its tensors stands in a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from minipeft.errors import UserError
from minipeft.models.pretrained import Pretrained, field
from minipeft.nn import ClassificationHead, TransformerConfig

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


class Bert(Pretrained):
    """A BERT encoder with a classification head, or without one for its hidden states."""

    family = "BERT"
    prefix = "bert."
    architectures: ClassVar[Mapping[str, str]] = {
        "classification": "BertForSequenceClassification",
        "features": "BertModel",
    }
    ignored = ("cls.", "pooler.", "classifier.", "embeddings.position_ids")  # other heads, and a constant

    def __init__(self, hf_config: Mapping[str, Any], task: str, labels: tuple[str, ...], dropout: float | None) -> None:
        config = bert_config(hf_config, dropout)
        head = None
        if task == "classification":
            p = hf_config.get("classifier_dropout")
            p = config.dropout if p is None or dropout is not None else float(p)
            head = ClassificationHead(config.d_model, len(labels), p)
        super().__init__(config, head)
        self.hf_config, self.task, self.labels, self.tokenizer = dict(hf_config), task, labels, None

    def hf_name(self, ours: str) -> tuple[str, bool]:
        """Linear weights are (in, out) here and (out, in) in the files; tables and norms are alike."""
        part, _, leaf = ours.rpartition(".")
        linear = part.endswith("_proj") or part in ("head.pooler", "head.classifier")
        return f"{hf_part(part, False)}.{leaf}", linear and leaf == "weight"


def bert_config(hf: Mapping[str, Any], dropout: float | None = None) -> TransformerConfig:
    """The shape in a BERT's config.json; `dropout` replaces both of its dropout probabilities.

    Raises:
        UserError: a field is missing or no number, or the config asks for something that is not built here.
    """
    if hf.get("position_embedding_type", "absolute") != "absolute" or hf.get("is_decoder"):
        raise UserError("This BERT uses relative positions or a decoder; only the absolute encoder is built here.")
    if field(hf, "hidden_act", str, "BERT") not in ACTIVATIONS:
        raise UserError(f"config.json: hidden_act {hf['hidden_act']!r}; known: {', '.join(ACTIVATIONS)}.")
    return TransformerConfig(
        vocab_size=field(hf, "vocab_size", int, "BERT"),
        d_model=field(hf, "hidden_size", int, "BERT"),
        layers=field(hf, "num_hidden_layers", int, "BERT"),
        heads=field(hf, "num_attention_heads", int, "BERT"),
        d_ff=field(hf, "intermediate_size", int, "BERT"),
        max_positions=field(hf, "max_position_embeddings", int, "BERT"),
        type_vocab=field(hf, "type_vocab_size", int, "BERT"),
        norm_eps=field(hf, "layer_norm_eps", float, "BERT"),
        activation=ACTIVATIONS[hf["hidden_act"]],
        dropout=field(hf, "hidden_dropout_prob", float, "BERT") if dropout is None else dropout,
        attention_dropout=field(hf, "attention_probs_dropout_prob", float, "BERT") if dropout is None else dropout,
    )


def hf_part(part: str, has_head: bool) -> str:
    """Our name of a layer ("blocks.0.q_proj") -> Hugging Face's. Raises KeyError for one that a BERT does not have."""
    if part.startswith("blocks."):
        _, n, name = part.split(".", 2)
        theirs = f"encoder.layer.{n}.{BLOCK[name]}"
    else:
        theirs = {**EMBED, **HEAD}[part]
    return f"bert.{theirs}" if has_head and part != "head.classifier" else theirs

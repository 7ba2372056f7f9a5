"""Llama (arXiv 2302.13971, section 2.2): a pre-norm decoder with RMSNorm, SwiGLU, rotary positions and grouped heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from minipeft.errors import UserError
from minipeft.models.pretrained import Decoder, field
from minipeft.nn import TransformerConfig

# our name of a part -> Hugging Face's
PARTS = {"embed.word": "embed_tokens", "final_norm": "norm", "head": "lm_head", "head.classifier": "score"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "up_proj": "mlp.up_proj",
    "gate_proj": "mlp.gate_proj",
    "down_proj": "mlp.down_proj",
}


class Llama(Decoder):
    """A Llama, or another model of that shape."""

    family = "Llama"
    prefix = "model."
    architectures: ClassVar[Mapping[str, str]] = {
        "causal-lm": "LlamaForCausalLM",
        "classification": "LlamaForSequenceClassification",
        "features": "LlamaModel",
    }
    ignored = ("lm_head.", "score.")  # the tied head, written twice; another task's head

    def __init__(
        self, hf_config: Mapping[str, Any], task: str, labels: tuple[str, ...] = (), dropout: float | None = None
    ) -> None:
        tied = bool(hf_config.get("tie_word_embeddings", False))
        super().__init__({**hf_config, "tie_word_embeddings": tied}, llama_config(hf_config, dropout), task, labels)

    def hf_name(self, ours: str) -> tuple[str, bool]:
        """Linear weights are (in, out) here and (out, in) in the files."""
        part, _, leaf = ours.rpartition(".")
        linear = part.endswith("_proj") or part.startswith("head")
        if part.startswith("blocks."):
            _, n, name = part.split(".", 2)
            return f"layers.{n}.{BLOCK[name]}.{leaf}", linear and leaf == "weight"
        return f"{PARTS[part]}.{leaf}", linear

    def harmless(self, theirs: str) -> bool:
        """The rotary frequencies."""
        return theirs.endswith("rotary_emb.inv_freq")


def llama_config(hf: Mapping[str, Any], dropout: float | None = None) -> TransformerConfig:
    """The shape in a Llama's config.json; `dropout` replaces its one dropout probability, that of attention.

    Raises:
        UserError: a field is missing or no number, or the config asks for something that is not built here.
    """
    d_model, heads = field(hf, "hidden_size", int, "Llama"), field(hf, "num_attention_heads", int, "Llama")
    rope = hf.get("rope_parameters") or {"rope_theta": hf.get("rope_theta"), **(hf.get("rope_scaling") or {})}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(f"config.json: rotary positions of the type {rope}; only the default ones are built here.")
    if field(hf, "hidden_act", str, "Llama", "silu") != "silu":
        raise UserError(f"config.json: hidden_act {hf['hidden_act']!r}; a Llama here has 'silu'.")
    if heads and field(hf, "head_dim", int, "Llama", d_model // heads) * heads != d_model:
        raise UserError(f"config.json: {heads} heads of width {hf['head_dim']}; here they fill hidden_size={d_model}.")
    return TransformerConfig(
        vocab_size=field(hf, "vocab_size", int, "Llama"),
        d_model=d_model,
        layers=field(hf, "num_hidden_layers", int, "Llama"),
        heads=heads,
        kv_heads=field(hf, "num_key_value_heads", int, "Llama", heads),
        d_ff=field(hf, "intermediate_size", int, "Llama"),
        max_positions=field(hf, "max_position_embeddings", int, "Llama", 2048),
        rope_base=field(rope, "rope_theta", float, "Llama", 10000.0),
        norm="rms",
        norm_eps=field(hf, "rms_norm_eps", float, "Llama", 1e-6),
        norm_first=True,
        activation="swiglu",
        attention_bias=bool(hf.get("attention_bias", False)),
        mlp_bias=bool(hf.get("mlp_bias", False)),
        causal=True,
        attention_dropout=field(hf, "attention_dropout", float, "Llama", 0.0) if dropout is None else dropout,
    )


def half_split(weight: Any, heads: int) -> Any:
    """Undo another pairing of rotary positions, that of neighbours, in the weight of q or k.

    (out, in) with the rows of each head in the order 0, d_h/2, 1, d_h/2 + 1, ... -> in the order 0, 1, 2, ...
    """
    out, d_in = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, d_in).swapaxes(1, 2).reshape(out, d_in)

"""GPT-2 (Radford et al., 2019, section 2.3): a pre-norm decoder with learned positions, and its Hugging Face folders.

Its linear layers are stored as Conv1D, (in, out) as here, and q, k and v as one matrix, c_attn, (d, 3d).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from minipeft.errors import UserError
from minipeft.models.pretrained import Decoder, field
from minipeft.nn import TransformerConfig

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

# our name of a part -> Hugging Face's
PARTS = {"embed.word": "wte", "embed.position": "wpe", "final_norm": "ln_f", "head.classifier": "score"}
BLOCK = {
    "attn_norm": "ln_1",
    "q_proj": "attn.c_attn",
    "k_proj": "attn.c_attn",
    "v_proj": "attn.c_attn",
    "o_proj": "attn.c_proj",
    "mlp_norm": "ln_2",
    "up_proj": "mlp.c_fc",
    "down_proj": "mlp.c_proj",
}


class GPT2(Decoder):
    """A GPT-2; its word table is its output matrix too."""

    family = "GPT-2"
    prefix = "transformer."
    architectures: ClassVar[Mapping[str, str]] = {
        "causal-lm": "GPT2LMHeadModel",
        "classification": "GPT2ForSequenceClassification",
        "features": "GPT2Model",
    }
    ignored = ("lm_head.", "score.")  # the tied head, written twice; another task's head

    def __init__(
        self, hf_config: Mapping[str, Any], task: str, labels: tuple[str, ...] = (), dropout: float | None = None
    ) -> None:
        tied = bool(hf_config.get("tie_word_embeddings", True))
        super().__init__({**hf_config, "tie_word_embeddings": tied}, gpt2_config(hf_config, dropout), task, labels)

    def hf_name(self, ours: str) -> tuple[str, bool]:
        """Nothing but the classifier lies transposed."""
        part, _, leaf = ours.rpartition(".")
        if part.startswith("blocks."):
            _, n, name = part.split(".", 2)
            return f"h.{n}.{BLOCK[name]}.{leaf}", False
        return f"{PARTS[part]}.{leaf}", part == "head.classifier"

    def harmless(self, theirs: str) -> bool:
        """The causal mask."""
        return theirs.endswith((".attn.bias", ".attn.masked_bias"))


def gpt2_config(hf: Mapping[str, Any], dropout: float | None = None) -> TransformerConfig:
    """The shape in a GPT-2's config.json; `dropout` replaces all of its dropout probabilities.

    Raises:
        UserError: a field is missing or no number, or the config asks for something that is not built here.
    """
    for name, usual in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("reorder_and_upcast_attn", False),
        ("add_cross_attention", False),
        ("tie_word_embeddings", True),
    ):
        if hf.get(name, usual) != usual:
            raise UserError(f"config.json: {name} is {hf[name]}; only GPT-2's {usual} is built here.")
    activation = field(hf, "activation_function", str, "GPT-2", "gelu_new")
    if activation not in ACTIVATIONS:
        raise UserError(f"config.json: activation_function {activation!r}; known: {', '.join(ACTIVATIONS)}.")
    d_model = field(hf, "n_embd", int, "GPT-2")
    return TransformerConfig(
        vocab_size=field(hf, "vocab_size", int, "GPT-2"),
        d_model=d_model,
        layers=field(hf, "n_layer", int, "GPT-2"),
        heads=field(hf, "n_head", int, "GPT-2"),
        d_ff=field(hf, "n_inner", int, "GPT-2", 4 * d_model),
        max_positions=field(hf, "n_positions", int, "GPT-2", 1024),
        norm_eps=field(hf, "layer_norm_epsilon", float, "GPT-2", 1e-5),
        norm_first=True,
        activation=ACTIVATIONS[activation],
        causal=True,
        dropout=field(hf, "resid_pdrop", float, "GPT-2", 0.1) if dropout is None else dropout,
        attention_dropout=field(hf, "attn_pdrop", float, "GPT-2", 0.1) if dropout is None else dropout,
    )

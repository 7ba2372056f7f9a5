"""New decoders, to be pre-trained: a GPT-2 or a Llama of any size, with random weights."""

from __future__ import annotations

import math
from typing import Any

from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError, unknown
from minipeft.models.gpt2 import GPT2
from minipeft.models.llama import Llama
from minipeft.models.pretrained import Pretrained

STYLES = ("llama", "gpt2")


def fresh_model(
    style: str, tokenizer: Tokenizer, d_model: int, layers: int, heads: int, context: int, dropout: float = 0.0
) -> Pretrained:
    """A causal model with the weights of its first day, drawn from the random stream "init".

    All weights are of N(0, 0.02²) but those that write into the residual stream, o_proj and down_proj: of the 2L sums of
    L blocks each adds its variance, so their deviation is 0.02 / √(2L) (Radford et al., 2019, section 2.3).

    Args:
        style: "gpt2" (learned positions, LayerNorm, GELU, an inner width of 4d) or "llama" (rotary positions, RMSNorm,
            SwiGLU, 8d/3). The word table is the output matrix too.
        tokenizer: whose tokens it is to read and write.
        d_model: width of the residual stream.
        layers: blocks.
        heads: attention heads.
        context: the longest sequence, in tokens.
        dropout: probability, in training.

    Raises:
        UserError: an unknown style, or a shape that cannot be.
    """
    if style not in STYLES:
        raise unknown("style of model", style, STYLES)
    if min(d_model, layers, heads, context) < 1 or d_model % heads or (style == "llama" and d_model // heads % 2):
        raise UserError(
            f"A width of {d_model}, {layers} layers, {heads} heads and a context of {context}: all are 1 or more, the "
            "heads divide the width, and a Llama's have an even width."
        )
    end = tokenizer.eos_id
    config: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_id,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    model: Pretrained
    shape: dict[str, Any]
    if style == "gpt2":
        shape = {"n_embd": d_model, "n_layer": layers, "n_head": heads, "n_positions": context}
        drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        model = GPT2({"model_type": "gpt2", **config, **shape, **drop}, "causal-lm")
    else:
        if dropout:
            raise UserError(f"dropout={dropout}: a Llama has none outside attention; choose the style gpt2.")
        shape = {
            "hidden_size": d_model,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "intermediate_size": 16 * math.ceil(d_model / 6),  # 8d/3, a multiple of 16
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
        }
        model = Llama({"model_type": "llama", **config, **shape}, "causal-lm")
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data *= 1 / math.sqrt(2 * layers)
    model.tokenizer = tokenizer
    return model

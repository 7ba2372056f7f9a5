"""Architectures by name, for counting alone: the shapes of their published config.json files, without any weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minipeft.autograd import Tensor
from minipeft.errors import UserError, unknown
from minipeft.models import Bert
from minipeft.models.hub import FAMILIES
from minipeft.models.pretrained import Pretrained, field
from minipeft.nn import Module
from minipeft.nn.layers import LayerNorm, constant, normal

CLASSES = ("0", "1")  # of a classifier's head, unless other labels are given
NO_STEP = "DeBERTa's attention is not built here: its parameters are counted, its operations and activations are not."


def _bert(d: int, layers: int, heads: int, **other: Any) -> dict[str, Any]:
    """BERT (arXiv 1810.04805, section 3) and its kin."""
    shape = {"hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 4 * d}
    rest = {"vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
    return {"model_type": "bert", **shape, **rest, "hidden_act": "gelu", **other}


ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
DEBERTA = {"model_type": "deberta-v2", "vocab_size": 128100, "type_vocab_size": 0, "position_buckets": 256}


def _gpt(d: int, layers: int, heads: int, positions: int = 1024) -> dict[str, Any]:
    """GPT-2, and GPT-3 (arXiv 2005.14165, table 2.1), whose shapes are GPT-2's (section 2.1 there)."""
    shape = {"n_embd": d, "n_layer": layers, "n_head": heads, "n_positions": positions}
    return {"model_type": "gpt2", "vocab_size": 50257, **shape}


def _llama(d: int, layers: int, heads: int, kv_heads: int, d_ff: int) -> dict[str, Any]:
    """Llama 2 (arXiv 2307.09288)."""
    shape = {"hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": d_ff}
    rest = {"num_key_value_heads": kv_heads, "vocab_size": 32000, "max_position_embeddings": 4096}
    return {"model_type": "llama", **shape, **rest, "rms_norm_eps": 1e-5}


PRESETS: dict[str, dict[str, Any]] = {
    "minilm": _bert(384, 6, 12),
    "bert-base": _bert(768, 12, 12),
    "bert-large": _bert(1024, 24, 16),
    "roberta-base": _bert(768, 12, 12, **ROBERTA),
    "roberta-large": _bert(1024, 24, 16, **ROBERTA),
    "deberta-xxl": _bert(1536, 48, 24, **DEBERTA, conv_kernel_size=3, share_att_key=True, norm_rel_ebd="layer_norm"),
    "gpt2": _gpt(768, 12, 12),
    "gpt2-medium": _gpt(1024, 24, 16),
    "gpt2-large": _gpt(1280, 36, 20),
    "gpt3-175b": _gpt(12288, 96, 96, 2048),
    "smollm2": _llama(576, 30, 9, 3, 1536)
    | {"vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 1e5, "tie_word_embeddings": True},
    "llama-7b": _llama(4096, 32, 32, 32, 11008),
    "llama-70b": _llama(8192, 80, 64, 8, 28672),
}


class Deberta(Bert):
    """DeBERTa v2 (arXiv 2006.03654), for its parameters alone: its disentangled attention is not built here.

    Positions are relative, a normed table of 2 · buckets rows that all blocks share, read by the blocks' own q_proj and
    k_proj; after the first block comes a convolution over three tokens.
    """

    family = "DeBERTa"

    def __init__(self, hf_config: Mapping[str, Any], task: str, labels: tuple[str, ...], dropout: float | None) -> None:
        if not hf_config.get("share_att_key") or hf_config.get("norm_rel_ebd") != "layer_norm":
            raise UserError("config.json: of DeBERTa, only the shapes of v2 with share_att_key are known here.")
        super().__init__(hf_config, task, labels, dropout)
        d = self.config.d_model
        self.embed.position = None
        self.relative = Module()
        self.relative.weight = normal((2 * field(hf_config, "position_buckets", int, "DeBERTa"), d), 0.02, None)  # type: ignore[attr-defined]
        self.relative.norm = LayerNorm(d)  # type: ignore[attr-defined]
        kernel = field(hf_config, "conv_kernel_size", int, "DeBERTa", 0)
        if kernel:
            self.convolution = Module()
            self.convolution.weight = normal((d, d, kernel), 0.02, None)  # type: ignore[attr-defined]
            self.convolution.bias = constant((d,), 0.0)  # type: ignore[attr-defined]
            self.convolution.norm = LayerNorm(d)  # type: ignore[attr-defined]

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """Not built."""
        raise UserError(NO_STEP)

    def hf_name(self, ours: str) -> tuple[str, bool]:
        """Its own name here: no file is written, and in DeBERTa's no two parameters lie side by side."""
        return ours, False


KINDS: dict[str, Any] = {**FAMILIES, "roberta": Bert, "deberta-v2": Deberta}


def read_architecture(name_or_path: str) -> dict[str, Any]:
    """The config of a preset, of a config.json, or of a folder that has one.

    Raises:
        UserError: there is neither, or the file is no config of a family that is known here.
    """
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = Path(name_or_path)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise unknown("architecture", name_or_path, PRESETS, "Or give a config.json, or a folder that has one.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(config, dict) or config.get("model_type") not in KINDS:
        given = config.get("model_type") if isinstance(config, dict) else config
        raise unknown(f"model_type in {path}:", given, KINDS)
    return config


def build(hf_config: Mapping[str, Any], task: str | None = None, labels: tuple[str, ...] = CLASSES) -> Pretrained:
    """A model of that config, for `task`; without one, a classifier where the family reads both ways, else a decoder.

    Inside `shapes_only()` it takes no memory. Raises UserError for a config or a task that does not fit.
    """
    kind = KINDS[str(hf_config.get("model_type"))]
    task = task or ("causal-lm" if "causal-lm" in kind.architectures else "classification")
    if task not in kind.architectures:
        raise unknown(f"task of a {kind.family}", task, kind.architectures)
    model: Pretrained = kind(hf_config, task, labels, 0.0)
    return model


def computes(hf_config: Mapping[str, Any]) -> bool:
    """Whether a step of that architecture can be counted, not its parameters alone."""
    return KINDS[str(hf_config.get("model_type"))] is not Deberta

"""A tiny model of each family, and one config of every method for it: what is true of all methods is tested on these."""

from __future__ import annotations

from typing import Any

import minipeft as mp
from minipeft.models import GPT2, Bert, Llama
from minipeft.models.pretrained import Pretrained
from minipeft.peft import (
    AdapterConfig,
    BitFitConfig,
    DoraConfig,
    FullConfig,
    HeadConfig,
    IA3Config,
    IntrinsicConfig,
    LoraConfig,
    LoraPlusConfig,
    PeftConfig,
    PissaConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TopKConfig,
    VeraConfig,
)

D, LAYERS, VOCAB, LABELS = 16, 3, 40, ("a", "b", "c")
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {
        "model_type": "bert",
        "vocab_size": VOCAB,
        "hidden_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "hidden_act": "gelu",
        "max_position_embeddings": 12,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": D,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": 12,
        "pad_token_id": 0,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 12,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 0,
    },
}
KINDS: dict[str, Any] = {"bert": Bert, "gpt2": GPT2, "llama": Llama}
METHODS: dict[str, PeftConfig] = {
    "full": FullConfig(),
    "head": HeadConfig(),
    "topk": TopKConfig(1),
    "topk-embeddings": TopKConfig(2, train_embeddings=True, train_final_norm=False),
    "adapter": AdapterConfig(4),
    "adapter-parallel": AdapterConfig(4, placement="parallel", train_norms=True),
    "lora": LoraConfig(r=2, lora_alpha=5),
    "lora-everywhere": LoraConfig(r=2, target_modules="all-linear", use_rslora=True),
    "lora-bias": LoraConfig(r=3, target_modules=("blocks.1.q_proj", "down_proj"), bias="all"),
    "intrinsic": IntrinsicConfig(d=50),
    "said": IntrinsicConfig(d=90, projection="sparse", structure_aware=True),
    "bitfit": BitFitConfig(),
    "ia3": IA3Config(),
    "prompt": PromptTuningConfig(3),
    "prefix": PrefixTuningConfig(3),
    "dora": DoraConfig(r=2, lora_alpha=5),
    "vera": VeraConfig(r=6, target_modules=("q_proj", "down_proj")),
    "loraplus": LoraPlusConfig(r=2, lora_alpha=5),
    "pissa": PissaConfig(r=2, lora_alpha=5),
}


def fits(family: str, method: str) -> bool:
    """Whether a family has what a method trains: a Llama has no biases."""
    return (family, method) != ("llama", "bitfit")


def build(family: str, task: str = "classification", seed: int = 0) -> Pretrained:
    """A random model, every parameter far from its starting value."""
    mp.seed(seed)
    model: Pretrained = KINDS[family](CONFIGS[family], task, LABELS, 0.0)
    rng = mp.backend.random.generator("families")
    for parameter in model.parameters():
        noise = 0.2 * rng.standard_normal(parameter.shape)
        parameter.data += mp.backend.active().asarray(noise, dtype="float32")
    return model


def pairs(classifiers_alone: bool = False) -> list[tuple[str, str]]:
    """Every family with each of its tasks that has logits."""
    tasks = [("bert", "classification"), ("gpt2", "classification"), ("llama", "classification")]
    return tasks if classifiers_alone else [*tasks, ("gpt2", "causal-lm"), ("llama", "causal-lm")]

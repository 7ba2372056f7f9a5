"""Tiny causal models that know a few words, with a tokenizer trained on the spot: no network, milliseconds."""

from __future__ import annotations

from typing import Any

import numpy as np

import minipeft as mp
from minipeft.backend import active
from minipeft.data.bpe import train_bpe
from minipeft.models import GPT2, Llama, Pretrained

TEXTS = [
    "the cat sat on the mat and the dog sat on the log",
    "a film was good, a book was bad: yes or no? the day is fine",
    "naïve café, 12 € and a 🙂 for 345 people",
]
CONTEXT = 48
TOKENIZER = train_bpe(TEXTS, 300)
GPT2_SHAPE: dict[str, Any] = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
LLAMA_SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}


def tiny_decoder(family: str = "llama", seed: int = 0, scale: float = 0.3) -> Pretrained:
    """A model of two blocks with random numbers everywhere: what it writes is nonsense, and differs with the context."""
    mp.seed(seed)
    kind, shape = (GPT2, GPT2_SHAPE) if family == "gpt2" else (Llama, LLAMA_SHAPE)
    model = kind({**shape, "vocab_size": TOKENIZER.vocab_size}, "causal-lm", dropout=0.0)
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        p.data[...] = active().asarray((centre + scale * rng.standard_normal(p.shape)).astype("float32"))
    model.tokenizer = TOKENIZER
    return model.eval()

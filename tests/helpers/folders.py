"""A tiny BERT folder and a tiny task file on the disk, for tests of whole commands: no network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import minipeft as mp
from minipeft.models import Bert

GOOD, BAD = ["good", "fine", "great", "nice"], ["bad", "poor", "awful", "sad"]
OTHER = ["film", "book", "day", "meal", "the", "a", "was", "is"]
WORDS = GOOD + BAD + OTHER
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 5 + len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def write_model(folder: Path) -> Path:
    """A random BERT of 16 dimensions and 2 blocks that knows WORDS."""
    mp.seed(7)
    model = Bert(CONFIG, "features", (), dropout=None)
    for parameter in model.parameters():
        parameter.data *= 5
    model.save_pretrained(folder)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    return folder


def write_task(path: Path, rows: int = 400) -> Path:
    """Sentences with a good or a bad word in them, as a .jsonl."""
    rng = np.random.default_rng(3)
    with path.open("w") as file:
        for _ in range(rows):
            label = int(rng.integers(2))
            words = rng.choice(OTHER, size=int(rng.integers(3, 9))).tolist()
            words[int(rng.integers(len(words)))] = str(rng.choice([GOOD, BAD][label]))
            file.write(json.dumps({"text": " ".join(words), "label": ["good", "bad"][label]}) + "\n")
    return path

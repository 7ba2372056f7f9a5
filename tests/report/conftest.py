"""A made-up results.csv with the columns, the sizes and the crowding of a real run."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from minipeft.report.summary import COLUMNS

HEAD = 148_610
# method, setting, trainable parameters, accuracy, milliseconds a step
CELLS = [
    ("head", "", 770, 0.667, 90.0),
    ("topk", "1", 1_920_000, 0.756, 160.0),
    ("topk", "2", 3_700_000, 0.825, 200.0),
    ("lora", "1", 158_000, 0.79, 230.0),
    ("lora", "8", 222_000, 0.845, 232.0),
    ("adapter", "16", 301_000, 0.85, 240.0),
    ("intrinsic", "1000", 149_610, 0.76, 700.0),
    ("full", "", 22_700_000, 0.867, 400.0),
]
BLOCKS = [f"blocks.{i}" for i in range(6)]
LAYERS = {
    "head": ["head"],
    "topk": [*BLOCKS[4:], "head"],
    "lora": [*BLOCKS, "head"],
    "adapter": [*BLOCKS, "head"],
    "intrinsic": ["head", "method"],
    "full": ["embed", *BLOCKS, "head"],
}
Writer = Callable[..., Path]


def made_up_row(cell: tuple[str, str, int, float, float], seed: int) -> dict[str, Any]:
    method, setting, trainable, accuracy, step_ms = cell
    noise = random.Random(f"{method}:{setting}:{seed}")
    head = min(trainable, HEAD)
    losses = [(step, 0.2 + 0.5 * math.exp(-step * accuracy / 60) + noise.gauss(0, 0.01)) for step in range(5, 190, 5)]
    megabytes = trainable * 4 / 1e6
    return {
        "method": method,
        "setting": setting,
        "seed": seed,
        "lr": 1e-3,
        "trainable_params": trainable,
        "trainable_percent": 100 * trainable / 22_700_000,
        "method_params": trainable - head,
        "head_params": head,
        "total_params": 22_700_000,
        "accuracy": accuracy + 0.01 * noise.random() * seed,
        "test_loss": 1 - accuracy,
        "perplexity": "",
        "bits_per_byte": "",
        "untrained": "",
        "train_seconds": step_ms * 0.19,
        "step_ms": step_ms,
        "forward_gflop": 33.2,
        "backward_gflop": step_ms / 6,
        "activation_mb": step_ms,
        "peak_mb": 500 + megabytes,
        "gradient_mb": megabytes,
        "optimizer_mb": 2 * megabytes,
        "cache_mb": 0,
        "saved_mb": megabytes,
        "gradient_norms": ";".join(f"{layer}:{0.1 * trainable**0.1:.4f}" for layer in LAYERS.get(method, ["head"])),
        "loss_curve": ";".join(f"{step}:{loss:.4f}" for step, loss in losses),
    }


@pytest.fixture
def write_results(tmp_path: Path) -> Writer:
    """A function that writes tmp_path/results.csv, some cells by some seeds; `changes` go into every row."""

    def write(cells: Iterable[tuple[str, str, int, float, float]] = CELLS, seeds: int = 1, **changes: Any) -> Path:
        path = tmp_path / "results.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(made_up_row(cell, seed) | changes for cell in cells for seed in range(seeds))
        return path

    return write

"""A run folder: what was asked (`config.json`), and what has been found so far (`results.jsonl`, `results.csv`).

`predictions.jsonl` has, for each cell, the class that was predicted for every test row, and the true one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minipeft.errors import UserError
from minipeft.files import append_line, atomic_write

COLUMNS = (
    "method",
    "setting",
    "seed",
    "lr",
    "trainable_params",
    "trainable_percent",
    "method_params",
    "head_params",
    "total_params",
    "accuracy",
    "test_loss",
    "perplexity",
    "bits_per_byte",
    "untrained",
    "train_seconds",
    "step_ms",
    "forward_gflop",
    "backward_gflop",
    "activation_mb",
    "peak_mb",
    "gradient_mb",
    "optimizer_mb",
    "cache_mb",
    "saved_mb",
    "loss_curve",
    "gradient_norms",
)


class RunFolder:
    """A folder that a run writes, and a rerun goes on with.

    To make one only looks, so that whatever else may be wrong can be found before `begin` makes the folder.

    Args:
        path: the folder.
        identity: what must be the same for results to stand side by side (JSON-able).
        request: what may differ between runs that share the folder, e.g. the list of methods.
        columns: of results.csv.
        key: the columns that name a cell.

    Raises:
        UserError: the folder holds a run with another identity, or something else than a run.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        request: dict[str, Any],
        columns: tuple[str, ...] = COLUMNS,
        key: tuple[str, ...] = ("method", "setting", "seed"),
    ) -> None:
        self.path, self.columns, self.key = path, columns, key
        self.log = path / "results.jsonl"
        config = path / "config.json"
        if config.exists():
            before = _read_config(config)
            changed = [key for key in identity if before.get(key) != identity[key]]
            if changed:
                old = ", ".join(f"{key}={before.get(key)}" for key in changed)
                new = ", ".join(f"{key}={identity[key]}" for key in changed)
                raise UserError(
                    f"The folder {path} holds a run with {old}; you ask for {new}. "
                    "Nothing was changed: choose another folder with --out, or delete this one."
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists and is not a run folder; choose another one with --out.")
        self._config = {**identity, **request}

    def begin(self) -> RunFolder:
        """Make the folder if it is missing, and write what was asked; returns itself."""
        atomic_write(self.path / "config.json", json.dumps(self._config, indent=2) + "\n")
        return self

    def rows(self) -> list[dict[str, Any]]:
        """The finished cells. A last line that a kill cut short is not one: its cell runs again."""
        if not self.log.exists():
            return []
        rows = []
        for number, line in enumerate(self.log.read_bytes().split(b"\n"), start=1):
            try:
                row = json.loads(line) if line.strip() else None
            except ValueError:
                continue  # cut short
            if row is not None and (not isinstance(row, dict) or row.keys() != set(self.columns)):
                raise UserError(
                    f"{self.log}, line {number}: not a row of this version's results. Choose another --out."
                )
            if row is not None:
                rows.append(row)
        return rows

    def add(self, row: dict[str, Any], predictions: list[int] | None = None, labels: list[int] | None = None) -> None:
        """Append a finished cell and wait until it is on the disk. Its predictions go first: a row never lacks them."""
        if predictions is not None:
            cell = {column: row[column] for column in self.key}
            line = json.dumps({**cell, "predictions": predictions, "labels": labels}, separators=(",", ":"))
            append_line(self.path / "predictions.jsonl", line)
        append_line(self.log, json.dumps({column: row[column] for column in self.columns}))

    def write_csv(self, order: Sequence[tuple[Any, ...]]) -> Path:
        """Write results.csv: the cells of `order`, named by their keys, first, then the others."""
        rank = {cell: i for i, cell in enumerate(order)}
        rows = sorted(self.rows(), key=lambda row: rank.get(tuple(row[column] for column in self.key), len(rank)))
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write(self.path / "results.csv", text.getvalue())
        return self.path / "results.csv"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); choose another folder with --out, or delete this one.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a run's config; choose another folder with --out.")
    return config

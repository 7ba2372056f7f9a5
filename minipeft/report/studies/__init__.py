"""From the folder of a study to its figures and its written result: nothing in them is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minipeft.errors import UserError
from minipeft.experiments.studies import STUDIES
from minipeft.experiments.studies.frame import CELLS
from minipeft.files import atomic_write, read_lines
from minipeft.report.studies import adapters, d90, data_size, forgetting, ranks, rates, subspaces, topk
from minipeft.report.studies.writing import Result, Rows, seeds_text
from minipeft.report.style import save_figure, styled

WRITERS: Mapping[str, Callable[[Rows, Mapping[str, Any]], Result]] = {
    "d90": d90.result,
    "subspaces": subspaces.result,
    "forgetting": forgetting.result,
    "topk": topk.result,
    "adapters": adapters.result,
    "rates": rates.result,
    "ranks": ranks.result,
    "data-size": data_size.result,
}


def write_study(folder: Path) -> Path:
    """Draw FOLDER/figures and write FOLDER/result.md from config.json and cells.jsonl; returns the latter's path.

    Raises:
        UserError: the folder holds no study, or none of its cells is finished.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        study = STUDIES[config["study"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} holds no study. `minipeft study NAME --out {folder}` makes one.") from None
    rows = read_lines(folder / CELLS)
    finished = [row for row in rows if not row.get("trial")]
    if not finished:
        raise UserError(f"No cell of {folder} is finished yet.")
    with styled():
        result = WRITERS[study.name](finished, config)
        for name, figure in result.figures.items():
            save_figure(figure, folder / "figures" / name)
    path = folder / "result.md"
    atomic_write(path, _text(study.question, rows, config, result))
    return path


def _text(question: str, rows: Rows, config: Mapping[str, Any], result: Result) -> str:
    seeds = seeds_text(rows)
    spread = "± is the sample standard deviation over seeds" if seeds != "1 seed" else "one seed, so no spread is known"
    size = f"{config['train_size']:,} training rows, {config['epochs']} epochs, batches of {config['batch_size']}"
    parts = [
        f"# {question}",
        f"{config['model']} on {config['task']}, {config['test_size']:,} test rows, {size} where nothing else is said; "
        f"{len(rows)} cell{'s' * (len(rows) != 1)}, {seeds}; {spread}.",
        "\n".join(f"- {sentence}" for sentence in result.sentences),
        *(f"![{name}](figures/{name}.png)" for name in result.figures),
        *result.tables,
        "Written by `minipeft study` from cells.jsonl.",
    ]
    return "\n\n".join(parts) + "\n"

"""From the folder of a study to its figures and its written result: nothing in them is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minipeft.errors import UserError
from minipeft.experiments.studies import STUDIES, Study
from minipeft.experiments.studies.frame import CELLS
from minipeft.files import atomic_write, read_lines
from minipeft.report.studies import adapters, d90, data_size, forgetting, growth, ranks, rates, subspaces, topk
from minipeft.report.studies.writing import Result, Rows, seeds_text
from minipeft.report.style import save_figure, styled

WRITERS: Mapping[str, Callable[[Rows, Mapping[str, Any]], Result]] = {
    "d90": d90.result,
    "growth": growth.result,
    "subspaces": subspaces.result,
    "forgetting": forgetting.result,
    "topk": topk.result,
    "adapters": adapters.result,
    "rates": rates.result,
    "ranks": ranks.result,
    "data-size": data_size.result,
}
SPREAD = (
    "± is the sample standard deviation over seeds; the rows that judge are the same for all, so that their own sampling "
    "is not in it. Differences are taken seed by seed; beyond the error means outside the 95 % interval of Student's t."
)


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
    trained = [row for row in finished if "accuracy" in row]
    with styled():
        if trained and all(row["accuracy"] is None for row in trained):
            result = Result(["Every training that is finished has diverged: lower the learning rates."])
        else:
            result = WRITERS[study.name](finished, config)
        for name, figure in result.figures.items():
            save_figure(figure, folder / "figures" / name)
    path = folder / "result.md"
    atomic_write(path, _text(study, rows, config, result))
    return path


def _text(study: Study, rows: Rows, config: Mapping[str, Any], result: Result) -> str:
    size = f"{config['train_size']:,} training rows, {config['epochs']} epochs, batches of {config['batch_size']}"
    judged = config["test_size"] if study.judged == "test" else config["validation_size"]
    notes = [SPREAD if seeds_text(rows) != "1 seed" else "One seed, so that no spread is known.", *result.notes]
    if any(row.get("trial") for row in rows):
        notes.append(
            f"Learning rates were chosen on {config['validation_size']:,} validation rows with seed 0, each from the same "
            "number of trials; the test rows had no part in it."
        )
    parts = [
        f"# {study.question}",
        f"Model: {result.of or config['model']}. Task: {config['task']}, {size} where nothing else is said; judged on "
        f"{judged:,} {study.judged} rows. {len(rows)} cell{'s' * (len(rows) != 1)}, {seeds_text(rows)}.",
        "\n".join(f"- {sentence}" for sentence in result.sentences),
        *(f"![{name}](figures/{name}.png)" for name in result.figures),
        *result.tables,
        "How to read it: " + " ".join(notes),
        "Written by `minipeft study` from cells.jsonl.",
    ]
    return "\n\n".join(parts) + "\n"

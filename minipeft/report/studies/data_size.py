"""The result of `minipeft study data-size`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.report.studies.drawing import curve, legend, log_ticks
from minipeft.report.studies.writing import (
    Result,
    Rows,
    bars_text,
    best_text,
    group,
    markdown,
    name,
    paired,
    title,
    verdict,
)
from minipeft.report.style import blank_figure, family_looks


def result(rows: Rows, config: Mapping[str, Any]) -> Result:
    """Accuracy by the number of training rows."""
    key = lambda row: (name(row), row["rows"])
    accuracy = group(rows, key)
    methods, sizes = list(dict.fromkeys(m for m, _ in accuracy)), sorted({size for _, size in accuracy})
    sentences = []
    for method in methods:
        if method == "full":
            continue
        gaps = [(size, gap) for size in sizes if (gap := paired(rows, key, (method, size), ("full", size))) is not None]
        if gaps:
            texts = [f"{gap.points} on {size:,} rows ({verdict(gap)})" for size, gap in gaps]
            sentences.append(f"{title(method)} minus full fine-tuning, in points: {'; '.join(texts)}.")
    for size in (sizes[0], sizes[-1]):
        among = [(m, size) for m in methods]
        sentences.append(f"On {size:,} rows, {best_text(rows, key, among, lambda choice: title(choice[0]))}.")
    figure = blank_figure(9, 5.2, "Accuracy against the rows to learn from", f"Test set; {bars_text(rows)}")
    axes = figure.add_subplot()
    looks = family_looks(m.split(":")[0] for m in methods)
    for m in methods:
        points = {float(size): accuracy[m, size] for size in sizes if (m, size) in accuracy}
        curve(axes, points, looks[m.split(":")[0]], title(m))
    log_ticks(axes, sizes, [f"{size:,}" for size in sizes])
    axes.set_xlabel("Training rows (log scale)")
    axes.set_ylabel("Test accuracy (%)")
    legend(axes)
    heads = ["method", *(f"{size:,} rows" for size in sizes)]
    table = [[title(m), *(accuracy[m, s].percent if (m, s) in accuracy else "" for s in sizes)] for m in methods]
    rates = group(rows, name, "lr")
    length = {
        row["rows"]: f"{row['rows']:,} rows {row['steps']} steps ({row['epochs']} epoch{'s' * (row['epochs'] > 1)})"
        for row in rows
    }
    notes = [
        f"How long each size was trained: {', '.join(length[size] for size in sizes)}.",
        f"Learning rates: {', '.join(f'{title(m)} {rates[m].mean:g}' for m in methods)}, chosen on "
        f"{config['train_size']:,} rows and used for all sizes.",
    ]
    return Result(sentences, {"data-size": figure}, [markdown(heads, table)], notes)

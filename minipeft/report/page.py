"""report.html: a run on one page that needs no network and no other file.

Plotly's script is inside the page, taken from the package `plotly`, so that hovering and zooming work on a train; what the
page does with it is in page.js. Text, table and settings can be read without a script.
"""

from __future__ import annotations

import base64
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from minipeft.errors import UserError
from minipeft.files import atomic_write
from minipeft.report.fairness_page import fairness_sections
from minipeft.report.page_data import run_data
from minipeft.report.plots import draw_all, figures_of
from minipeft.report.summary import Summary, read_results, summarise

# The columns of the table: heading, decimals, what it means.
COLUMNS: Mapping[str, tuple[str, int, str]] = {
    "lr": ("Learning rate", 0, "The peak of its schedule."),
    "trainable_params": (
        "Trainable params",
        0,
        "Parameters that training changes: the method's own and the task head's.",
    ),
    "trainable_percent": ("Trainable %", 3, "Trainable parameters in percent of all parameters."),
    "method_params": ("Method params", 0, "Trainable parameters that belong to the method, without the task head."),
    "head_params": ("Head params", 0, "Trainable parameters of the task head."),
    "total_params": ("Total params", 0, "All parameters, frozen ones included."),
    "accuracy": ("Accuracy %", 1, "Share of the test set that is classified, or answered word for word, correctly."),
    "test_loss": ("Test loss", 3, "Mean cross-entropy on the test set, in nats; lower is better."),
    "perplexity": ("Perplexity", 2, "Among so many tokens the model seems to choose each next one: exp(test loss)."),
    "bits_per_byte": ("Bits/byte", 3, "-log₂ likelihood of the held-out text over its UTF-8 bytes; lower is better."),
    "untrained": ("Untrained", 3, "Bits per byte (or the share of right answers) of the model before any training."),
    "train_seconds": ("Training s", 1, "Wall-clock time of the whole training."),
    "step_ms": ("Step ms", 1, "Wall-clock time of one training step: forward, backward and update."),
    "forward_gflop": ("Forward GFLOP", 2, "Floating-point work of one forward pass, in 10⁹ operations."),
    "backward_gflop": ("Backward GFLOP", 2, "Floating-point work of one backward pass, in 10⁹ operations."),
    "activation_mb": ("Activations MB", 1, "What the forward pass keeps for the backward pass."),
    "gradient_mb": ("Gradients MB", 2, "One number for each trainable parameter."),
    "optimizer_mb": ("Optimizer MB", 2, "The optimizer's state; AdamW keeps two numbers for each trainable parameter."),
    "cache_mb": ("Cache MB", 1, "Activations below the cut of top-K, computed once and kept for all epochs."),
    "peak_mb": ("Peak MB", 1, "The most memory in use at one time during training."),
    "saved_mb": ("Saved MB", 2, "Size on the disk of what has to be kept for this task beside the base model."),
}
IMAGES: Mapping[str, str] = {
    "time_and_memory": "Time of one training step, and the memory that training adds to the weights.",
    "flops": "Work of one training step, forward and backward, in GFLOP.",
}
PLOTS: Mapping[str, str] = {
    "score": "The score on the test rows against what a method costs. Point at a marker for its settings; click on a name "
    "in the legend to hide it; drag to zoom, double-click to go back. Error bars are one standard deviation over seeds.",
    "losses": "Training loss against step; the mean over seeds. Point at a curve to see which it is.",
    "gradients": "Length of the gradient in each layer at the first step, over the parameters that are trained there. "
    "Blank: nothing is trained there, and below the lowest trained layer the gradient does not come. "
    "Row &quot;method&quot;: parameters that belong to no layer.",
}
ONE_KIND = ("accuracy", "perplexity", "bits_per_byte", "untrained")  # what only some kinds of tasks have
OPTIONS = (  # of the command, all that a result depends on
    *("model", "task", "methods", "seeds", "train_size", "test_size", "epochs", "batch_size", "max_length", "lr"),
    *("backend", "workers"),
)


def write_page(run_folder: str | os.PathLike[str]) -> Path:
    """Write report.html into a run folder from its config.json and results.csv; returns its path.

    Figures that are missing, or older than results.csv, are drawn first.

    Raises:
        UserError: config.json or results.csv is missing or malformed, or the folder cannot be written to.
    """
    run_folder = Path(run_folder)
    config = _read_config(run_folder / "config.json")
    results = run_folder / "results.csv"
    cells = summarise(read_results(results))
    figures = {name: run_folder / "figures" / f"{name}.svg" for name in figures_of(cells)}
    drawn = results.stat().st_mtime_ns
    if not all(path.exists() and path.stat().st_mtime_ns >= drawn for path in figures.values()):
        draw_all(results, run_folder / "figures")
    images = [_figure(figures[name], caption, cells) for name, caption in IMAGES.items()]
    path = run_folder / "report.html"
    atomic_write(path, _page(config, cells, images, fairness_sections(run_folder, cells)))
    return path


def _page(config: Mapping[str, Any], cells: Sequence[Summary], images: Sequence[str], fairness: str) -> str:
    """The whole document. What comes from files has been escaped by the function that made each part."""
    model, task = escape(_text(config.get("model", "a model"))), escape(_text(config.get("task", "a task")))
    data, seeds = run_data(cells), max(cell.n for cell in cells)
    spread = "mean ± sample standard deviation over seeds" if seeds > 1 else "one seed, so no spread is known"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{model} on {task}: methods of fine-tuning compared</title>
<style>
{_own("page.css")}</style>
</head>
<body>
<header>
<h1>{model} on {task}: methods of fine-tuning compared</h1>
<p class="soft">{len(cells)} {"method" if len(cells) == 1 else "methods and settings"}; {spread}.</p>
</header>
<main>
<noscript><p>The plots need JavaScript. As pictures, they are in the folder figures beside this page.</p></noscript>
<p class="choice"><label for="axis">{escape(data["score"]["name"])} against </label><select id="axis"></select></p>
{_plot("score")}
<section aria-labelledby="results">
<h2 id="results">Results</h2>
{_results(cells)}
</section>
{fairness}
<section aria-labelledby="figures">
<h2 id="figures">Training</h2>
{_plot("losses")}
</section>
<section aria-labelledby="layers">
<h2 id="layers">Where the gradient goes</h2>
{_plot("gradients")}
</section>
<section aria-labelledby="costs">
<h2 id="costs">Time and memory</h2>
{"".join(images)}
</section>
<section aria-labelledby="reproduce">
<h2 id="reproduce">How to reproduce</h2>
<pre><code>{escape(_command(config))}</code></pre>
{_pairs("Setting", "Value", {name: _text(value) for name, value in config.items()})}
</section>
<section aria-labelledby="columns">
<h2 id="columns">What the columns mean</h2>
{_pairs("Column", "Meaning", {heading: meaning for heading, _, meaning in COLUMNS.values()})}
</section>
</main>
<script type="application/json" id="run">{_json(data)}</script>
<script>{_plotly()}</script>
<script>
{_own("page.js")}</script>
</body>
</html>
"""


def _results(cells: Sequence[Summary]) -> str:
    """The table of results, a row a cell."""
    shown = [name for name in COLUMNS if name not in ONE_KIND or any(not math.isnan(cell.mean[name]) for cell in cells)]
    headings = ["Method", "Seeds", *(COLUMNS[name][0] for name in shown)]
    heads = "".join(f'<th scope="col"><button type="button">{heading}</button></th>' for heading in headings)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(cell.label)}</th><td data-value="{cell.n}">{cell.n}</td>'
        + "".join(f'<td data-value="{cell.mean[name]}">{_value(cell, name)}</td>' for name in shown)
        + "</tr>"
        for cell in cells
    )
    return f"""<div class="wide" tabindex="0" role="region" aria-labelledby="results">
<table class="numbers">
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>"""


def _value(cell: Summary, name: str) -> str:
    """The mean of a measure and, where seeds differ, its standard deviation."""
    if name == "lr":
        return f"{cell.mean[name]:.2g}"
    decimals = COLUMNS[name][1]
    factor = 100 if name == "accuracy" else 1
    mean, sd = factor * cell.mean[name], factor * cell.sd[name]
    spread = f' <span class="sd">± {sd:,.{decimals}f}</span>' if sd > 1e-9 * mean else ""  # not for rounding
    return (f"{mean:,.{decimals}f}" if math.isfinite(mean) else "diverged") + spread


def _figure(path: Path, caption: str, cells: Sequence[Summary]) -> str:
    """An SVG as an image inside the page: the ids of one drawing cannot meet those of another."""
    data = base64.b64encode(path.read_bytes()).decode()
    alt = f"{caption} Shown: {', '.join(cell.label for cell in cells)}."
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(alt)}">'
    return f"<figure>\n{image}\n<figcaption>{escape(caption)}</figcaption>\n</figure>\n"


def _plot(name: str) -> str:
    """The place of a plot that page.js draws."""
    return f'<figure>\n<div class="plot" id="{name}"></div>\n<figcaption>{PLOTS[name]}</figcaption>\n</figure>\n'


def _json(data: object) -> str:
    """JSON that can stand in a script element: no text in it ends the element."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _own(name: str) -> str:
    return (files("minipeft.report") / name).read_text(encoding="utf-8")


def _plotly() -> str:
    """Plotly's script (MIT licence), 5 MB: it comes with the package, so nothing is fetched, now or later."""
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _pairs(left: str, right: str, pairs: Mapping[str, str]) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(a)}</th><td>{escape(b)}</td></tr>\n' for a, b in pairs.items())
    heads = f'<tr><th scope="col">{left}</th><th scope="col">{right}</th></tr>'
    return f'<div class="wide"><table>\n<thead>{heads}</thead>\n<tbody>\n{rows}</tbody>\n</table></div>'


def _command(config: Mapping[str, Any]) -> str:
    """The command that makes this run again, from those of its options that config.json holds."""
    words = ["minipeft", "compare"]
    for name in OPTIONS:
        if config.get(name) is not None:
            words += ["--" + name.replace("_", "-"), _option(config[name])]
    words += ["--tune"] * bool(config.get("tune"))
    return shlex.join(words)


def _option(value: Any) -> str:
    """A value of config.json as the command line writes it: there a learning rate is of a method, here of its family."""
    if isinstance(value, dict):
        families = {str(method).split(":")[0]: rate for method, rate in value.items()}
        return ",".join(f"{family}={rate}" for family, rate in families.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _text(value: object) -> str:
    """A value of config.json for a reader."""
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"No file {path}. A run folder that `minipeft compare` made has one.") from error
    except ValueError as error:  # JSON and UTF-8 errors alike
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise UserError(
            f"{path} holds a {type(config).__name__}. Expected an object with the keys {', '.join(OPTIONS)}."
        )
    return config

"""The sections of report.html on what makes the comparison fair."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from minipeft.report.fairness import LEVEL, interval_rows, reference_of, trial_rows
from minipeft.report.summary import Summary


def fairness_sections(run: Path, cells: Sequence[Summary]) -> str:
    """HTML: how sure the differences are, and which learning rates were tried; each where the run has kept it."""
    return _intervals(run, cells) + _trials(run)


def _intervals(run: Path, cells: Sequence[Summary]) -> str:
    """Each method's accuracy minus the reference's, with its interval."""
    rows = interval_rows(run, cells)
    if not rows:
        return ""
    reference = escape(reference_of(cells).label)
    heads = (f"Accuracy minus {reference}, points", f"{100 * LEVEL:.0f} % interval", "")
    return f"""<section aria-labelledby="intervals">
<h2 id="intervals">How sure the differences are</h2>
<p>Both methods answered the same test rows, so their answers are compared row by row, averaged over the seeds: a paired
bootstrap over the test rows. It covers which rows happened to be tested; the ± above covers the seeds.</p>
{_table("intervals", ("Method", *heads), rows)}
</section>"""


def _trials(run: Path) -> str:
    """The learning rates that were tried."""
    rates, rows = trial_rows(run)
    if not rows:
        return ""
    return f"""<section aria-labelledby="rates">
<h2 id="rates">The learning rates that were tried</h2>
<p>Accuracy in percent on the validation rows, which are neither trained nor tested on. Every method had the same rates, the
same steps and the same order of the rows; ◂ marks the rate that it was then given, "end" that this is the smallest or the
largest of them, so that a better one may lie beyond.</p>
{_table("rates", ("Method", *(f"{rate:g}" for rate in rates)), rows)}
</section>"""


def _table(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names its rows; `name` is the id of its heading."""
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return f"""<div class="wide" tabindex="0" role="region" aria-labelledby="{name}">
<table class="numbers">
<thead><tr>{top}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>"""

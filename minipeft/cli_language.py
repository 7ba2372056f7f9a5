"""The commands of language models, which `cli.py` puts beside the others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from minipeft.cli_common import LINE, err, out, progress_bars, resumable

MODEL_HELP = "A known name (smollm2, glassllm), a Hugging Face folder of a GPT-2 or a Llama, or a .gguf file."


def generate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    prompt: Annotated[str, typer.Argument(help="The text to go on from; - reads it from standard input.")],
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens to write.")] = 100,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token each time; 1 draws as the model says; in between, tamer.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw among the k likeliest tokens alone; 0 for all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest tokens that have this probability together.")
    ] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends it; can be given several times.")] = None,
    count: Annotated[int, typer.Option(help="Continuations to write; the prompt is read once for all.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    adapter: Annotated[Path | None, typer.Option(help="The OUT/adapter of `minipeft train`, to put on first.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is an instruction; show the answer alone.")] = False,
    cache: Annotated[bool, typer.Option(help="Without, every token is computed again at each step: slow.")] = True,
    backend: Annotated[str, typer.Option(help="Where to compute: numpy, numba or cupy.")] = "numpy",
) -> None:
    """Let a language model go on from a prompt, shown as it is written.

    Example: `minipeft generate smollm2 "The capital of France is" --max-new-tokens 20`

    Example: `minipeft generate smollm2 "Once upon a time" --temperature 0.8 --top-p 0.95 --count 3 --seed 1`

    Example: `minipeft generate smollm2 "Name three colours." --chat`
    """
    from minipeft.backend import random, set_backend
    from minipeft.data.chat import chat_format
    from minipeft.errors import UserError
    from minipeft.models import Sampling, load_model
    from minipeft.models import generate as write
    from minipeft.models.reading import base_of, tokenizer_of
    from minipeft.peft import PeftModel

    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, tuple(stop or ()), cache)
    if count < 1:
        raise UserError(f"--count {count}: 1 continuation or more.")
    set_backend(backend)
    with err.status("Loading the model ..."):
        random.seed(seed)
        loaded = load_model(model, task="causal-lm", dropout=0.0)
        writer = loaded if adapter is None else PeftModel.from_pretrained(loaded, adapter)
        base_of(writer)
    text = sys.stdin.read() if prompt == "-" else prompt

    if chat:
        text = chat_format(tokenizer_of(writer)).prompt(text)

    def show(row: int, piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    if not chat:
        sys.stdout.write(text)
    if count == 1:
        write(writer, [text], sampling, show)
        sys.stdout.write("\n")
        return
    for number, made in enumerate(write(writer, [text] * count, sampling), start=1):
        sys.stdout.write(f"\n--- {number}\n{made.text}\n")


def pretrain(
    out_folder: Annotated[Path, typer.Option("--out", help="The run folder; a rerun goes on where it was.")],
    corpus: Annotated[
        str, typer.Option(help="shakespeare, a task's name, a .txt file or a folder of them; or several, with commas.")
    ] = "shakespeare",
    style: Annotated[str, typer.Option(help="llama or gpt2.")] = "llama",
    vocab_size: Annotated[
        int, typer.Option(help="Tokens of the tokenizer, which is learnt from the corpus first.")
    ] = 1024,
    d_model: Annotated[int, typer.Option(help="Width of the residual stream.")] = 192,
    layers: Annotated[int, typer.Option(help="Blocks.")] = 4,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 6,
    context: Annotated[int, typer.Option(help="Tokens of a window, the longest that the model will read.")] = 128,
    epochs: Annotated[int, typer.Option(help="Passes over the text.")] = 6,
    batch_size: Annotated[int, typer.Option(help="Windows a step.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    dropout: Annotated[float, typer.Option(help="In training, with the style gpt2.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the start and of the order of the windows.")] = 0,
    keep: Annotated[
        int, typer.Option(help="Also keep the model at so many earlier steps (1/2, 1/4, ... of all), in OUT/kept.")
    ] = 0,
    backend: Annotated[str, typer.Option(help="Where to compute: numpy, numba or cupy.")] = "numpy",
    workers: Annotated[
        int | None, typer.Option(help="Processes that share each batch; one a processor, at most 4, when left out.")
    ] = None,
) -> None:
    """Train a tokenizer and a small language model on plain text, from nothing.

    A tenth of the text is held out; the loss on it, in **bits per byte**, is reported at the end. OUT/model is a Hugging
    Face folder that `minipeft generate`, `--model` of every command, and transformers can load.

    Example: `minipeft pretrain --corpus shakespeare --out runs/shakespeare`

    Example: `minipeft pretrain --corpus my.txt --style gpt2 --layers 6 --d-model 256 --heads 8 --out runs/mine`
    """
    from minipeft.backend.workers import default_workers
    from minipeft.experiments.pretrain import PretrainProgress, PretrainSettings
    from minipeft.experiments.pretrain import pretrain as run
    from minipeft.report.language_plots import draw_pretraining

    settings = PretrainSettings(
        corpus=corpus,
        style=style,
        vocab_size=vocab_size,
        d_model=d_model,
        layers=layers,
        heads=heads,
        context=context,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        dropout=dropout,
        seed=seed,
        backend=backend,
        workers=default_workers() if workers is None else workers,
    )
    with resumable(out_folder, "The state"), progress_bars() as progress:
        bar = progress.add_task("tokenizer", total=None)

        def show(now: PretrainProgress) -> None:
            name = progress.tasks[bar].description if now.loss is None else f"loss {now.loss:.3f}"
            progress.update(bar, completed=now.step, total=now.steps, description=name)
            if now.held_out is not None:
                progress.console.print(
                    f"[bold]step {now.step}, held-out loss {now.held_out:.3f}[/]\n{escape(now.sample or '')}\n",
                    highlight=False,
                )

        row = run(settings, out_folder, show, keep)
    figure = draw_pretraining(out_folder)[0]
    out.print(
        f"{row['parameters'] / 1e6:.2f} M parameters, {row['steps']} steps, {row['train_seconds']:.0f} s; held out: "
        f"loss {row['held_out_loss']:.3f}, perplexity {row['held_out_perplexity']:.1f}, "
        f"{row['bits_per_byte']:.3f} bits per byte",
        **LINE,
    )
    out.print(f"Figure   {figure}\nModel    {out_folder / 'model'}", **LINE)

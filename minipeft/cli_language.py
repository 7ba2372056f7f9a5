"""The commands of language models, which `cli.py` puts beside the others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

out, err = Console(), Console(stderr=True)

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
    cache: Annotated[bool, typer.Option(help="Without, every token is computed again at each step: slow.")] = True,
    backend: Annotated[str, typer.Option(help="Where to compute: numpy, numba or cupy.")] = "numpy",
) -> None:
    """Let a language model go on from a prompt, shown as it is written.

    Example: `minipeft generate smollm2 "The capital of France is" --max-new-tokens 20`

    Example: `minipeft generate smollm2 "Once upon a time" --temperature 0.8 --top-p 0.95 --count 3 --seed 1`
    """
    from minipeft.backend import random, set_backend
    from minipeft.errors import UserError
    from minipeft.models import Sampling, load_model
    from minipeft.models import generate as write
    from minipeft.models.reading import base_of
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

    def show(row: int, piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    sys.stdout.write(text)
    if count == 1:
        write(writer, [text], sampling, show)
        sys.stdout.write("\n")
        return
    for number, made in enumerate(write(writer, [text] * count, sampling), start=1):
        sys.stdout.write(f"\n--- {number}\n{made.text}\n")

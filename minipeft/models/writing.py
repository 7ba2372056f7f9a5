"""Writing on: a causal model continues prompts token by token, each row with random numbers of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from minipeft.backend import random
from minipeft.data.bpe import STOP
from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError
from minipeft.models.reading import context_of, read, read_afresh, tokenizer_of
from minipeft.models.sampling import Sampling, choose
from minipeft.nn import Module, evaluating

Listener = Callable[[int, str], None]
BROKEN = "�"  # what stands for the bytes of a character that is not whole yet


@dataclass
class Continuation:
    """What was written: its text, its tokens, and why it ended.

    `ended` is "end" (the model wrote its end token), "stop" (one of the stop texts), "length" (max_new_tokens), or
    "context" (no room is left).
    """

    text: str = ""
    ids: list[int] = field(default_factory=list)
    ended: str = ""


def generate(
    model: Module,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    listener: Listener | None = None,
) -> list[Continuation]:
    """Continue each prompt. The beginning that they share, if only being equal, is computed once.

    A row's draws depend on (root seed, number of the row) alone: the same seed gives the same text. A row ends when it
    fills the context, and the others go on.

    Args:
        model: a causal language model, with or without a method.
        prompts: the texts; an empty one starts from the tokenizer's end-of-text token.
        sampling: how to choose tokens; the likeliest ones, 100 of them, when None.
        listener: called with (row, new piece of text) as soon as that piece is certain.

    Raises:
        UserError: a prompt is longer than the context, or empty and there is no token to start from; or the model is not
            a causal one with a tokenizer.
    """
    if isinstance(prompts, str):
        raise TypeError("generate takes a list of prompts; for one, write generate(model, [prompt])")
    if not prompts:
        return []
    sampling, tokenizer = sampling or Sampling(), tokenizer_of(model)
    starts = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    context = context_of(model)
    longest = max(range(len(starts)), key=lambda i: len(starts[i]))
    if len(starts[longest]) > context:
        raise UserError(
            f"The prompt {prompts[longest][:40]!r}... has {len(starts[longest])} tokens; this model reads at most "
            f"{context}. Shorten it."
        )
    rows = [_Row(number, ids, tokenizer, sampling, context) for number, ids in enumerate(starts)]
    with evaluating(model):
        _write(model, rows, sampling, tokenizer.pad_id, listener)
    return [row.made for row in rows]


def _write(model: Module, rows: list[_Row], sampling: Sampling, pad_id: int, listener: Listener | None) -> None:
    live, cache = rows, None
    while live:
        if not sampling.use_cache:
            logits = read_afresh(model, [row.start + row.made.ids for row in live], pad_id)
        elif cache is None:
            cache, logits = read(model, [row.start for row in live], pad_id)
        else:
            logits = model([row.made.ids[-1:] for row in live], cache=cache).data[:, -1]
        tokens = choose(logits, sampling, [row.draw() for row in live])
        for row, token in zip(live, tokens, strict=True):
            piece = row.take(token)
            if piece and listener is not None:
                listener(row.number, piece)
        going = [i for i, row in enumerate(live) if not row.made.ended]
        if cache is not None and 0 < len(going) < len(live):
            cache = cache.rows(going)
        live = [live[i] for i in going]


class _Row:
    """One row: its tokens so far, and how much of their text has been told."""

    def __init__(self, number: int, start: list[int], tokenizer: Tokenizer, sampling: Sampling, context: int) -> None:
        self.number, self.start, self.tokenizer, self.sampling = number, start, tokenizer, sampling
        self.most = min(sampling.max_new_tokens, context - len(start) + 1)
        self.rng = random.generator("generate", number)
        self.ends = end_ids(tokenizer)
        self.made = Continuation()
        self.told = 0

    def draw(self) -> float:
        return float(self.rng.random())

    def take(self, token: int) -> str:
        """Add a token; returns the text that is certain now and was not before."""
        made = self.made
        if token in self.ends:
            made.ended = "end"
        else:
            made.ids.append(token)
            made.text = self.tokenizer.decode(made.ids)
            found = [at for at in (made.text.find(stop) for stop in self.sampling.stop) if at >= 0]
            if found:
                made.text, made.ended = made.text[: min(found)], "stop"
            elif len(made.ids) == self.most:
                made.ended = "length" if self.most == self.sampling.max_new_tokens else "context"
        certain = len(made.text) if made.ended else len(made.text) - _uncertain(made.text, self.sampling.stop)
        piece = made.text[self.told : certain]
        self.told = max(self.told, certain)
        return piece


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt; of an empty one, the end-of-text token, after which a new text begins.

    Raises:
        UserError: the prompt is empty and the tokenizer has no such token.
    """
    ids = tokenizer.ids(prompt)
    if not ids and tokenizer.eos_id is None:
        raise UserError("The prompt is empty, and the tokenizer has no end-of-text token to start from: write a word.")
    return ids or [tokenizer.eos_id or 0]


def end_ids(tokenizer: Tokenizer) -> set[int]:
    """The tokens that end a text: the end-of-text token, and the end of a chat's message."""
    return {number for number in (tokenizer.eos_id, tokenizer.token_id(STOP)) if number is not None}


def _uncertain(text: str, stops: tuple[str, ...]) -> int:
    """The length of the end of `text` that the next token may change or that may be the start of a stop text."""
    held = len(text) - len(text.rstrip(BROKEN))
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), held, -1):
            if text.endswith(stop[:length]):
                held = length
                break
    return held

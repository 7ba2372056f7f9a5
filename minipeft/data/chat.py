"""From an instruction to tokens: who speaks is marked by special tokens, and only the answer's tokens are targets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from minipeft.data.bpe import START, STOP
from minipeft.data.instruct import Instruction
from minipeft.data.token_rows import IGNORE, TokenRows
from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError

SYSTEM = re.compile(rf"'({re.escape(START)}system\n[^']*{re.escape(STOP)}\n)'")  # a whole message in a template


@dataclass(frozen=True)
class ChatFormat:
    """What stands before the user's words and between them and the answer; the token `end` stands after the answer."""

    before: str
    between: str
    end: int

    def prompt(self, words: str) -> str:
        """The user's words up to where the answer begins."""
        return f"{self.before}{words}{self.between}"


def chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """The format that a tokenizer's tokens are made for.

    With `<|im_start|>` and `<|im_end|>` it is ChatML, as SmolLM2's and as the tokenizers of `minipeft pretrain` have it,
    after the system message that the tokenizer's template begins with if the user gives none; else headings in plain
    text, as Alpaca's, and the end-of-text token.

    Raises:
        UserError: the tokenizer has no token to end an answer with.
    """
    stop = tokenizer.token_id(STOP)
    if stop is not None and tokenizer.token_id(START) is not None:
        system = SYSTEM.search(tokenizer.chat_template.replace(r"\n", "\n"))
        return ChatFormat(f"{system[1] if system else ''}{START}user\n", f"{STOP}\n{START}assistant\n", stop)
    if tokenizer.eos_id is None:
        raise UserError("The tokenizer has no end-of-text token, so an answer could not end: take another model.")
    return ChatFormat("### Instruction:\n", "\n\n### Response:\n", tokenizer.eos_id)


def fit(tokenizer: Tokenizer, rows: Sequence[Instruction], max_length: int) -> list[Instruction]:
    """The rows, with as many words of each input as fit into `max_length` tokens with all the rest.

    Raises:
        UserError: a row is too long even without its input; it is named.
    """
    chat, fitted = chat_format(tokenizer), []
    for row in rows:
        words = row.input.split(" ")
        fits, most = -1, len(words)  # so many words fit; more than so many do not
        while fits < most:
            n = most if fits < 0 and most == len(words) else (fits + most + 1) // 2
            shorter = replace(row, input=" ".join(words[:n]))
            if _length(tokenizer, chat, shorter) <= max_length:
                fits = n
            else:
                most = n - 1
        if fits < 0:
            raise UserError(
                f"The instruction {row.instruction[:40]!r}... and its output have more than {max_length} tokens, without "
                "any input. Raise --max-length (up to the model's context), or shorten them."
            )
        fitted.append(row if fits == len(words) else replace(row, input=" ".join(words[:fits])))
    return fitted


def encode_instructions(tokenizer: Tokenizer, rows: Sequence[Instruction]) -> TokenRows:
    """The tokens of each row, and targets for those of the output and its end alone: the loss is on nothing else.

    Prompt and output are cut into tokens apart, as the model meets them when it writes.
    """
    chat = chat_format(tokenizer)
    ids, labels = [], []
    for row in rows:
        prompt = tokenizer.ids(chat.prompt(row.words))
        answer = [*tokenizer.ids(row.output, whole=False), chat.end]
        tokens = np.array([*prompt, *answer], dtype=np.int32)
        targets = tokens[1:].copy()
        targets[: len(prompt) - 1] = IGNORE
        ids.append(tokens[:-1])
        labels.append(targets)
    return TokenRows(tuple(ids), tuple(labels))


def _length(tokenizer: Tokenizer, chat: ChatFormat, row: Instruction) -> int:
    return len(tokenizer.ids(chat.prompt(row.words))) + len(tokenizer.ids(row.output, whole=False))

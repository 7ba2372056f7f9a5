"""Instruction data from a stronger model: it answers, the answers are filtered, and a small model may learn from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from minipeft.backend import random
from minipeft.data import load_task
from minipeft.data.chat import chat_format
from minipeft.data.filtering import Filter
from minipeft.data.instruct import Instruction, write_instructions
from minipeft.data.instruct_templates import OPEN
from minipeft.errors import UserError
from minipeft.experiments.problems import tokenizer_of
from minipeft.models import Sampling, generate
from minipeft.nn import Module

TOGETHER = 16
SAMPLING = Sampling(48, temperature=0.7, top_p=0.95)


def questions(about: str, n: int) -> list[Instruction]:
    """n questions without an answer: about the texts of a task's training rows, in turns; or the lines of a .txt file.

    Raises:
        UserError: there is no such task or file, or it has fewer texts.
    """
    path = Path(about)
    if path.suffix == ".txt":
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error}). Give a UTF-8 file, an instruction a line.") from None
        rows = [Instruction(line, "", "", path.stem) for line in lines if line][:n]
        if not rows:
            raise UserError(f"{path} is empty: it needs an instruction a line.")
        return rows
    return [
        Instruction(OPEN[i % len(OPEN)], row.text, "", "teacher")
        for i, row in enumerate(load_task(about).head("train", n))
    ]


def teach(
    teacher: Module,
    asked: Sequence[Instruction],
    out: Path,
    seed: int = 0,
    told: Callable[[int, int], None] | None = None,
) -> Filter:
    """Let a model answer, and write what passes the filter to a .jsonl file, which grows with every 16 answers.

    Args:
        teacher: a causal language model that has been taught to answer.
        asked: rows whose output is to be written.
        out: the file.
        seed: of the draws (temperature 0.7, top-p 0.95).
        told: called with how many have been answered, and how many were kept.
    """
    chat, chosen = chat_format(tokenizer_of(teacher)), Filter()
    for at in range(0, len(asked), TOGETHER):
        part = asked[at : at + TOGETHER]
        random.seed(seed + at)  # a row's draws depend on the seed and its place in the batch
        for row, made in zip(part, generate(teacher, [chat.prompt(r.words) for r in part], SAMPLING), strict=True):
            chosen.add(replace(row, output=made.text.strip()), made.ended == "end")
        write_instructions(out, chosen.kept)
        if told is not None:
            told(at + len(part), len(chosen.kept))
    if not chosen.kept:
        raise UserError(f"None of {len(asked)} answers was worth keeping: {chosen.dropped}. Take another teacher.")
    return chosen

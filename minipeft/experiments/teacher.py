"""Instruction data from a stronger model: it answers, the answers are filtered, and a small model may learn from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from minipeft.backend import random
from minipeft.data import load_task
from minipeft.data.chat import chat_format
from minipeft.data.filtering import Filter
from minipeft.data.instruct import Instruction, write_instructions
from minipeft.data.instruct_templates import OPEN
from minipeft.data.splits import digest
from minipeft.errors import UserError
from minipeft.experiments.problems import tokenizer_of
from minipeft.files import append_line, read_lines
from minipeft.models import Sampling, generate
from minipeft.nn import Module

TOGETHER = 16
SAMPLING = Sampling(48, temperature=0.7, top_p=0.95)


def questions(about: str, n: int) -> list[Instruction]:
    """n questions without an answer: about the texts of a task's training rows, in turns; or the lines of a .txt file.

    A .txt with fewer lines gives those that it has.

    Raises:
        UserError: there is no such task or file; the file is empty, or the task has fewer rows.
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
    """Let a model answer, and write what passes the filter to a .jsonl file.

    Until all are answered, the answers are in another file beside it, 16 a line; the same call goes on there.

    Args:
        teacher: a causal language model that has been taught to answer.
        asked: rows whose output is to be written.
        out: the file.
        seed: of the draws (temperature 0.7, top-p 0.95).
        told: called with how many have been answered, and how many were kept.

    Raises:
        UserError: `out` exists; the answers so far are to other questions; or none was worth keeping.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.
    """
    refuse_existing(out)
    log = answers_so_far(out)
    chat, chosen = chat_format(tokenizer_of(teacher)), Filter()
    prompts = [chat.prompt(row.words) for row in asked]
    so_far = read_lines(log)
    for at in range(0, len(asked), TOGETHER):
        part, number = prompts[at : at + TOGETHER], at // TOGETHER
        asks = digest(part, [str(seed)])
        if number < len(so_far):
            line = so_far[number]
            if line["asks"] != asks:
                raise UserError(f"{log} has the answers to other questions: delete it, or write to another file.")
        else:
            random.seed(seed + at)  # a row's draws depend on the seed and its place in the batch
            made = generate(teacher, part, SAMPLING)
            line = {"asks": asks, "answers": [[one.text.strip(), one.ended] for one in made]}
            append_line(log, json.dumps(line))
        for row, (text, ended) in zip(asked[at : at + TOGETHER], line["answers"], strict=True):
            chosen.add(replace(row, output=text), ended == "end")
        if told is not None:
            told(at + len(part), len(chosen.kept))
    if not chosen.kept:
        raise UserError(f"None of {len(asked)} answers was worth keeping: {chosen.dropped}. Take another teacher.")
    write_instructions(out, chosen.kept)
    log.unlink(missing_ok=True)
    return chosen


def answers_so_far(out: Path) -> Path:
    """Where the answers are kept until all are there."""
    return out.with_name(out.name + ".answers")


def refuse_existing(out: Path) -> None:
    """Raises UserError when there is a file already, which may have cost somebody some work."""
    if out.exists():
        raise UserError(f"{out} exists. Choose another name, or delete it first.")

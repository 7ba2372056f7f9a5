"""Instruction data: what is asked, what it is asked about, and the answer, as rows of a .jsonl file or from labelled sets.

A row of a file is an object with `instruction`, `input` ("" where there is none) and `output`, as Alpaca's (Taori et al.,
2023); `source` may say where it comes from, and other fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

from minipeft.data.instruct_templates import TEMPLATES, Template, Templates
from minipeft.data.splits import Example, digest, fraction, normalise
from minipeft.data.tasks import Task, load_task
from minipeft.data.user_file import encodable, read_objects
from minipeft.errors import UserError, unknown
from minipeft.files import atomic_write

FIELDS = ("instruction", "input", "output")
HELD_OUT = 0.2
MANY = 20  # so many different instructions can be shared out whole


@dataclass(frozen=True)
class Instruction:
    """A row. `words` is what a model is told; `source` names a task or a file."""

    instruction: str
    input: str
    output: str
    source: str = ""

    @property
    def words(self) -> str:
        """The instruction and, after an empty line, the input if there is one."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction


@dataclass(frozen=True)
class InstructionSet:
    """Rows to train on, and rows held out: in other wordings, or, of a file with few instructions, with other inputs."""

    train: tuple[Instruction, ...]
    test: tuple[Instruction, ...]

    @property
    def digest(self) -> str:
        """A hash of all rows."""
        return digest(*((json.dumps(asdict(row)) for row in part) for part in (self.train, self.test)))


def load_instructions(names: str = "", progress: bool = True) -> InstructionSet:
    """Instructions from tasks (sarcasm, tweets, privacy, boolq, bbc) and .jsonl files, named with commas between.

    Of a task, the training rows are asked about in some ways and the test rows in others (see `instruct_templates.py`).
    Of a file, a fifth is held out by hash: whole instructions if it has 20 different ones, else rows. The parts take turns.

    Args:
        names: tasks and files; all five tasks when empty.
        progress: show a bar while fetching.

    Raises:
        UserError: an unknown task; a file that is missing, has a bad row, or too few of them.
    """
    parts = []
    for name in [part.strip() for part in names.split(",") if part.strip()] or list(TEMPLATES):
        if name.endswith(".jsonl"):
            parts.append(_share_out(read_instructions(name), name))
        elif name in TEMPLATES:
            task, ways = load_task(name, progress=progress), TEMPLATES[name]
            parts.append(InstructionSet(ask(task, task.train, ways.train), ask(task, task.test, ways.held_out)))
        else:
            raise unknown("instruction set", name, TEMPLATES, "Or give a .jsonl with instruction, input and output.")
    return InstructionSet(_take_turns(part.train for part in parts), _take_turns(part.test for part in parts))


def ask(task: Task, examples: Iterable[Example], ways: tuple[Template, ...]) -> tuple[Instruction, ...]:
    """Labelled examples as instructions: the ways of asking take turns, and the class gives the answer."""
    rows = []
    for number, example in enumerate(examples):
        way = ways[number % len(ways)]
        rows.append(
            Instruction(way.instruction, _shown(example, TEMPLATES[task.name]), way.answers[example.label], task.name)
        )
    return tuple(rows)


def read_instructions(path: str | Path) -> list[Instruction]:
    """The rows of a .jsonl file.

    Raises:
        UserError: the file is missing or empty, or a row is no object, lacks a field, or has one that is no text or, but
            for `input`, empty; the line and the field are named.
    """
    path = Path(path)
    rows = []
    for line, fields in read_objects(path, FIELDS):
        for name in (*FIELDS, "source"):
            value = fields.get(name, "")
            if not isinstance(value, str):
                raise UserError(f"{path}, line {line}: {name!r} must be a text, not {json.dumps(value)[:40]}.")
            if not encodable(path, line, name, value).strip() and name in ("instruction", "output"):
                raise UserError(f"{path}, line {line}: {name!r} is empty; only 'input' may be.")
        known = {name: str(fields[name]).strip() for name in FIELDS}
        rows.append(Instruction(**known, source=str(fields.get("source") or path.stem)))
    if not rows:
        raise UserError(f"{path} is empty: it needs an object a line, with {', '.join(FIELDS)}.")
    return rows


def write_instructions(path: str | Path, rows: Iterable[Instruction]) -> None:
    """Write rows to a .jsonl file, in one step."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    atomic_write(path, "".join(f"{line}\n" for line in lines))


def _share_out(rows: list[Instruction], name: str) -> InstructionSet:
    by_instruction = len({normalise(row.instruction) for row in rows}) >= MANY
    key: Callable[[Instruction], str] = lambda row: normalise(row.instruction if by_instruction else row.words)
    test = tuple(row for row in rows if fraction(key(row)) < HELD_OUT)
    train = tuple(row for row in rows if fraction(key(row)) >= HELD_OUT)
    if not train or not test:
        raise UserError(
            f"{name} has too few rows to hold some out: {len(train)} to train on, {len(test)} to test on. Add some (50 or "
            "more are a good start)."
        )
    return InstructionSet(train, test)


def _shown(example: Example, ways: Templates) -> str:
    if example.text_pair is None:
        return example.text
    return f"{ways.names[0]}: {example.text}\n{ways.names[1]}: {example.text_pair}"


def _take_turns(parts: Iterable[tuple[Instruction, ...]]) -> tuple[Instruction, ...]:
    return tuple(row for turn in zip_longest(*parts) for row in turn if row is not None)

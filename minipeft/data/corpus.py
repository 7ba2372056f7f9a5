"""Plain text to pre-train on: a fetched corpus, the texts of a task, or files of the user's own.

A part is held out: a tenth of the documents, by hash, or the last tenth of a text that is one document.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minipeft.data.assets import fetch
from minipeft.data.splits import digest, fraction
from minipeft.data.tasks import TASK_NAMES, load_task
from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError, unknown

HELD_OUT = 0.1
FEW = 20  # fewer documents than this are not shared out whole


@dataclass(frozen=True)
class Corpus:
    """The documents to train on, and those held out."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A hash of all of it."""
        return digest(self.train, self.held_out)


def load_corpus(names: str, progress: bool = True) -> Corpus:
    """Load text: "shakespeare"; a task's name, for the texts of its training rows; a .txt file, or a folder of them.

    Several may be given, with commas between.

    Raises:
        UserError: there is no such corpus; a file is no UTF-8 text; or there is nothing to train on or to hold out.
    """
    train: list[str] = []
    held_out: list[str] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        documents = [text for text in _documents(name, progress) if text.strip()]
        if not documents:
            raise UserError(f"The corpus {name} is empty: it has no text to learn from.")
        more, apart = hold_out(documents)
        if not more or not apart:
            raise UserError(
                f"The corpus {name} has too little text to hold a tenth of it out; give some pages at least."
            )
        train += more
        held_out += apart
    if not train:
        raise UserError("No corpus is named: give shakespeare, a task, a .txt file or a folder of them.")
    return Corpus(tuple(train), tuple(held_out))


def hold_out(documents: list[str]) -> tuple[list[str], list[str]]:
    """The documents to train on, and the others. Of fewer than 20, the last tenth of each is cut off at a line's end."""
    if len(documents) >= FEW:
        places = [fraction(document) for document in documents]
        line = max(HELD_OUT, min(places) + 1e-9)  # of some dozens, none may be in the first tenth
        return (
            [text for text, place in zip(documents, places, strict=True) if place >= line],
            [text for text, place in zip(documents, places, strict=True) if place < line],
        )
    parts = []
    for text in documents:
        place = round(len(text) * (1 - HELD_OUT))
        end = text.find("\n", place) + 1
        place = end if 0 < end < len(text) else place
        parts.append((text[:place], text[place:]))
    return [a for a, _ in parts if a.strip()], [b for _, b in parts if b.strip()]


def encode_documents(tokenizer: Tokenizer, documents: tuple[str, ...]) -> np.ndarray:
    """All documents as one int32 array, each after an end-of-text token, with one more at the very end."""
    end = tokenizer.eos_id
    if end is None:
        raise UserError("The tokenizer has no end-of-text token to put between documents.")
    pieces = [np.array([end, *tokenizer.ids(document)], dtype=np.int32) for document in documents]
    return np.concatenate([*pieces, np.array([end], dtype=np.int32)])


def _documents(name: str, progress: bool) -> list[str]:
    if name == "shakespeare":
        return [_read(fetch(name, progress=progress) / "input.txt")]
    if name in TASK_NAMES:
        rows = load_task(name, progress=progress).train
        return list(dict.fromkeys(text for row in rows for text in (row.text_pair, row.text) if text))
    path = Path(name)
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        if not files:
            raise UserError(f"The folder {path} holds no .txt file.")
        return [_read(file) for file in files]
    if path.suffix == ".txt" or path.is_file():
        return [_read(path)]
    raise unknown("corpus", name, ("shakespeare", *TASK_NAMES), "Or give a .txt file, or a folder of them.")


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: this is not UTF-8 text; save the file as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error

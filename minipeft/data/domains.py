"""A task in two domains: learnt from tweets to airlines, and tried on tweets about technology companies.

Both are parts of the task `tweets`, negative and positive alone, told apart by the names in them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from minipeft.data.splits import Example
from minipeft.data.tasks import Task, load_task
from minipeft.errors import UserError

LABELS = ("negative", "positive")
AIRLINE = re.compile(r"@(united|virginamerica|southwestair|jetblue|usairways|americanair|delta)\b", re.IGNORECASE)
TECHNOLOGY = re.compile(
    r"[@#](apple|google|microsoft|twitter|android|iphone|ios)\b|\b(iphone|ipad|android|siri)\b", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class TwoDomains:
    """Rows to draw examples from, and rows to test on in the same domain and in another: as many of each class there."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    in_domain: tuple[Example, ...]
    out_of_domain: tuple[Example, ...]


def load_two_domains(validation_size: int, test_size: int) -> TwoDomains:
    """Airlines for training, validation and the first test, each from its own split of `tweets`; companies for the second.

    The other domain is never learnt or chosen by, so its test has the rows of both splits that are not for training.

    Raises:
        UserError: there are too few rows of a class.
    """
    task = load_task("tweets")
    return TwoDomains(
        train=tuple(_domain(task, task.train, airlines=True)),
        validation=_balanced(_domain(task, task.validation, airlines=True), validation_size, "validation"),
        in_domain=_balanced(_domain(task, task.test, airlines=True), test_size, "test"),
        out_of_domain=_balanced(
            _domain(task, (*task.test, *task.validation), airlines=False), test_size, "out-of-domain test"
        ),
    )


def _domain(task: Task, rows: Iterable[Example], airlines: bool) -> list[Example]:
    """The rows of one domain; those that name both are in neither. Links and broken characters are taken out."""
    found = []
    for row in rows:
        name = task.labels[row.label]
        here = bool(AIRLINE.search(row.text)), bool(TECHNOLOGY.search(row.text))
        if name in LABELS and here == (airlines, not airlines):
            text = re.sub(r"https?://\S*|[^\x20-\x7e]", " ", row.text.replace("&amp;", "&"))
            found.append(Example(" ".join(text.split()), LABELS.index(name)))
    return found


def _balanced(rows: list[Example], size: int, what: str) -> tuple[Example, ...]:
    """The first `size` rows with as many of one class as of the other, in their order."""
    half = size // 2
    by_class = [[row for row in rows if row.label == label] for label in range(len(LABELS))]
    fewest = min(len(part) for part in by_class)
    if not 1 <= half <= fewest:
        raise UserError(f"{size} rows for the {what}: an even number from 2 to {2 * fewest} is needed.")
    return tuple(row for pair in zip(*(part[:half] for part in by_class), strict=True) for row in pair)

"""From a list of examples to train, validation and test: without duplicates, by hash, the same for ever.

The rules:

1. Two examples are duplicates when they are equal up to upper and lower case and white space. The first stays. When
   duplicates disagree about the label, all of them go: nobody knows which is right.
2. The SHA-256 of an example's *group*, read as a fraction in [0, 1), decides its split: below 0.2 test, below 0.3
   validation, else train. The group is the example itself unless the task says otherwise; rows that share a group
   (a question asked about many passages) are never on both sides.
3. Within a split, the order is that of the SHA-256 of the example, so that "the first n" is a fixed random sample.

Which side a row is on does not depend on the order of the file, on Python's hash seed, or on the other rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Example:
    """A text, or a pair of texts, and its class: `label` is an index into the task's `labels`."""

    text: str
    label: int
    text_pair: str | None = None


class Splits(NamedTuple):
    """The three parts, each in its fixed order."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


Group = Callable[[Example], str]


def normalise(text: str) -> str:
    """`text` in lower case, with every run of white space as one blank."""
    return " ".join(text.casefold().split())


def content(example: Example) -> str:
    """What makes two examples duplicates: the normalised text, and the pair on a second line if there is one."""
    # Unambiguous: a normalised text has no line break.
    lines = [example.text] if example.text_pair is None else [example.text, example.text_pair]
    return "\n".join(normalise(line) for line in lines)


def fraction(key: str) -> float:
    """The first 53 bits of SHA-256 of the UTF-8 of `key`, as a number in [0, 1)."""
    # 53 bits are what a float holds exactly; with more, the largest would round up to 1.0
    return (int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 11) / 2**53


def digest(*parts: Iterable[str]) -> str:
    """A hash of texts, shared out into parts: a run is not to go on with data that have changed."""
    sha = hashlib.sha256()
    for part in parts:
        for text in part:
            sha.update(text.encode() + b"\0")
        sha.update(b"\1")
    return sha.hexdigest()


def split_name(key: str) -> str:
    """The split that an example of the group `key` is in: "train", "validation" or "test"."""
    position = fraction(key)
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"


def drop_duplicates(examples: Iterable[Example]) -> dict[str, Example]:
    """The examples by their content, by rule 1: the first of each, and none where the labels disagree."""
    first: dict[str, Example] = {}
    disputed: set[str] = set()
    for example in examples:
        key = content(example)
        if first.setdefault(key, example).label != example.label:
            disputed.add(key)
    return {key: example for key, example in first.items() if key not in disputed}


def split(examples: Iterable[Example], group: Group | None = None) -> Splits:
    """Apply the rules above. `group` gives an example's group; without it, every example is its own."""
    unique = drop_duplicates(examples)
    parts: dict[str, list[Example]] = {name: [] for name in Splits._fields}
    for key in sorted(unique, key=lambda key: hashlib.sha256(key.encode()).digest()):
        example = unique[key]
        parts[split_name(group(example) if group else key)].append(example)
    return Splits(**{name: tuple(part) for name, part in parts.items()})

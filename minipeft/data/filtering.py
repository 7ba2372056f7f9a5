"""Which outputs of a teacher are worth learning: whole, of its own words, without loops, and not twice.

The rules are Self-Instruct's in short (arXiv 2212.10560, section 2.2, step 4): what is like something that is there
already goes, and so does what a heuristic finds bad.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from minipeft.data.instruct import Instruction
from minipeft.data.splits import normalise

ALIKE = 0.7  # the share of words in common from which two outputs are the same
SHORT = 4  # words: shorter outputs may well be right for many inputs
REFUSALS = ("i'm sorry", "i am sorry", "i cannot", "i can't", "as an ai", "i don't have")


@dataclass
class Filter:
    """Keeps rows one by one; `dropped` counts the others by their reason."""

    kept: list[Instruction] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    _words: list[set[str]] = field(default_factory=list)

    def add(self, row: Instruction, ended: bool = True) -> bool:
        """Keep a row, or not; `ended` says whether its writer came to an end."""
        words = set(_words(row.output))
        if len(words) < SHORT:
            words |= set(_words(row.words))
        reason = _fault(row, ended) or ("duplicate" if any(_alike(words, seen) for seen in self._words) else "")
        if reason:
            self.dropped[reason] = self.dropped.get(reason, 0) + 1
            return False
        self.kept.append(row)
        self._words.append(words)
        return True


def _fault(row: Instruction, ended: bool) -> str:
    output = normalise(row.output)
    words = _words(output)
    if not ended:
        return "cut off"
    if not words:
        return "empty"
    if output.startswith(REFUSALS):
        return "refusal"
    if _alike(set(words), set(_words(row.input or row.instruction))) or normalise(row.instruction) in output:
        return "copied"
    triples = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    if len(set(triples)) < 0.8 * len(triples):
        return "repeats itself"
    return ""


def _alike(a: set[str], b: set[str]) -> bool:
    """|a ∩ b| / |a ∪ b| of the words is ALIKE or more."""
    return len(a & b) >= ALIKE * len(a | b)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", normalise(text))

"""Patterns and verbalisers: how a row of a task is put to a language model, and the word that stands for each class.

A pattern and its verbaliser turn classification into what a language model was trained for, the next word (arXiv
2001.07676, section 3.1). They are data: `PATTERNS` has one for every known task, and a `Pattern` of your own works as well.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minipeft.backend import random
from minipeft.data.batching import EncodedSet
from minipeft.data.splits import Example
from minipeft.data.tokenize import Encoded, Tokenizer
from minipeft.errors import UserError, unknown


@dataclass(frozen=True)
class Pattern:
    """A question with a blank for the answer.

    Attributes:
        template: the prompt, with {text} and, for pairs, {text_pair} in it; the answer follows after a blank.
        words: the verbaliser, the word of each class in the order of the task's labels.
        separator: between the examples of a few-shot prompt.
        most_words: of a text; the words after these are cut off, so that many examples fit into the context. A text goes in
            as one line.

    Raises:
        UserError: the template has no {text}, another field, or a blank at its end; or words are missing or equal.
    """

    template: str
    words: tuple[str, ...]
    separator: str = "\n\n"
    most_words: int = 60

    def __post_init__(self) -> None:
        try:
            blanks = [blank for blank in string.Formatter().parse(self.template) if blank[1] is not None]
        except ValueError as error:
            raise UserError(
                f"The pattern {self.template!r} cannot be read ({error}); braces are for {{text}}."
            ) from None
        fields = {field for _, field, _, _ in blanks}
        plain = not any(form or conversion for _, _, form, conversion in blanks)
        if "text" not in fields or not fields <= {"text", "text_pair"} or not plain:
            raise UserError(
                f"The pattern {self.template!r} needs {{text}}, may have {{text_pair}}, and nothing else in braces."
            )
        if self.template != self.template.rstrip():
            raise UserError(
                f"The pattern {self.template!r} ends with white space; the blank before the answer is ours."
            )
        if len(self.words) < 2 or not all(word.strip() for word in self.words):
            raise UserError(f"The words {self.words} of a pattern are 2 or more, one a class, none of them empty.")
        if len(set(self.answers)) < len(self.words):
            raise UserError(f"The words {self.words} of a pattern must differ, or their classes cannot be told apart.")
        if self.most_words < 1:
            raise UserError(f"most_words={self.most_words}: a text keeps 1 word or more.")

    @property
    def answers(self) -> tuple[str, ...]:
        """What may follow a prompt: each word with a blank before it."""
        return tuple(f" {word.strip()}" for word in self.words)

    def question(self, example: Example) -> str:
        """The template with the texts of an example in it."""
        pair = example.text_pair
        if pair is None and "{text_pair}" in self.template:
            raise UserError(f"The pattern {self.template!r} asks for pairs, but the task has single texts.")
        return self.template.format(text=self._cut(example.text), text_pair="" if pair is None else self._cut(pair))

    def prompt(self, example: Example, shots: Sequence[Example] = ()) -> str:
        """The examples `shots` with their answers, then the question of `example`."""
        return self.shots(shots) + self.question(example)

    def shots(self, shots: Sequence[Example]) -> str:
        """The examples with their answers: what all few-shot prompts with them begin with."""
        return "".join(self.question(shot) + self.answers[shot.label] + self.separator for shot in shots)

    def _cut(self, text: str) -> str:
        return " ".join(text.split()[: self.most_words])


PATTERNS = {
    "sarcasm": Pattern("Headline: {text}\nSarcastic:", ("no", "yes")),
    "tweets": Pattern("Tweet: {text}\nSentiment:", ("negative", "neutral", "positive")),
    "privacy": Pattern("Clause: {text_pair}\nQuestion: {text}\nRelevant:", ("no", "yes")),
    "boolq": Pattern("{text_pair}\nQuestion: {text}?\nAnswer:", ("no", "yes"), most_words=100),
    "bbc": Pattern("{text}\nTopic:", ("business", "entertainment", "politics", "sports", "tech")),
}


def find_pattern(task: str, template: str | None = None, words: Sequence[str] | None = None) -> Pattern:
    """The pattern of a known task; `template` and `words` replace its own, and make one for any other task.

    Raises:
        UserError: the task is not known and one of the two is missing, or they make no pattern.
    """
    known = PATTERNS.get(task)
    if known is None and (template is None or words is None):
        raise unknown("task with a pattern", task, PATTERNS, "For a task of your own, give a pattern and its words.")
    if template is None or words is None:
        assert known is not None
        return Pattern(template or known.template, tuple(words or known.words), most_words=known.most_words)
    return Pattern(template, tuple(words))


def draw_shots(rows: Sequence[Example], count: int, classes: int) -> list[Example]:
    """`count` examples, shuffled, as many of each class as of every other (or one more): a function of the root seed.

    Raises:
        UserError: a class has too few rows.
    """
    rng = random.generator("shots")
    order, chosen = rng.permutation(len(rows)), []
    wanted = [count // classes + (place < count % classes) for place in range(classes)]
    for i in order:
        if wanted[rows[i].label]:
            wanted[rows[i].label] -= 1
            chosen.append(rows[i])
    if any(wanted):
        raise UserError(f"{count} examples, as many of each of {classes} classes, are more than {len(rows)} rows give.")
    return [chosen[i] for i in rng.permutation(count)]


def encode_prompts(tokenizer: Tokenizer, pattern: Pattern, examples: Sequence[Example]) -> EncodedSet:
    """The questions of a pattern, to train and score a classifier that reads the last token (see `as_classifier`)."""
    rows = [np.array(tokenizer.ids(pattern.question(example)), dtype=np.int32) for example in examples]
    return EncodedSet(
        encodings=tuple(Encoded(ids, np.zeros_like(ids)) for ids in rows),
        labels=np.array([example.label for example in examples], dtype=np.int32),
        lengths=np.array([len(ids) for ids in rows], dtype=np.int32),
    )

"""What a cell learns and is scored on: classes of texts, the next token of a text, or the answers to instructions.

As the command line writes them: "sarcasm" or a file of one's own; "lm:my.txt"; "instruct", "instruct:sarcasm,mine.jsonl".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from minipeft.data import EncodedSet, PackedTokens, Task, TokenRows, TrainingSet, encode_examples, load_task
from minipeft.data.chat import chat_format, encode_instructions, fit
from minipeft.data.corpus import Corpus, encode_documents, load_corpus
from minipeft.data.instruct import Instruction, InstructionSet, load_instructions
from minipeft.data.splits import normalise
from minipeft.data.token_rows import windows
from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError
from minipeft.models import Pretrained, Sampling, generate, load_model, load_tokenizer
from minipeft.nn import Module
from minipeft.training import evaluate, evaluate_tokens

if TYPE_CHECKING:
    from minipeft.experiments.cell import Settings

TEXT, INSTRUCT = "lm", "instruct"
TOGETHER = 16  # prompts that are answered side by side


@dataclass(frozen=True)
class Measured:
    """What a test found; None where a measure has no meaning. `loss` is in nats a target.

    `accuracy` is the share of right classes, or of outputs that are written word for word; `bits_per_byte` is the text's
    -log₂ likelihood over its UTF-8 bytes. `predictions` has the class of each test row, `labels` the true one.
    """

    loss: float
    accuracy: float | None = None
    bits_per_byte: float | None = None
    predictions: list[int] | None = field(default=None, repr=False)
    labels: list[int] | None = field(default=None, repr=False)

    @property
    def perplexity(self) -> float | None:
        """exp(loss) where the targets are tokens of a text."""
        return None if self.bits_per_byte is None else math.exp(min(self.loss, 700.0))

    def __str__(self) -> str:
        parts = [] if self.accuracy is None else [f"accuracy {100 * self.accuracy:.1f} %"]
        parts.append(f"loss {self.loss:.3f}")
        if self.bits_per_byte is not None:
            parts += [f"perplexity {self.perplexity:.1f}", f"{self.bits_per_byte:.3f} bits per byte"]
        return ", ".join(parts)


class Problem(Protocol):
    """What is to be learnt, before a model's tokenizer has read it."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes; None for a model that stays a language model."""

    @property
    def digest(self) -> str:
        """A hash of its rows."""

    def check(self, settings: Settings) -> None:
        """Raises UserError when there are fewer rows than asked for."""

    def encode(self, settings: Settings) -> tuple[TrainingSet, Any]:
        """The rows to train on, and what `score` takes."""

    def score(self, model: Module, test: Any, workers: int) -> Measured:
        """Test a model."""


def load_problem(name: str) -> Problem:
    """From the command line's word for it. Raises UserError as what loads it."""
    kind, _, what = name.partition(":")
    if kind == TEXT:
        return NextToken(load_corpus(what))
    if kind == INSTRUCT:
        return Answers(load_instructions(what))
    return Classes(load_task(name))


def is_language(name: str) -> bool:
    """Whether a task is one for a model that stays a language model."""
    return name.partition(":")[0] in (TEXT, INSTRUCT)


def is_instructions(name: str) -> bool:
    """Whether a task is one of instructions."""
    return name.partition(":")[0] == INSTRUCT


def base_model(settings: Settings, labels: tuple[str, ...] | None) -> Pretrained:
    """The pre-trained model, with a fresh classifier for the labels, or as the language model that it is."""
    if labels is not None:
        return load_model(settings.model, labels=labels, dropout=0.0)
    return load_model(settings.model, task="causal-lm", dropout=0.0)


def tokenizer_of(model: Any) -> Tokenizer:
    """The tokenizer of a model, with or without a method attached. Raises UserError when its folder has none."""
    tokenizer = getattr(model, "tokenizer", None) or getattr(getattr(model, "model", None), "tokenizer", None)
    if tokenizer is None:
        raise UserError("The model's folder has no tokenizer.json or vocab.txt, so its texts cannot be read.")
    found: Tokenizer = tokenizer
    return found


def encode(settings: Settings, task: Task) -> tuple[EncodedSet, EncodedSet]:
    """The training and the test rows of a task, as the model's tokenizer reads them."""
    tokenizer = load_tokenizer(settings.model)
    train, test = task.head("train", settings.train_size), task.head("test", settings.test_size)
    return (
        encode_examples(tokenizer, train, settings.max_length),
        encode_examples(tokenizer, test, settings.max_length),
    )


@dataclass(frozen=True)
class Classes:
    """Texts with classes."""

    task: Task

    @property
    def labels(self) -> tuple[str, ...]:
        """The task's."""
        return self.task.labels

    @property
    def digest(self) -> str:
        """The task's."""
        return self.task.digest

    def check(self, settings: Settings) -> None:
        """As `Problem`."""
        self.task.head("train", settings.train_size)
        self.task.head("test", settings.test_size)

    def encode(self, settings: Settings) -> tuple[TrainingSet, EncodedSet]:
        """As the function."""
        return encode(settings, self.task)

    def score(self, model: Module, test: EncodedSet, workers: int) -> Measured:
        """Accuracy and loss."""
        found = evaluate(model, test, tokenizer_of(model).pad_id, workers=workers)
        return Measured(found.loss, found.accuracy, None, found.predictions, test.labels.tolist())


@dataclass(frozen=True)
class NextToken:
    """A plain text in windows of `max_length` tokens: at most `train_size` to train on, about `test_size` to test on."""

    corpus: Corpus
    labels: None = None

    @property
    def digest(self) -> str:
        """The text's."""
        return self.corpus.digest

    def check(self, settings: Settings) -> None:
        """Any number of windows will do."""

    def encode(self, settings: Settings) -> tuple[TrainingSet, tuple[TokenRows, int]]:
        """As `Problem`; to the test rows belong the bytes of their text."""
        tokenizer, length = load_tokenizer(settings.model), settings.max_length
        train, _ = _beginning(tokenizer, self.corpus.train, (settings.train_size + 2) * length)
        held_out, size = _beginning(tokenizer, self.corpus.held_out, settings.test_size * length)
        return PackedTokens(train[: (settings.train_size + 1) * length], length), (windows(held_out, length), size)

    def score(self, model: Module, test: tuple[TokenRows, int], workers: int) -> Measured:
        """The loss, and bits a byte. The ends of documents are predicted as well, and counted as no bytes."""
        found = evaluate_tokens(model, test[0], tokenizer_of(model).pad_id, workers=workers)
        return Measured(found.loss, bits_per_byte=found.nats / math.log(2) / test[1])


@dataclass(frozen=True)
class Answers:
    """Instructions and their outputs: at most `train_size` to train on, `test_size` held-out ones to test on."""

    rows: InstructionSet
    labels: None = None

    @property
    def digest(self) -> str:
        """Of the instructions and outputs."""
        return self.rows.digest

    def check(self, settings: Settings) -> None:
        """Any number of rows will do."""

    def encode(self, settings: Settings) -> tuple[TrainingSet, list[Instruction]]:
        """As `Problem`; the test rows stay texts, as they fit into `max_length` tokens."""
        tokenizer = load_tokenizer(settings.model)
        train, test = (
            fit(tokenizer, part[:n], settings.max_length)
            for part, n in ((self.rows.train, settings.train_size), (self.rows.test, settings.test_size))
        )
        return encode_instructions(tokenizer, train), test

    def score(self, model: Module, test: list[Instruction], workers: int) -> Measured:
        """The loss of the outputs, and the share of them that the model writes word for word."""
        written = write_answers(model, test)
        right = sum(is_match(answer, row.output) for answer, row in zip(written, test, strict=True))
        return Measured(answer_loss(model, test, workers), right / len(test))


def answer_loss(model: Module, rows: list[Instruction], workers: int) -> float:
    """-log likelihood of the outputs, in nats a token: the mean over all of their tokens."""
    tokenizer = tokenizer_of(model)
    return evaluate_tokens(model, encode_instructions(tokenizer, rows), tokenizer.pad_id, workers=workers).loss


def write_answers(model: Module, rows: list[Instruction], told: Any = None) -> list[str]:
    """What a model answers to each instruction, taking the likeliest token each time; `told` is called with the number."""
    tokenizer = tokenizer_of(model)
    chat = chat_format(tokenizer)
    lengths = [len(tokenizer.ids(row.output, whole=False)) for row in rows]
    prompts = [chat.prompt(row.words) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))  # less padding
    answers = [""] * len(rows)
    for at in range(0, len(rows), TOGETHER):
        part = order[at : at + TOGETHER]
        sampling = Sampling(max(lengths[i] for i in part) + 4)  # what is longer cannot be right
        for i, made in zip(part, generate(model, [prompts[i] for i in part], sampling), strict=True):
            answers[i] = made.text.strip()
        if told is not None:
            told(min(at + TOGETHER, len(rows)))
    return answers


def is_match(answer: str, output: str) -> bool:
    """Whether they are the same words, but for upper case, white space and a full stop at the end."""
    return normalise(answer).rstrip(".! ") == normalise(output).rstrip(".! ")


def _beginning(tokenizer: Tokenizer, documents: tuple[str, ...], tokens: int) -> tuple[Any, int]:
    """The tokens of the first documents, about `tokens` of them if there are as many, and the bytes of their text."""
    kept: list[str] = []
    room = tokens
    for text in documents:
        length = len(tokenizer.ids(text, whole=False)) + 1
        if length > room:
            text = text[: round(len(text) * room / length)]
        if text:
            kept.append(text)
        room -= length
        if room <= 0:
            break
    return encode_documents(tokenizer, tuple(kept)), sum(len(text.encode()) for text in kept)

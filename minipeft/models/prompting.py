"""Prompting: a causal model classifies by how likely it finds the word of each class; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from minipeft.backend import Array, active
from minipeft.backend.workers import Workers
from minipeft.data.batching import pad
from minipeft.data.patterns import Pattern
from minipeft.data.splits import Example
from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError
from minipeft.models.pretrained import Pretrained
from minipeft.models.reading import base_of, common_prefix, context_of, read, tokenizer_of
from minipeft.models.writing import prompt_ids
from minipeft.nn import KVCache, LanguageHead, LastTokenHead, Module, evaluating

CONTENT_FREE = ("N/A", "[MASK]", "")  # texts that say nothing (arXiv 2102.09690, section 5)


def label_likelihoods(
    model: Module,
    prompts: Sequence[str],
    labels: Sequence[str],
    batch_size: int = 16,
    on_done: Callable[[int], None] | None = None,
    workers: int = 1,
) -> list[list[float]]:
    """log p(label | prompt) in nats, for each prompt that of every label.

    A label t₁ t₂ ... of several tokens has the sum log p(t₁ | prompt) + log p(t₂ | prompt t₁) + ... What all prompts
    begin with, such as the examples of few-shot prompts, is read once.

    Args:
        model: a causal language model, with or without a method.
        prompts: the texts.
        labels: what may follow, as a rule with a blank first.
        batch_size: prompts that are read side by side.
        on_done: called with the number of prompts that are done; of several workers, the first one's count for all.
        workers: processes that share the batches.

    Raises:
        UserError: a prompt with its label is longer than the context; a label would be cut into other tokens with the
            prompt than after it; or the model is not a causal one with a tokenizer.
    """
    tokenizer, most = tokenizer_of(model), context_of(model)
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    tails = [[label_ids(tokenizer, prompt, label) for label in labels] for prompt in prompts]
    for prompt, row, ends in zip(prompts, rows, tails, strict=True):
        length = len(row) + max(len(end) for end in ends) - 1
        if length > most:
            raise UserError(
                f"The prompt {prompt[:40]!r}... has {length} tokens with its label; this model reads at most {most}. "
                "Give fewer examples or shorter texts."
            )
    scores = active().shared((len(rows), len(labels)), "float64")
    shared = common_prefix(rows) if rows else 0
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    with evaluating(model):
        prefix = None
        if shared:
            prefix = KVCache(base_of(model).config.layers)
            model([rows[0][:shared]], cache=prefix, last=True)
        with Workers(min(active().useful_workers(workers), len(batches) or 1)) as pool:
            for number, batch in enumerate(pool.mine(batches), start=1):
                cache, logits = read(model, [rows[i][shared:] for i in batch], tokenizer.pad_id, prefix)
                for label in range(len(labels)):
                    ends = [tails[i][label] for i in batch]
                    found = _tail_likelihoods(model, cache, logits, ends, tokenizer.pad_id)
                    scores[active().asarray(batch), label] = active().asarray(found)
                if on_done is not None and pool.rank == 0:
                    on_done(min(number * pool.count * batch_size, len(rows)))
    likelihoods: list[list[float]] = active().to_numpy(scores).tolist()
    return likelihoods


def classify(
    model: Module,
    pattern: Pattern,
    examples: Sequence[Example],
    shots: Sequence[Example] = (),
    calibrate: bool = False,
    on_done: Callable[[int], None] | None = None,
    workers: int = 1,
) -> list[list[float]]:
    """The probability of each class of every example, by the likelihood of its word among the words of the pattern.

    Args:
        model: a causal language model, with or without a method.
        pattern: how an example is asked, and the word of each class.
        examples: what is to be classified; their labels are not looked at.
        shots: examples with answers that go before; none for zero-shot.
        calibrate: divide by the probabilities that texts without content get, the mean over three of them: what the model
            answers whatever is asked is no evidence (contextual calibration, arXiv 2102.09690, section 5).
        on_done: called with the number of examples that are done.
        workers: processes that share the work.

    Raises:
        UserError: as `label_likelihoods`.
    """
    prompts = [pattern.prompt(example, shots) for example in examples]
    found = label_likelihoods(model, prompts, pattern.answers, on_done=on_done, workers=workers)
    if not calibrate:
        return [_softmax(row) for row in found]
    empty = [Example(text, 0, text) for text in CONTENT_FREE]
    bias = classify(model, pattern, empty, shots)
    mean = [sum(column) / len(empty) for column in zip(*bias, strict=True)]
    return [_softmax([score - math.log(p) for score, p in zip(row, mean, strict=True)]) for row in found]


def as_classifier(model: Pretrained, pattern: Pattern, labels: Sequence[str]) -> Pretrained:
    """Turn a causal model into a classifier for pattern-based fine-tuning (arXiv 2305.16938, section 3.2), in place.

    The logits of a question are those of the words of the pattern, after its last token: the classifier's matrix starts as
    the columns that the language head has for them, and so, before training, classifies as zero-shot prompting does.

    Raises:
        UserError: a word is more than one token, or the model is not a causal one with a tokenizer.
    """
    tokenizer, head = tokenizer_of(model), base_of(model).head
    assert isinstance(head, LanguageHead)
    ids = [label_ids(tokenizer, pattern.template, answer) for answer in pattern.answers]
    for answer, tokens in zip(pattern.answers, ids, strict=True):
        if len(tokens) > 1:
            pieces = ", ".join(repr(tokenizer.decode([token])) for token in tokens)
            raise UserError(
                f"The word {answer.strip()!r} is {len(tokens)} tokens to this model ({pieces}); a classifier needs one "
                "token a class. Choose other words for the pattern; prompting takes words of any length."
            )
    columns = active().asarray([tokens[0] for tokens in ids])
    W = head.weight.data[columns].T if head.tied else head.weight.data[:, columns]  # (d, classes)
    classifier = LastTokenHead(W.shape[0], len(ids), model.config.dropout)
    classifier.classifier.weight.data = W.copy()
    model.head, model.task, model.labels = classifier, "classification", tuple(labels)
    return model


def label_ids(tokenizer: Tokenizer, prompt: str, label: str) -> list[int]:
    """The tokens that a label adds to a prompt.

    Raises:
        UserError: it adds none, or changes those of the prompt, so that its likelihood after the prompt is not defined.
    """
    before = prompt_ids(tokenizer, prompt)
    both = tokenizer.ids(prompt + label) if prompt else [*before, *tokenizer.ids(label)]
    if len(both) <= len(before) or both[: len(before)] != before:
        raise UserError(
            f"The label {label!r} does not add tokens of its own to the prompt that ends in {prompt[-20:]!r}. Let the "
            "prompt end at a word or a sign, and the label begin with a blank."
        )
    return both[len(before) :]


def _tail_likelihoods(model: Module, cache: KVCache, logits: Array, tails: list[list[int]], pad_id: int) -> list[float]:
    """log p of each row's tail after what `cache` has read, where `logits` (batch, vocab) are of its first token."""
    steps = [_log_p(logits[:, None], [tail[:1] for tail in tails])]
    if any(len(tail) > 1 for tail in tails):
        ids, mask = pad([tail[:-1] for tail in tails], pad_id)
        later = model(ids, mask, cache=cache.repeat(1)).data  # a copy: other labels go on from the same place
        steps.append(_log_p(later, [tail[1:] for tail in tails]))
    return [sum(parts) for parts in zip(*steps, strict=True)]


def _log_p(logits: Array, tokens: list[list[int]]) -> list[float]:
    """log softmax of (batch, width, vocab) at the tokens of each row, `width` of them or fewer, summed over them."""
    backend, xp = active(), active().xp
    ids, mask = (backend.asarray(array) for array in pad(tokens, 0))
    x = logits.astype("float64")
    x = x - x.max(axis=-1, keepdims=True)
    total = xp.log(xp.exp(x).sum(axis=-1))  # (batch, width)
    chosen = xp.take_along_axis(x, ids[..., None], axis=-1)[..., 0]
    return [float(p) for p in backend.to_numpy(((chosen - total) * mask).sum(axis=-1))]


def _softmax(scores: Sequence[float]) -> list[float]:
    most = max(scores)
    parts = [math.exp(score - most) for score in scores]
    return [part / sum(parts) for part in parts]

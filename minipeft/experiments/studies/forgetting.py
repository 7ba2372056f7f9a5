"""Forgetting: how much worse a language model predicts its pre-training text after it was fine-tuned to classify.

The classifier's body, as fine-tuned, is given the model's own language head again and reads the text; once more with the
method switched off, where it can be (LoRA, adapters, the subspace).

How much is forgotten is a matter of the learning rate as much as of the method, so every method is run at every rate. Its
own is the best of them, found on validation rows.

The text is the held-out part of a corpus, on which a small model is pre-trained first. For another model it is what the
model writes itself, at temperature 1, which it knows as it knows its pre-training text: the loss that is added is then the
divergence KL(before ‖ after) a token. Or the held-out part of a corpus that it was pre-trained on (`minipeft pretrain`).
"""

from __future__ import annotations

import contextlib
import math

from minipeft.backend import random
from minipeft.data.corpus import encode_documents
from minipeft.data.token_rows import TokenRows, windows
from minipeft.errors import UserError
from minipeft.experiments.cell import OnStep, Settings
from minipeft.experiments.methods import parse_method
from minipeft.experiments.problems import tokenizer_of
from minipeft.experiments.studies.bases import shape_of
from minipeft.experiments.studies.frame import Job, Jobs, Lab, Plan, Row, Study, tuned
from minipeft.experiments.studies.pretraining import pretrained
from minipeft.models import Pretrained, Sampling, generate, load_model
from minipeft.models.writing import prompt_ids
from minipeft.nn import LanguageHead, Module
from minipeft.peft import PeftModel
from minipeft.training import evaluate_tokens


def jobs(lab: Lab) -> Jobs:
    """The text before any training, then after each method."""
    if shape := shape_of(lab.plan.settings.model):
        yield from pretrained(lab, shape)
    base = load_model(lab.settings.model, task="causal-lm")
    text = old_text(lab, base)

    def before(on_step: OnStep | None) -> Row:
        return {"loss": round(loss_on(lab, base, text), 6), "tokens": text.targets(range(len(text)))}

    yield Job("before", before)
    methods, rates = lab.plan.choices["methods"], lab.plan.choices["rates"]
    own = {}
    for method in methods:
        own[method] = (yield from tuned(lab, method, rates)).lr
    for seed in lab.seeds:
        for method in methods:
            for lr in rates:
                tags = {"own_rate": lr == own[method]}
                measure = lambda cell: forgotten(lab, cell.model, base, text)
                yield lab.job(parse_method(method, lr), seed, f"{method} at {lr:g}", tags, measure)


def forgotten(lab: Lab, model: PeftModel, base: Pretrained, text: TokenRows) -> Row:
    """The `loss` on the old text, None where it is not finite; `loss_off` with the method switched off, if it can be."""
    row: Row = {}
    reader = as_language_model(model, base)
    loss = loss_on(lab, reader, text)
    row["loss"] = round(loss, 6) if math.isfinite(loss) else None
    with contextlib.suppress(UserError), reader.disable_adapter():  # the model's own weights cannot be switched off
        row["loss_off"] = round(loss_on(lab, reader, text), 6)
    return row


def old_text(lab: Lab, base: Pretrained) -> TokenRows:
    """The text of the plan, about so many tokens from all over it, in rows that the model can read at once."""
    choices, tokenizer = lab.plan.choices, base.tokenizer
    if tokenizer is None:
        raise UserError(f"{lab.settings.model} has no tokenizer, so no text can be read to it.")
    context = min(choices["context"], base.config.max_positions - 1)
    if lab.corpus is not None:
        return windows(encode_documents(tokenizer, lab.corpus.held_out), context).sample(choices["tokens"] // context)
    random.seed(0)
    made = generate(base, [""] * math.ceil(choices["tokens"] / context), Sampling(context, temperature=1.0))
    rows = [windows([*prompt_ids(tokenizer, ""), *text.ids], context + 1) for text in made if text.ids]
    return TokenRows(tuple(ids for row in rows for ids in row.ids), tuple(ids for row in rows for ids in row.labels))


def as_language_model(model: PeftModel, base: Pretrained) -> PeftModel:
    """Exchange the classifier's head for the base's language head; a tied one is the word table as it is now."""
    with contextlib.suppress(UserError):  # adapters cannot be merged, and leave the word table alone
        model.merge_adapter()  # a subspace may move the table, which the head is to see
    body = model.model
    assert isinstance(body, Pretrained)
    assert isinstance(base.head, LanguageHead)
    body.head = LanguageHead(body.embed.word) if base.head.tied else base.head
    return model


def loss_on(lab: Lab, model: Module, text: TokenRows) -> float:
    """Mean cross-entropy in nats a token."""
    return evaluate_tokens(model, text, tokenizer_of(model).pad_id, workers=lab.settings.workers).loss


METHODS = ["full", "topk:1", "topk:2", "adapter:16", "lora:8", "lora:8:all-linear", "intrinsic:1000", "head"]
STUDY = Study(
    "forgetting",
    "How much does each method forget of what the model was pre-trained on?",
    full=Plan(
        Settings("made:tiny"),
        5,
        {
            "methods": METHODS,
            "corpus": "shakespeare",
            "vocab_size": 1024,
            "context": 128,
            "pretrain_epochs": 4,
            "tokens": 8192,
            "rates": [2e-4, 6e-4, 2e-3, 6e-3, 2e-2],
        },
    ),
    quick=Plan(
        Settings("made:mini", train_size=200, test_size=200, epochs=2),
        1,
        {
            "methods": METHODS,
            "corpus": "shakespeare",
            "vocab_size": 1024,
            "context": 128,
            "pretrain_epochs": 1,
            "tokens": 4096,
            "rates": [2e-3, 1e-2],
        },
    ),
    jobs=jobs,
)

"""Forgetting: how much worse a language model predicts its pre-training text after it was fine-tuned to classify.

The classifier's body, as fine-tuned, is given the model's own language head again and reads held-out text. What can be
switched off (LoRA, adapters, the subspace) forgets nothing once it is off: the base is there to the last bit.

Which text a model was pre-trained on is known for sure of one's own: --model OUT/model of `minipeft pretrain`, whose
held-out tenth of the corpus is the text here.
"""

from __future__ import annotations

import contextlib

from minipeft.data.corpus import encode_documents, load_corpus
from minipeft.data.token_rows import TokenRows, windows
from minipeft.errors import UserError
from minipeft.experiments.cell import OnStep, Settings
from minipeft.experiments.methods import MethodSpec
from minipeft.experiments.problems import tokenizer_of
from minipeft.experiments.studies.frame import Job, Jobs, Lab, Plan, Row, Study, tuned
from minipeft.models import Pretrained, load_model
from minipeft.nn import LanguageHead, Module
from minipeft.peft import PeftModel
from minipeft.training import evaluate_tokens


def jobs(lab: Lab) -> Jobs:
    """The text before any training, then after each method."""
    base = load_model(lab.settings.model, task="causal-lm")
    text = held_out_text(lab, base)

    def before(on_step: OnStep | None) -> Row:
        return {"loss": round(loss_on(lab, base, text), 6), "tokens": text.targets(range(len(text)))}

    yield Job("before", before)
    specs = []
    for method in lab.plan.choices["methods"]:
        specs.append((yield from tuned(lab, method, lab.plan.choices["rates"])))
    for seed in lab.seeds:
        for spec in specs:
            yield _job(lab, base, text, spec, seed)


def _job(lab: Lab, base: Pretrained, text: TokenRows, spec: MethodSpec, seed: int) -> Job:
    def run(on_step: OnStep | None) -> Row:
        cell = lab.run(spec, seed, on_step)
        return {**cell.row, "loss": round(loss_on(lab, as_language_model(cell.model, base), text), 6)}

    return Job(f"{spec.name}, seed {seed}", run)


def held_out_text(lab: Lab, base: Pretrained) -> TokenRows:
    """The first tokens of the text that `minipeft pretrain` holds out of the corpus, in windows."""
    choices = lab.plan.choices
    if base.tokenizer is None:
        raise UserError(f"{lab.settings.model} has no tokenizer, so no text can be read to it.")
    context = min(choices["context"], base.config.max_positions)
    tokens = encode_documents(base.tokenizer, load_corpus(choices["corpus"]).held_out)
    return windows(tokens[: choices["tokens"] + 1], context)


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
        Settings("glassllm"),
        3,
        {
            "methods": METHODS,
            "corpus": "shakespeare",
            "tokens": 8192,
            "context": 128,
            "rates": [6e-5, 2e-4, 6e-4, 2e-3],
        },
    ),
    quick=Plan(
        Settings("glassllm", train_size=200, test_size=200, epochs=2),
        1,
        {"methods": METHODS, "corpus": "shakespeare", "tokens": 4096, "context": 128, "rates": [1e-3]},
    ),
    jobs=jobs,
)

"""Prompting: the likelihoods are the model's own, whichever way they are computed; and what cannot be asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
from decoders import CONTEXT, TOKENIZER, tiny_decoder

import minipeft as mp
from minipeft.data import Example
from minipeft.data.patterns import Pattern, encode_prompts
from minipeft.errors import UserError
from minipeft.models import load_model
from minipeft.models.prompting import as_classifier, classify, label_ids, label_likelihoods
from minipeft.nn import Linear, Transformer
from minipeft.peft import FullConfig, LoraConfig, get_peft_model
from minipeft.training import Trainer, TrainingConfig, evaluate

# " the" and " sat" are one token, " naïve" and " good" several; the prompts differ in length and share a beginning
LABELS = [" the", " sat", " naïve", " good"]
PROMPTS = ["the cat sat on the mat and", "the cat sat on", "the cat sat on the log: a dog", "the cat sat on a film"]
EXAMPLES = [Example(text, i % 2) for i, text in enumerate(["a dog", "the film was bad", "log", "the day is fine"])]
PATTERN = Pattern("{text} is:", ("the", "sat"), separator=" ")
every_family = pytest.mark.parametrize("family", ["llama", "gpt2"])


def by_hand(model, prompt, label):
    """Σ log p of the label's tokens, from the logits of the whole text, without a cache."""
    before, ids = TOKENIZER.ids(prompt), TOKENIZER.ids(prompt + label)
    with mp.no_grad():
        logits = model(np.array([ids])).data[0].astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return sum(log_p[place - 1, ids[place]] for place in range(len(before), len(ids)))


@every_family
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 1), (16, 1), (1, 2), (2, 3)])
def test_a_label_has_the_sum_of_its_tokens_log_likelihoods(family, batch_size, workers):
    model = tiny_decoder(family)
    lengths = [len(label_ids(TOKENIZER, PROMPTS[0], label)) for label in LABELS]
    assert min(lengths) == 1
    assert max(lengths) > 2
    told = []
    found = label_likelihoods(model, PROMPTS, LABELS, batch_size, told.append, workers)
    assert told == sorted(told)
    assert told[-1] == len(PROMPTS)
    expected = [[by_hand(model, prompt, label) for label in LABELS] for prompt in PROMPTS]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_the_shared_beginning_is_read_once(monkeypatch):
    read = []
    forward = Transformer.forward

    def counting(self, ids, *rest, **options):
        read.append(np.asarray(ids).size)
        return forward(self, ids, *rest, **options)

    monkeypatch.setattr(Transformer, "forward", counting)
    shots, questions = EXAMPLES[:2], [Example(word, 0) for word in ["cat", "dog", "mat", "log", "film", "book"]]
    classify(tiny_decoder(), PATTERN, questions, shots)
    prompts = [TOKENIZER.ids(PATTERN.prompt(row, shots)) for row in questions]
    beginning = len(TOKENIZER.ids(PATTERN.shots(shots).rstrip()))
    assert beginning > 10
    rest = len(prompts) * (max(map(len, prompts)) - beginning)
    assert sum(read) <= beginning + rest


def test_two_labels_share_the_probability_of_both():
    p = classify(tiny_decoder(), PATTERN, EXAMPLES)
    ask = [PATTERN.question(row) for row in EXAMPLES]
    for row, (a, b) in zip(p, label_likelihoods(tiny_decoder(), ask, PATTERN.answers), strict=True):
        assert sum(row) == pytest.approx(1)
        assert row[0] == pytest.approx(1 / (1 + math.exp(b - a)))


def test_calibration_makes_the_empty_question_even_and_keeps_the_order_of_rows():
    model = tiny_decoder()
    raw, even = classify(model, PATTERN, EXAMPLES), classify(model, PATTERN, EXAMPLES, calibrate=True)
    assert [*np.argsort([row[0] for row in raw])] == [*np.argsort([row[0] for row in even])]
    empty = [Example(text, 0) for text in ("N/A", "[MASK]", "")]
    q = np.mean(classify(model, PATTERN, empty), axis=0)
    for before, after in zip(raw, even, strict=True):  # the odds are divided by those of the texts without content
        assert after[0] / after[1] == pytest.approx(before[0] / before[1] / (q[0] / q[1]))


def test_a_method_counts():
    model = tiny_decoder()
    before = label_likelihoods(model, PROMPTS, LABELS)
    peft = get_peft_model(model, LoraConfig(r=2))
    np.testing.assert_array_equal(label_likelihoods(peft, PROMPTS, LABELS), before)
    for layer in peft.method.layers.values():
        layer.B.data[...] = 0.3
    assert np.abs(np.subtract(label_likelihoods(peft, PROMPTS, LABELS), before)).max() > 1e-3


@every_family
def test_before_training_the_classifier_says_what_zero_shot_prompting_says(family):
    p = classify(tiny_decoder(family), PATTERN, EXAMPLES)
    model = as_classifier(tiny_decoder(family), PATTERN, ("no", "yes"))
    rows = encode_prompts(TOKENIZER, PATTERN, EXAMPLES)
    batch = rows.batch(range(len(rows)), TOKENIZER.pad_id)
    with mp.no_grad():
        logits = model(batch.input_ids, batch.attention_mask).data
    np.testing.assert_allclose(np.log(p), logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), atol=1e-4)


def test_an_untied_head_is_read_along_its_own_axis():
    tied, untied = tiny_decoder(), tiny_decoder()
    vocab, d = untied.head.weight.shape
    untied.head.tied, untied.head.weight = False, Linear(d, vocab, bias=False).weight
    untied.head.weight.data[...] = tied.head.weight.data.T
    one, other = (as_classifier(model, PATTERN, ("no", "yes")) for model in (tied, untied))
    np.testing.assert_array_equal(one.head.classifier.weight.data, other.head.classifier.weight.data)


def test_a_tuned_classifier_is_a_folder_as_any_other(tmp_path, torch):
    transformers = pytest.importorskip("transformers")
    model = as_classifier(tiny_decoder(), PATTERN, ("no", "yes"))
    rows = encode_prompts(TOKENIZER, PATTERN, EXAMPLES * 4)
    tuned = get_peft_model(model, FullConfig())
    Trainer(tuned, rows, TOKENIZER.pad_id, TrainingConfig(lr=0.01, epochs=8, batch_size=8)).run()
    assert evaluate(tuned, rows, TOKENIZER.pad_id).accuracy == 1
    tuned.merge_and_unload().save_pretrained(tmp_path)
    assert load_model(tmp_path).labels == ("no", "yes")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = rows.encodings[1].input_ids[None]
    with torch.no_grad(), mp.no_grad():
        np.testing.assert_allclose(theirs(torch.tensor(ids).long()).logits.numpy(), model(ids).data, atol=1e-4)


# ---- what cannot be asked


def test_a_prompt_longer_than_the_context_is_an_error():
    shots = EXAMPLES * 4
    length = len(TOKENIZER.ids(PATTERN.prompt(EXAMPLES[1], shots)))
    assert length > CONTEXT
    with pytest.raises(UserError, match=rf"has {length} tokens with its label.*at most {CONTEXT}.*fewer examples"):
        classify(tiny_decoder(), PATTERN, EXAMPLES[1:2], shots)


def test_the_last_token_of_a_label_needs_no_place_of_its_own():
    prompt = TOKENIZER.decode(TOKENIZER.ids("the cat sat on " * 40)[:CONTEXT])
    assert len(TOKENIZER.ids(prompt)) == CONTEXT
    assert len(label_likelihoods(tiny_decoder(), [prompt], [" the"])[0]) == 1
    with pytest.raises(UserError, match=f"at most {CONTEXT}"):
        label_likelihoods(tiny_decoder(), [prompt], [" good"])


def test_a_word_of_two_tokens_is_no_class_of_a_classifier():
    pattern = Pattern("{text} is:", ("the", "good"))
    tokens = len(label_ids(TOKENIZER, "x is:", " good"))
    with pytest.raises(UserError, match=rf"'good' is {tokens} tokens to this model.*Choose other words"):
        as_classifier(tiny_decoder(), pattern, ("no", "yes"))


def test_a_label_that_changes_the_prompts_tokens_is_an_error():
    assert TOKENIZER.ids("on the")[: len(TOKENIZER.ids("on t"))] != TOKENIZER.ids("on t")
    with pytest.raises(UserError, match="'he' does not add tokens of its own"):
        label_likelihoods(tiny_decoder(), ["on t"], ["he"])
    with pytest.raises(UserError, match="'' does not add"):
        label_likelihoods(tiny_decoder(), ["on"], [""])


@pytest.mark.slow
def test_smollm2_knows_a_good_review_from_a_bad_one(asset):
    pytest.importorskip("gguf")
    asset("smollm2")
    model = load_model("smollm2", task="causal-lm")
    pattern = Pattern("Review: {text}\nSentiment:", ("negative", "positive"))
    rows = [Example("A wonderful film, I loved every minute.", 1), Example("A dull, terrible waste of time.", 0)]
    shots = [Example("Awful. I left after ten minutes.", 0), Example("Great fun, and beautifully made.", 1)]
    assert [row[1] > 0.5 for row in classify(model, pattern, rows, shots)] == [True, False]

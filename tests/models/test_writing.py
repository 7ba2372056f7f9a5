"""Writing on: cached and uncached paths agree, draws follow the distribution, and texts end where they should."""

from __future__ import annotations

import numpy as np
import pytest
from decoders import CONTEXT, TOKENIZER, tiny_decoder

import minipeft as mp
from minipeft.data import pad
from minipeft.errors import UserError
from minipeft.models import Sampling, generate
from minipeft.models.reading import common_prefix, read, read_afresh
from minipeft.models.sampling import choose
from minipeft.models.writing import _Row, _uncertain, end_ids
from minipeft.nn import evaluating
from minipeft.peft import IntrinsicConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

PROMPTS = ["the cat sat on", "the cat sat on the mat and a dog", "the cat", "a film was good: no?"]
every_family = pytest.mark.parametrize("family", ["llama", "gpt2"])


def texts(model, prompts=PROMPTS, listener=None, **settings):
    return [made.text for made in generate(model, prompts, Sampling(**settings), listener)]


# ---- the paths agree


@every_family
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}])
def test_cached_and_uncached_paths_write_the_same(family, settings):
    model = tiny_decoder(family)
    cached = generate(model, PROMPTS, Sampling(20, **settings))
    uncached = generate(model, PROMPTS, Sampling(20, **settings, use_cache=False))
    assert [made.ids for made in cached] == [made.ids for made in uncached]
    assert len({made.text for made in cached}) > 1
    assert all(len(made.ids) > 5 for made in cached)


@every_family
def test_the_logits_of_a_batch_are_those_of_each_row_alone(family):
    model = tiny_decoder(family)
    rows = [TOKENIZER.ids(prompt) for prompt in PROMPTS]
    with evaluating(model):
        alone = [model(np.array([row])).data[0, -1] for row in rows]
        np.testing.assert_allclose(read(model, rows, 0)[1], alone, atol=1e-4)
        np.testing.assert_allclose(read_afresh(model, rows, 0), alone, atol=1e-4)


@every_family
def test_greedy_writes_what_a_loop_by_hand_writes(family):
    model = tiny_decoder(family)
    ids = TOKENIZER.ids(PROMPTS[0])
    start = len(ids)
    with mp.no_grad():
        for _ in range(15):
            ids.append(int(model(np.array([ids])).data[0, -1].argmax()))
    (made,) = generate(model, PROMPTS[:1], Sampling(15))
    until = next((i for i, token in enumerate(ids[start:]) if token in end_ids(TOKENIZER)), 15)
    assert made.ids == ids[start : start + until]


def test_a_shared_prefix_is_computed_once(monkeypatch):
    model = tiny_decoder()
    seen: list[tuple[int, ...]] = []
    embed = model.embed.forward
    monkeypatch.setattr(model.embed, "forward", lambda ids, *rest: seen.append(ids.shape) or embed(ids, *rest))
    prompt = "the cat sat on the mat and the dog"
    length = len(TOKENIZER.ids(prompt))
    generate(model, [prompt] * 5, Sampling(3, temperature=1.0))
    assert seen[:2] == [(1, length - 1), (5, 1)]
    assert all(shape[1] == 1 for shape in seen[1:])
    assert common_prefix([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 9]]) == 2
    assert common_prefix([[1, 2], [1, 2]]) == 1


def test_a_given_prefix_is_continued_and_left_as_it_is():
    model = tiny_decoder()
    rows = [TOKENIZER.ids(prompt) for prompt in PROMPTS]
    start, rest = rows[0][:2], [row[1:] for row in rows]
    with evaluating(model):
        prefix, _ = read(model, [start], 0)
        for _ in range(2):
            expected = read_afresh(model, [start + row for row in rest], 0)
            np.testing.assert_allclose(read(model, rest, 0, prefix)[1], expected, atol=1e-4)
        assert prefix.slots == 2


@pytest.mark.parametrize("config", [LoraConfig(r=2), IntrinsicConfig(d=30)])
def test_a_model_with_a_method_writes_too(config):
    plain = texts(tiny_decoder(), max_new_tokens=10)
    model = get_peft_model(tiny_decoder(), config)
    assert texts(model, max_new_tokens=10) == plain  # a fresh method changes nothing
    rng = np.random.default_rng(0)
    for p in model.trainable_parameters().values():
        p.data += rng.standard_normal(p.shape).astype("float32")
    changed = texts(model, max_new_tokens=10)
    assert changed != plain
    assert changed == texts(model, max_new_tokens=10, use_cache=False)


# ---- the draws


def test_the_same_seed_gives_the_same_text_whatever_else_is_in_the_batch():
    model = tiny_decoder()
    mp.seed(3)
    first = texts(model, temperature=1.0)
    mp.seed(3)
    assert texts(model, temperature=1.0) == first
    assert texts(model, PROMPTS[:2], temperature=1.0) == first[:2]
    mp.seed(4)
    assert texts(model, temperature=1.0) != first


def test_draws_follow_the_distribution():
    p = np.array([0.1, 0.4, 0.05, 0.2, 0.25])
    draws = (np.arange(20000) + 0.5) / 20000
    logits = np.log(np.tile(p, (20000, 1))).astype("float32")

    def shares(**settings):
        return np.bincount(choose(logits, Sampling(temperature=1.0, **settings), draws), minlength=5) / 20000

    np.testing.assert_allclose(shares(), p, atol=1e-4)
    np.testing.assert_allclose(shares(top_k=2), np.array([0, 0.4, 0, 0, 0.25]) / 0.65, atol=1e-4)
    np.testing.assert_allclose(shares(top_p=0.7), np.array([0, 0.4, 0, 0.2, 0.25]) / 0.85, atol=1e-4)
    np.testing.assert_allclose(shares(top_p=0.01), [0, 1, 0, 0, 0], atol=1e-4)
    np.testing.assert_allclose(shares(top_k=3, top_p=0.5), np.array([0, 0.4, 0, 0, 0.25]) / 0.65, atol=1e-4)
    cold = np.bincount(choose(logits, Sampling(temperature=0.5), draws), minlength=5) / 20000
    np.testing.assert_allclose(cold, p**2 / (p**2).sum(), atol=1e-4)


@pytest.mark.parametrize("draw", [0.0, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_unit_interval_give_a_token_that_was_kept(draw):
    logits = np.log(np.array([[0.3, 0.1, 0.6]], dtype="float32"))
    assert choose(logits, Sampling(temperature=1.0, top_k=2), [draw]) == ([2] if draw == 0 else [0])


# ---- the ends


def test_it_stops_at_a_stop_text_which_is_left_out():
    model = tiny_decoder()
    (whole,) = generate(model, PROMPTS[:1], Sampling(20))
    stop = whole.text[4:7]
    (cut,) = generate(model, PROMPTS[:1], Sampling(20, stop=("never", stop)))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.ended == "stop"
    assert whole.ended != "stop"


@pytest.mark.parametrize("use_cache", [True, False])
def test_each_row_stops_at_the_end_token_and_the_others_go_on(monkeypatch, use_cache):
    model = tiny_decoder()
    monkeypatch.setattr("minipeft.models.writing.end_ids", lambda tokenizer: {-1})
    whole = generate(model, PROMPTS, Sampling(20))
    assert {made.ended for made in whole} == {"length"}
    end = whole[1].ids[7]
    monkeypatch.setattr("minipeft.models.writing.end_ids", lambda tokenizer: {end})
    cut = generate(model, PROMPTS, Sampling(20, use_cache=use_cache))
    assert cut[1].ended == "end"
    for made, before in zip(cut, whole, strict=True):
        assert made.ids == (before.ids[: before.ids.index(end)] if end in before.ids else before.ids)
    assert len({len(made.ids) for made in cut}) > 1


def test_pieces_are_told_once_they_are_certain():
    row = _Row(0, [1], TOKENIZER, Sampling(50, stop=("END",)), 50)
    tokens = TOKENIZER.ids("a 🙂 EN EEND of it")
    pieces = [row.take(token) for token in tokens if not row.made.ended]
    assert "".join(pieces) == row.made.text == "a 🙂 EN E"
    assert row.made.ended == "stop"
    assert not any("\ufffd" in piece for piece in pieces)
    assert _uncertain("some E", ("END",)) == 1
    assert _uncertain("some EN", ("END", "N!")) == 2
    assert _uncertain("some ENx", ("END",)) == 0


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"stop": ("e", "o")}])
def test_streamed_pieces_make_the_text(settings):
    told = [""] * len(PROMPTS)

    def listen(row, piece):
        told[row] += piece

    assert texts(tiny_decoder(), listener=listen, **settings) == told


def test_the_context_is_filled_to_its_last_place_and_no_further():
    model = tiny_decoder()
    (made,) = generate(model, PROMPTS[:1], Sampling(1000, temperature=1.0, top_k=3))
    assert made.ended in ("context", "end")
    room = CONTEXT - len(TOKENIZER.ids(PROMPTS[0])) + 1
    if made.ended == "context":
        assert len(made.ids) == room
    full = TOKENIZER.decode(TOKENIZER.ids("the cat sat on " * 40)[:CONTEXT])
    ids = TOKENIZER.ids(full)
    assert len(ids) == CONTEXT
    (last,) = generate(model, [full])
    assert len(last.ids) + (last.ended == "end") == 1


@every_family
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_long_prompt_beside_it_does_not_cut_a_row_short(family, use_cache):
    model = tiny_decoder(family)
    long = TOKENIZER.decode(TOKENIZER.ids("the cat sat on " * 40)[: CONTEXT - 1])
    assert len(TOKENIZER.ids(long)) == CONTEXT - 1
    sampling = Sampling(20, use_cache=use_cache)
    alone = [generate(model, [prompt], sampling)[0] for prompt in ("a", long)]
    assert len(alone[0].ids) > 5
    assert [made.ended for made in alone] == ["length", "context"]
    assert generate(model, ["a", long], sampling) == alone


@pytest.mark.parametrize("config", [PromptTuningConfig(5), PrefixTuningConfig(5)])
def test_virtual_tokens_take_room_from_the_context(config):
    model = get_peft_model(tiny_decoder(), config)
    (made,) = generate(model, ["a"], Sampling(1000))
    assert made.ended == "context"
    assert len(made.ids) == CONTEXT - 5 - len(TOKENIZER.ids("a")) + 1
    with model.disable_adapter():
        assert len(generate(model, ["a"], Sampling(1000))[0].ids) == len(made.ids) + 5


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_prompt_longer_than_the_context_is_an_error(use_cache):
    prompt = "the cat sat on " * 40
    with pytest.raises(UserError, match=rf"has {len(TOKENIZER.ids(prompt))} tokens.*at most {CONTEXT}"):
        generate(tiny_decoder(), ["the", prompt], Sampling(use_cache=use_cache))


def test_an_empty_prompt_starts_from_the_end_of_text_token():
    model = tiny_decoder()
    (made,) = generate(model, [""], Sampling(8))
    with mp.no_grad():
        first = int(model(np.array([[TOKENIZER.eos_id]])).data[0, -1].argmax())
    assert (made.ids or [None])[0] == (first if first not in end_ids(TOKENIZER) else None)


WRONG = [
    *({"max_new_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}),
    *({"top_p": 0}, {"top_p": 1.1}, {"stop": "x"}, {"stop": ("",)}),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(UserError):
        Sampling(**wrong)


def test_a_model_that_cannot_write():
    with pytest.raises(UserError, match="causal"):
        generate(mp.nn.Linear(2, 2), ["a"])
    model = tiny_decoder()
    model.tokenizer = None
    with pytest.raises(UserError, match="tokenizer"):
        generate(model, ["a"])
    with pytest.raises(TypeError, match="list"):
        generate(tiny_decoder(), "a")
    assert generate(tiny_decoder(), []) == []


def test_pad():
    ids, mask = pad([[1, 2, 3], [4]], 9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    ids, mask = pad([[1, 2, 3], [4]], 9, "left")
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]

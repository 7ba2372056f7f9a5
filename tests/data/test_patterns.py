"""Patterns: what a prompt looks like, which examples go into it, and patterns that are none."""

from __future__ import annotations

from collections import Counter

import pytest

import minipeft as mp
from minipeft.data import TASK_NAMES, Example, tasks
from minipeft.data.domains import AIRLINE, TECHNOLOGY, _balanced, load_two_domains
from minipeft.data.patterns import PATTERNS, Pattern, draw_shots, find_pattern
from minipeft.errors import UserError

PATTERN = Pattern("Text: {text}\nGood:", ("no", "yes"))
ROWS = [Example(f"row {i}", int(i % 3 == 0)) for i in range(60)]


def test_a_prompt_is_the_examples_with_answers_and_then_the_question():
    shots = [Example("a  fine\nday", 1), Example("a bad one", 0)]
    assert PATTERN.prompt(Example("what is {text}?", 0), shots) == (
        "Text: a fine day\nGood: yes\n\nText: a bad one\nGood: no\n\nText: what is {text}?\nGood:"
    )


def test_long_texts_are_cut_before_the_question_is_asked():
    pattern = Pattern("{text_pair} / {text}?", ("no", "yes"), most_words=3)
    assert pattern.question(Example("one two three four", 0, "a b c d e")) == "a b c / one two three?"


@pytest.mark.parametrize(
    ("template", "words", "says"),
    [
        ("Good:", ("no", "yes"), "needs {text}"),
        ("{text} {label}:", ("no", "yes"), "nothing else in braces"),
        ("{text} {0}:", ("no", "yes"), "nothing else in braces"),
        ("{text:d}:", ("no", "yes"), "nothing else in braces"),
        ("{text!z}:", ("no", "yes"), "nothing else in braces"),
        ("{text:{foo}}:", ("no", "yes"), "nothing else in braces"),
        ("{text", ("no", "yes"), "cannot be read"),
        ("{text}: ", ("no", "yes"), "ends with white space"),
        ("{text}:", ("yes",), "2 or more"),
        ("{text}:", ("yes", " "), "none of them empty"),
        ("{text}:", ("yes", "yes"), "must differ"),
        ("{text}:", ("yes", " yes"), "must differ"),
    ],
)
def test_a_pattern_that_is_none(template, words, says):
    with pytest.raises(UserError) as error:
        Pattern(template, words)
    assert says in str(error.value)


def test_a_pair_is_asked_of_a_task_without():
    with pytest.raises(UserError, match="single texts"):
        PATTERNS["boolq"].question(Example("a", 0))


def test_every_known_task_has_a_pattern_with_a_word_a_class():
    assert PATTERNS.keys() == set(TASK_NAMES)
    for name, pattern in PATTERNS.items():
        assert len(pattern.words) == len(tasks._SOURCES[name].labels)
        assert ("{text_pair}" in pattern.template) == (name in ("privacy", "boolq"))


def test_find_pattern():
    assert find_pattern("sarcasm") is not PATTERNS["sarcasm"]
    assert find_pattern("sarcasm") == PATTERNS["sarcasm"]
    assert find_pattern("boolq", words=("false", "true")).words == ("false", "true")
    assert find_pattern("boolq", words=("false", "true")).template == PATTERNS["boolq"].template
    assert find_pattern("mine.csv", "{text}?", ("a", "b")) == Pattern("{text}?", ("a", "b"))
    with pytest.raises(UserError, match="Did you mean 'sarcasm'"):
        find_pattern("sarcasmm")


@pytest.mark.parametrize("count", [0, 1, 7, 16])
def test_examples_are_balanced_shuffled_and_a_function_of_the_seed(count):
    drawn = {}
    for seed in range(20):
        mp.seed(seed)
        drawn[seed] = draw_shots(ROWS, count, 2)
        mp.seed(seed)
        assert draw_shots(ROWS, count, 2) == drawn[seed]
        labels = Counter(row.label for row in drawn[seed])
        assert (labels[0], labels[1]) == ((count + 1) // 2, count // 2)
        assert len({row.text for row in drawn[seed]}) == count
    if count > 1:
        assert len({tuple(row.text for row in rows) for rows in drawn.values()}) == 20
        assert len({rows[0].label for rows in drawn.values()}) == 2  # no class always comes first


def test_more_examples_than_there_are():
    with pytest.raises(UserError, match="more than 60 rows give"):
        draw_shots(ROWS, 50, 2)


def test_the_two_domains_do_not_touch(asset):
    asset("tweets")
    data = load_two_domains(100, 200)
    for rows, size in ((data.validation, 100), (data.in_domain, 200), (data.out_of_domain, 200)):
        assert Counter(row.label for row in rows) == {0: size // 2, 1: size // 2}
    for part in (data.train, data.validation, data.in_domain):
        assert all(AIRLINE.search(row.text) and not TECHNOLOGY.search(row.text) for row in part)
    assert all(TECHNOLOGY.search(row.text) and not AIRLINE.search(row.text) for row in data.out_of_domain)
    texts = [{row.text for row in part} for part in (data.train, data.validation, data.in_domain, data.out_of_domain)]
    assert all(not a & b for i, a in enumerate(texts) for b in texts[:i])
    with pytest.raises(UserError, match="an even number from 2"):
        _balanced(list(data.train[:50]), 100, "test")

"""Tasks: what the files mean, that the split is by the written rule, and that nothing leaks across it."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft.data.splits import Example, drop_duplicates, fraction, normalise, split, split_name
from minipeft.data.tasks import TASK_NAMES, Task, load_task
from minipeft.data.user_file import read_examples
from minipeft.errors import UserError

# Unique rows: facts of the data
ROWS = {"sarcasm": 28_498, "tweets": 37_154, "privacy": 10_923, "boolq": 12_697, "bbc": 2_124}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def many(n: int = 60) -> str:
    return "text,label\n" + "".join(f"row number {i},{'ab'[i % 2]}\n" for i in range(n))


# The rules of the split


def place(key: str) -> str:
    """The rule by hand: the first 16 hexadecimal digits of SHA-256 as a fraction of 16^16."""
    position = int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 16**16
    return "test" if position < 0.2 else "validation" if position < 0.3 else "train"


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8")))
def test_split_name_is_the_rule_by_hand(key):
    assert split_name(key) == place(key)
    assert 0 <= fraction(key) < 1


@pytest.mark.parametrize(
    ("key", "digest", "name"),  # digests from `printf hello | sha256sum`
    [("hello", "2cf24dba", "test"), ("world", "486ea462", "validation"), ("abc", "ba7816bf", "train")],
)
def test_split_by_published_digests(key, digest, name):
    # 0x2cf24dba / 2^32 = 0.176, 0x486ea462 / 2^32 = 0.283, 0xba7816bf / 2^32 = 0.728
    assert fraction(key) == pytest.approx(int(digest, 16) / 2**32, abs=2**-32)
    assert split_name(key) == name


def test_rows_go_where_their_hash_says_in_the_order_of_the_hash():
    examples = [Example(f"Text  {i}", 0) for i in range(300)]
    parts = split(examples)
    for name, part in parts._asdict().items():
        keys = [" ".join(example.text.lower().split()) for example in part]
        assert {place(key) for key in keys} == {name}
        assert keys == sorted(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    assert split(examples[::-1]) == parts  # whatever the order of the file
    smaller = split(examples[:100])
    assert set(smaller.test) <= set(parts.test)  # whatever the other rows


def test_duplicates():
    rows = [
        Example("Same  text", 1), Example("same\ttext ", 1), Example("no", 0), Example("NO", 1), Example("no", 0),
        Example("no", 0, "pair"), Example("no pair", 0),
    ]  # fmt: skip
    assert list(drop_duplicates(rows).values()) == [rows[0], rows[5], rows[6]]


def test_a_group_stays_together():
    parts = split([Example(f"question {i % 40}", i % 2, f"passage {i}") for i in range(400)], lambda row: row.text)
    questions = [{row.text for row in part} for part in parts]
    assert sum(map(len, questions)) == len(set.union(*questions)) == 40
    assert sum(map(len, parts)) == 400


def test_head():
    task = Task("x", ("a", "b"), *split([Example(f"row {i}", i % 2) for i in range(100)]))
    assert task.head("train", 5) == task.train[:5]
    assert task.head("test", len(task.test)) == task.test
    assert task.metric == "accuracy"
    for n in (0, -1, len(task.test) + 1):
        with pytest.raises(UserError, match=rf"{n} rows were asked.*which has {len(task.test)}"):
            task.head("test", n)
    with pytest.raises(UserError, match="Did you mean 'validation'"):
        task.head("valid", 1)


# A user's own files


def test_csv(tmp_path):
    text = '\ufeffid,label,text\r\n1,good,"two\r\nlines, a ""quote"" and a comma"\r\n\r\n2,bad,  kept as it is \r\n'
    examples, labels = read_examples(write(tmp_path, "a.csv", text))
    assert labels == ("bad", "good")
    assert examples == [Example('two\r\nlines, a "quote" and a comma', 1), Example("  kept as it is ", 0)]


def test_jsonl_with_pairs_and_integer_labels(tmp_path):
    rows = [{"text": "q\u2028", "text_pair": "p", "label": 10}, {"text": "r", "text_pair": "s", "label": 2, "id": 7}]
    path = write(tmp_path, "a.JSONL", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n\n")
    assert read_examples(path) == ([Example("q\u2028", 1, "p"), Example("r", 0, "s")], ("2", "10"))


def test_jsonl_labels_true_and_false(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    assert read_examples(path) == ([Example("a", 1), Example("b", 0)], ("false", "true"))


def test_load_a_file(tmp_path):
    task = load_task(str(write(tmp_path, "mine.csv", many())))
    assert (task.name, task.labels) == ("mine", ("a", "b"))
    assert len(task.train) + len(task.validation) + len(task.test) == 60


def test_pairs_of_a_file_are_grouped_by_text(tmp_path):
    rows = [{"text": f"Q {i % 30}", "text_pair": f"passage {i}", "label": i // 30 % 2} for i in range(120)]
    task = load_task(write(tmp_path, "pairs.jsonl", "\n".join(map(json.dumps, rows))))
    for name in ("train", "validation", "test"):
        assert {place(normalise(row.text)) for row in getattr(task, name)} == {name}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "text,label\n", "is empty: it has no rows"),
        ("a.jsonl", "\n\n", "is empty"),
        ("a.csv", "body,label\nx,1\n", "no column 'text'.*Columns found: 'body', 'label'"),
        ("a.csv", "text,class\nx,1\n", "no column 'label'.*Columns found: 'text', 'class'"),
        ("a.csv", "text;label\nx;1\n", "Columns found: 'text;label'.*separated by commas"),
        ("a.csv", "text,text,label\na,b,c\n", "more than one column 'text'"),
        ("a.csv", "text,label\nx,1\ny,2,3\n", "line 3: 3 fields, but the header has 2"),
        ("a.csv", 'text,label\n"x\ny",1\n   ,2\n', "line 4: empty text"),
        ("a.csv", "text,label\nx,\n", "line 2: missing label"),
        ("a.csv", 'text,label\nx,1\n"y"z,2\n', "line 3: not valid CSV"),
        ("a.csv", 'text,label\nx,1\n"y,2\n', "line 3: not valid CSV"),
        ("a.csv", "text,label,text_pair\nx,1,\n", "line 2: empty text_pair"),
        ("a.csv", b"text,label\nx,1\ncaf\xe9,2\n", "line 3: byte 0xe9 is not UTF-8"),
        ("a.csv", b"\xef\xbb\xbftext,label\nx,1\ncaf\xe9,2\n", "line 3: byte 0xe9 is not UTF-8"),
        ("a.csv", "text,label\nx,1\ny,1\n", "one class only, '1'"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y"\n', "line 2: not valid JSON"),
        ("a.jsonl", "[" * 100_000, "line 1: not valid JSON"),
        ("a.jsonl", '["x", 1]', "line 1: not a JSON object"),
        ("a.jsonl", '{"txt": "x", "label": 1}', "line 1: no 'text'; fields found: 'txt', 'label'"),
        ("a.jsonl", '{"text": "x"}', "line 1: no 'label'; fields found: 'text'"),
        ("a.jsonl", '{"text": 3, "label": 1}', "line 1: text must be a string, not 3"),
        ("a.jsonl", '{"text": "x", "label": null}', "line 1: missing label"),
        ("a.jsonl", '{"text": "x", "label": 0.5}', "line 1: label must be a string or an integer, not 0.5"),
        ("a.jsonl", '{"text": "\\ud83d", "label": 1}', "line 1: text holds half of a surrogate pair"),
        ("a.jsonl", '{"text": "x", "label": "\\ud83d"}', "line 1: label holds half of a surrogate pair"),
        (
            "a.jsonl",
            '{"text": "x", "label": 1}\n{"text": "y", "label": 2, "text_pair": "z"}',
            "line 2: a text_pair, unlike the rows before",
        ),
        ("a.csv", many(3), "too few rows to split: after removing duplicates, 3 rows give train"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as caught:
        load_task(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_that_is_never_trained_on(tmp_path):
    path = write(tmp_path, "a.csv", many() + "hello,rare\n")  # "hello" is in the test split, see above
    with pytest.raises(UserError, match="no row of the class 'rare' is in the train split"):
        load_task(path)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        load_task(tmp_path / "nowhere.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        load_task(tmp_path / "folder.csv")
    with pytest.raises(UserError, match="cannot be read"):
        load_task("a\0b.csv")


def test_unknown_task():
    with pytest.raises(UserError, match=r"Did you mean 'sarcasm'.*\.csv or \.jsonl"):
        load_task("sarcasmm")


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
TABLE = st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=2, max_size=8).filter(
    lambda rows: len({label.strip() for _, label, _ in rows}) > 1
)


def round_trip(name: str, content: str) -> list[tuple[str, str, str | None]]:
    with tempfile.TemporaryDirectory() as folder:
        examples, labels = read_examples(write(Path(folder), name, content))
    return [(example.text, labels[example.label], example.text_pair) for example in examples]


@settings(deadline=None)
@given(TABLE)
def test_any_text_survives_csv(rows):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("text", "label", "text_pair"), *rows])
    assert round_trip("a.csv", file.getvalue()) == [(text, label.strip(), pair) for text, label, pair in rows]


@settings(deadline=None)
@given(TABLE, st.booleans())
def test_any_text_survives_jsonl(rows, ascii_only):
    lines = [
        json.dumps({"text": text, "label": label, "text_pair": pair}, ensure_ascii=ascii_only)
        for text, label, pair in rows
    ]
    assert round_trip("a.jsonl", "\n".join(lines)) == [(text, label.strip(), pair) for text, label, pair in rows]


GARBAGE = st.one_of(
    st.binary(max_size=200),
    st.text('",\n\r;\\{}[]:ab1\0', max_size=200).map(str.encode),
    st.lists(
        st.sampled_from([b"text,label\n", b'"', b"a,b\n", b'{"text": "a", "label": 1}\n', b"\xff", b"{", b"\r"])
    ).map(b"".join),
)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@settings(max_examples=150, deadline=None)
@given(start=st.sampled_from([b"", b"text,label\n", many(40).encode()]), garbage=GARBAGE)
def test_garbage_gives_a_task_or_a_user_error(suffix, start, garbage):
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), "a" + suffix, start + garbage)
        try:
            task = load_task(path)
        except UserError:
            return
    assert len(task.labels) >= 2
    for part in (task.train, task.validation, task.test):
        assert part
        assert all(row.text.strip() and 0 <= row.label < len(task.labels) for row in part)


# The real tasks


load_once = functools.cache(load_task)


@pytest.fixture
def task(asset, request) -> Task:
    asset(request.param)
    return load_once(request.param)


each_task = pytest.mark.parametrize("task", TASK_NAMES, indirect=True)


@pytest.mark.asset
@each_task
def test_real_task(task):
    parts = {"train": task.train, "validation": task.validation, "test": task.test}
    total = sum(map(len, parts.values()))
    assert total == ROWS[task.name]
    assert 0.1 < len(task.test) / total < 0.3  # loose: privacy has only 389 questions to share out
    assert 0.05 < len(task.validation) / total < 0.15
    for part in parts.values():
        assert all(row.text.strip() for row in part)
        assert {row.label for row in part} == set(range(len(task.labels)))

    # No row on two sides, and no duplicates on one
    keys = [(normalise(row.text), normalise(row.text_pair or "")) for part in parts.values() for row in part]
    assert len(keys) == len(set(keys))


@pytest.mark.asset
@each_task
def test_nothing_leaks_from_train_to_test(task):
    def keys(part):
        if task.name == "boolq":
            return {normalise(row.text_pair) for row in part}
        return {normalise(row.text) for row in part}

    train, validation, test = keys(task.train), keys(task.validation), keys(task.test)
    assert not train & test
    assert not train & validation
    assert not validation & test


@pytest.mark.asset
@pytest.mark.parametrize(
    ("task", "group"),
    [
        ("sarcasm", lambda row: " ".join(row.text.lower().split())),
        ("privacy", lambda row: " ".join(row.text.lower().split())),
        ("boolq", lambda row: " ".join(row.text_pair.casefold().split())),
        ("bbc", lambda row: " ".join(row.text.split("\n", 1)[1].lower().split())),
    ],
    indirect=["task"],
)
def test_membership_is_by_the_rule(task, group):
    for name in ("train", "validation", "test"):
        assert all(place(group(row)) == name for row in task.head(name, 200))


@pytest.mark.asset
@pytest.mark.parametrize(
    ("task", "text", "label"),
    [
        ("sarcasm", "thirtysomething scientists unveil doomsday clock of hair loss", "sarcastic"),
        ("sarcasm", "eat your veggies: 9 deliciously different recipes", "serious"),
        ("tweets", "self-driving cars just seem lazy and a waste of money", "negative"),
        ("privacy", "does it collect payment information", "relevant"),
        ("boolq", "do you have to be an all-star to be in the home run derby", "no"),
    ],
    indirect=["task"],
)
def test_known_rows(task, text, label):
    row = next(row for row in (*task.train, *task.validation, *task.test) if row.text == text)
    assert task.labels[row.label] == label
    if row.text_pair is None:  # these have no links and names, so the group of the tweet is its words
        key = text if task.name == "sarcasm" else "self driving cars just seem lazy and a waste of money"
        assert row in getattr(task, place(key))


@pytest.mark.asset
@pytest.mark.parametrize("task", ["bbc"], indirect=True)
def test_the_latin_1_article(task):
    rows = [row.text for part in (task.train, task.validation, task.test) for row in part]
    assert not any("\ufffd" in text for text in rows)
    assert any("£" in text for text in rows)


@pytest.mark.asset
def test_load_task_by_name(asset):
    asset("tweets")
    task = load_task("tweets")
    assert task.labels == ("negative", "neutral", "positive")
    assert task.head("train", 10) == load_task("tweets").train[:10]

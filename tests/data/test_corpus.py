"""Text to pre-train on: what is held out, how it is packed, and text that is none."""

from __future__ import annotations

import numpy as np
import pytest

from minipeft.data import IGNORE, PackedTokens, TokenRows
from minipeft.data.bpe import train_bpe
from minipeft.data.corpus import encode_documents, hold_out, load_corpus
from minipeft.data.token_rows import windows
from minipeft.errors import UserError

LINES = [f"line {n} of the text\n" for n in range(100)]


def test_the_last_tenth_of_one_text_is_held_out_at_the_end_of_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("".join(LINES))
    corpus = load_corpus(str(tmp_path / "a.txt"))
    assert corpus.train[0] + corpus.held_out[0] == "".join(LINES)
    assert corpus.held_out[0].startswith("line ")
    assert 0.05 < len(corpus.held_out[0]) / len("".join(LINES)) < 0.11
    assert hold_out(["x" * 100]) == (["x" * 90], ["x" * 10])  # no line ends


def test_of_many_documents_whole_ones_are_held_out_whatever_their_order(tmp_path):
    train, apart = hold_out(LINES)
    assert sorted(train + apart) == sorted(LINES)
    assert 3 < len(apart) < 20
    assert set(hold_out(LINES[::-1])[1]) == set(apart)
    for n, line in enumerate(LINES):
        (tmp_path / f"{n:03}.txt").write_text(line)
    assert sorted(load_corpus(str(tmp_path)).held_out) == sorted(apart)


def test_some_dozens_of_documents_always_have_one_held_out():
    for start in range(60):
        documents = [f"document {start} {n}" for n in range(20)]
        train, apart = hold_out(documents)
        assert train, "most are to train on"
        assert apart, "and one at least is not"
        assert sorted(train + apart) == sorted(documents)


def test_the_digest_knows_the_parts(tmp_path):
    (tmp_path / "a.txt").write_text("".join(LINES))
    (tmp_path / "b.txt").write_text("".join(LINES[:-1]))
    first, second = (load_corpus(str(tmp_path / name)) for name in ("a.txt", "b.txt"))
    assert first.digest != second.digest
    assert first.digest == load_corpus(str(tmp_path / "a.txt")).digest


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\n \t", "is empty"),
        (b"a", "too little"),
        (b"fine\n\xff\xfe", "line 2: this is not UTF-8"),
    ],
)
def test_text_that_is_none(tmp_path, content, says):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_corpus(str(tmp_path / "a.txt"))


def test_names_that_are_none(tmp_path):
    for name, says in [("shakespear", "Did you mean"), ("no.txt", "cannot be read"), (str(tmp_path), "holds no .txt")]:
        with pytest.raises(UserError, match=says):
            load_corpus(name)
    with pytest.raises(UserError, match="No corpus"):
        load_corpus(" , ")


def test_documents_stand_between_ends():
    tokenizer = train_bpe(LINES, 300)
    tokens = encode_documents(tokenizer, ("line 1", "text"))
    end = tokenizer.eos_id
    assert tokens.tolist() == [end, *tokenizer.ids("line 1"), end, *tokenizer.ids("text"), end]
    assert tokens.dtype == np.int32


def test_packed_windows_cover_the_text_once_an_epoch_and_predict_the_next_token():
    packed = PackedTokens(np.arange(103, dtype=np.int32), 10)
    assert len(packed) == 9
    offsets = set()
    for epoch in range(80):
        batches = packed.order(4, np.random.default_rng(epoch))
        assert [len(batch) for batch in batches] == [4, 4, 1]
        starts = np.sort(np.concatenate(batches))
        assert (np.diff(starts) == 10).all()
        offsets.add(int(starts[0]))
        batch = packed.batch(batches[0], pad_id=0)
        assert (batch.input_ids[:, 0] == batches[0]).all()
        assert (batch.labels == batch.input_ids + 1).all()
        assert batch.attention_mask.all()
        assert packed.targets(batches[0]) == batch.labels.size
    assert offsets == set(range(10))


@pytest.mark.parametrize("size", [20, 21, 29, 30])
def test_no_window_leaves_the_text(size):
    packed = PackedTokens(np.arange(size, dtype=np.int32), 10)
    for epoch in range(50):
        for batch in packed.order(2, np.random.default_rng(epoch)):
            assert packed.batch(batch).labels.max() < size
    with pytest.raises(UserError, match="too few"):
        PackedTokens(np.arange(19, dtype=np.int32), 10)


@pytest.mark.parametrize("size", [2, 9, 10, 11, 12, 35])
def test_measuring_windows_ask_for_each_token_once(size):
    rows = windows(np.arange(size), 10)
    assert np.concatenate(rows.labels).tolist() == list(range(1, size))
    assert np.concatenate(rows.ids).tolist() == list(range(size - 1))
    assert max(rows.lengths) <= 10


def test_rows_are_padded_without_targets():
    rows = TokenRows((np.array([1, 2, 3]), np.array([4, 5])), (np.array([IGNORE, 3, 9]), np.array([IGNORE, 6])))
    batch = rows.batch([1, 0], pad_id=7)
    assert batch.input_ids.tolist() == [[4, 5, 7], [1, 2, 3]]
    assert batch.labels.tolist() == [[IGNORE, 6, IGNORE], [IGNORE, 3, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert rows.targets([0, 1]) == 3
    assert sorted(np.concatenate(rows.order(1, np.random.default_rng(0)))) == [0, 1]


def test_a_sample_goes_from_the_beginning_to_the_end():
    rows = windows(np.arange(101), 10)
    assert [row[0] for row in rows.sample(3).ids] == [0, 30, 60]
    assert [row[0] for row in rows.sample(3).labels] == [1, 31, 61]
    assert len(rows.sample(50)) == len(rows) == 10


@pytest.mark.asset
def test_shakespeare(asset):
    asset("shakespeare")
    corpus = load_corpus("shakespeare")
    assert len(corpus.train) == len(corpus.held_out) == 1
    assert 1_000_000 < len(corpus.train[0]) < 1_010_000
    assert corpus.train[0].startswith("First Citizen")

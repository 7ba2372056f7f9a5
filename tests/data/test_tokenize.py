"""Tokens: known ones by hand on a small vocabulary, and transformers' own on MiniLM's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", ",", "é", "e", "The"]
TEXTS = [
    "The cats sat, naïve café!",
    "",
    "   \n\t ",
    "[SEP] in the text [MASK]",
    "中文 mixed with English \u200b and \ufffd control\x00 characters \U0001f600",
    "antidisestablishmentarianism " * 60,
    "a" * 150,
    "RT @user: https://t.co/xyz #Hashtag &amp; $5.00",
    "ÅNGSTRÖM İstanbul ﬁne",
]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with vocab.txt alone."""
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    return tmp_path


def words(tokenizer: Tokenizer, *texts: str, **options) -> list[list[str]]:
    return [[VOCAB[number] for number in encoded.input_ids] for encoded in tokenizer.encode(list(texts), **options)]


def test_word_pieces_by_hand(folder):
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.vocab_size == len(VOCAB)
    assert tokenizer.pad_id == 0
    assert words(tokenizer, "The CATS, sat dog é") == [
        ["[CLS]", "the", "cat", "##s", ",", "sat", "[UNK]", "e", "[SEP]"]
    ]


def test_settings_are_heeded(folder):
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert words(Tokenizer.from_folder(folder), "The the é") == [["[CLS]", "The", "the", "é", "[SEP]"]]


def test_pairs(folder):
    (encoded,) = Tokenizer.from_folder(folder).encode(["the cat"], ["sat"])
    assert [VOCAB[number] for number in encoded.input_ids] == ["[CLS]", "the", "cat", "[SEP]", "sat", "[SEP]"]
    assert encoded.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1]
    assert encoded.input_ids.dtype == encoded.token_type_ids.dtype == np.int32


def test_truncation_takes_from_the_longer(folder):
    tokenizer = Tokenizer.from_folder(folder)
    assert words(tokenizer, "the cat sat the cat sat", max_length=4) == [["[CLS]", "the", "cat", "[SEP]"]]
    (encoded,) = tokenizer.encode(["the cat sat the cat sat"], ["sat"], max_length=7)
    assert encoded.token_type_ids.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert words(tokenizer, "the cat sat the cat sat")[0][-2] == "sat"  # the limit of one call is not that of the next


def test_stored_truncation_and_padding_are_off(folder):
    fast = Tokenizer.from_folder(folder)
    fast.save_pretrained(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    data["padding"] = {
        "strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert len(Tokenizer.from_folder(folder).encode(["the cat sat"])[0].input_ids) == 5


def test_save_and_load_give_the_same(folder, tmp_path):
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "pad_token": {"content": "[MASK]"}}')
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.pad_id == 4
    tokenizer.encode(["the"], max_length=3)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = Tokenizer.from_folder(tmp_path / "saved")
    assert words(again, *TEXTS) == words(tokenizer, *TEXTS)
    assert again.pad_id == 4
    assert (tmp_path / "saved" / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither tokenizer.json nor vocab.txt"),
        ({"tokenizer.json": b"{"}, "cannot|not a tokenizer"),
        ({"tokenizer.json": b'{"model": 3}'}, "not a tokenizer"),
        ({"tokenizer.json": b"\xff\xfe"}, "not UTF-8"),
        ({"vocab.txt": b"the\ncat\n"}, r"lacks the special tokens \[UNK\]"),
        ({"vocab.txt": "\n".join(VOCAB).encode(), "tokenizer_config.json": b"{"}, "not valid JSON"),
        ({"vocab.txt": "\n".join(VOCAB).encode(), "tokenizer_config.json": b"[]"}, "no JSON object"),
    ],
)
def test_broken_folders(tmp_path, files, message):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        Tokenizer.from_folder(tmp_path / "nowhere")


def test_wrong_arguments(folder):
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode([]) == []
    with pytest.raises(UserError, match="of which 2 are special tokens: take 3"):
        tokenizer.encode(["the"], max_length=2)
    with pytest.raises(UserError, match="of which 3 are special tokens"):
        tokenizer.encode(["the"], ["cat"], max_length=3)
    with pytest.raises(ValueError, match="1 texts and 2 pairs"):
        tokenizer.encode(["the"], ["cat", "sat"])
    with pytest.raises(TypeError, match="list of texts"):
        tokenizer.encode("the")
    with pytest.raises(UserError, match="must be a string, not NoneType"):
        tokenizer.encode([None])
    with pytest.raises(UserError, match="surrogate"):
        tokenizer.encode(["\ud800"])


@pytest.mark.asset
def test_minilm(asset):
    tokenizer = Tokenizer.from_folder(asset("minilm"))
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (30522, 0)
    (encoded,) = tokenizer.encode(["hello world"])
    assert encoded.input_ids.tolist() == [101, 7592, 2088, 102]


@pytest.mark.asset
@pytest.mark.parametrize("source", ["tokenizer.json", "vocab.txt"])
def test_equal_to_transformers(asset, tmp_path, source):
    transformers = pytest.importorskip("transformers", reason="compares with transformers, which is not installed")
    folder = asset("minilm")
    theirs = transformers.BertTokenizerFast.from_pretrained(str(folder))
    for name in (source, "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    ours = Tokenizer.from_folder(tmp_path)
    pairs = TEXTS[::-1]
    for max_length in (5, 17, 128):
        for second in (None, pairs):
            expected = theirs(TEXTS, second, truncation=True, max_length=max_length, return_token_type_ids=True)
            found = ours.encode(TEXTS, second, max_length=max_length)
            assert [encoded.input_ids.tolist() for encoded in found] == expected["input_ids"]
            assert [encoded.token_type_ids.tolist() for encoded in found] == expected["token_type_ids"]


@pytest.mark.asset
def test_transformers_loads_what_we_save(asset, tmp_path):
    transformers = pytest.importorskip("transformers", reason="compares with transformers, which is not installed")
    ours = Tokenizer.from_folder(asset("minilm"))
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs(TEXTS, truncation=True, max_length=64)["input_ids"] == [
        encoded.input_ids.tolist() for encoded in ours.encode(TEXTS, max_length=64)
    ]

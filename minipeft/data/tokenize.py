"""From text to token numbers, over the `tokenizers` library: the same numbers as transformers gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from minipeft.errors import UserError
from minipeft.files import atomic_write

# Files beside tokenizer.json; kept, so that transformers can load what `save_pretrained` writes.
_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True)
class Encoded:
    """One encoded text or pair. Both arrays are int32 of shape (length,); `token_type_ids` is 1 in the second text."""

    input_ids: np.ndarray
    token_type_ids: np.ndarray


class Tokenizer:
    """Cuts texts into tokens. Make one with `Tokenizer.from_folder`."""

    def __init__(self, fast: tokenizers.Tokenizer, companions: dict[str, str] | None = None):
        self._fast = fast
        self._companions = dict(companions or {})
        self.pad_id = _pad_id(fast, self._companions)
        self.eos_id = _special_id(fast, self._companions, "eos_token", ("<|endoftext|>", "</s>", "<eos>"))
        # The file may ask for a fixed length (MiniLM's: 128, padded to 128). Here the caller and the batch decide.
        fast.no_truncation()
        fast.no_padding()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read `tokenizer.json` of a Hugging Face folder, or `vocab.txt` (BERT's WordPiece) when that is missing.

        Raises:
            UserError: neither is there, or it cannot be read.
        """
        folder = Path(folder)
        companions = {name: _read(folder / name) for name in _COMPANIONS if (folder / name).is_file()}
        path = folder / "tokenizer.json"
        if path.is_file():
            text = _read(path)
            try:
                return cls(tokenizers.Tokenizer.from_str(text), companions)
            except UserError:
                raise
            except Exception as error:  # the library raises plain Exception
                raise UserError(
                    f"{path} is not a tokenizer that can be read ({error}). Fetch or copy it again."
                ) from error
        if "vocab.txt" in companions:
            return cls(_word_piece(folder, companions), companions)
        what = "has neither tokenizer.json nor vocab.txt" if folder.is_dir() else "is not a folder"
        raise UserError(f"{folder} {what}. A tokenizer is read from a Hugging Face model folder with one of the two.")

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int = 128) -> list[Encoded]:
        """Encode each text, or each text with its entry of `pairs`, to `max_length` tokens at most.

        The special tokens are added, and count. What is too long loses tokens at its end; in a pair, always the text
        that is longer at that moment. A tokenizer that puts no special token between a text and its pair gets a line's
        end there, or the last word of the one would run into the first of the other.

        Raises:
            UserError: `max_length` leaves no room beside the special tokens, or an entry is not a text.
            ValueError: `pairs` has another length than `texts`.
        """
        if isinstance(texts, str) or isinstance(pairs, str):
            raise TypeError("encode takes a list of texts; for one text, write encode([text])")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(pairs)} pairs: every text needs its pair")
        special = self._fast.num_special_tokens_to_add(pairs is not None)
        if max_length <= special:
            raise UserError(
                f"max_length is {max_length}, of which {special} are special tokens: take {special + 1} or more."
            )
        for entry in (*texts, *(pairs or ())):
            _check_text(entry)
        if pairs is not None and special == self._fast.num_special_tokens_to_add(False):
            texts = [f"{text}\n" for text in texts]
        self._fast.enable_truncation(max_length, strategy="longest_first")
        try:
            inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
            encodings = self._fast.encode_batch_fast(inputs)  # fast: without the places of the tokens in the text
        finally:
            self._fast.no_truncation()
        return [Encoded(np.array(e.ids, dtype=np.int32), np.array(e.type_ids, dtype=np.int32)) for e in encodings]

    def ids(self, text: str, whole: bool = True) -> list[int]:
        """All the tokens of one text, with those that the tokenizer puts around a text if it is a `whole` one.

        Raises:
            UserError: it is not a text.
        """
        _check_text(text)
        return list(self._fast.encode(text, add_special_tokens=whole).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without the special ones."""
        return str(self._fast.decode([int(i) for i in ids], skip_special_tokens=True))

    def token_id(self, token: str) -> int | None:
        """The number of a token; None when there is none of that spelling."""
        number: int | None = self._fast.token_to_id(token)
        return number

    @property
    def chat_template(self) -> str:
        """How a chat is written, in Jinja, as the settings that came with the tokenizer say; "" when they do not."""
        found = _settings(Path("tokenizer_config.json"), self._companions).get("chat_template")
        return found if isinstance(found, str) else ""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer.json, and what came with it, into `folder`, which `from_folder` and transformers can load."""
        folder = Path(folder)
        for name, text in self._companions.items():
            atomic_write(folder / name, text)
        atomic_write(folder / "tokenizer.json", self._fast.to_str())


def _word_piece(folder: Path, companions: dict[str, str]) -> tokenizers.Tokenizer:
    """BERT's tokenizer from its word list (one token a line, its number is the line's) and its settings."""
    path = folder / "vocab.txt"
    vocab = {token: number for number, token in enumerate(companions["vocab.txt"].removesuffix("\n").split("\n"))}
    settings = _settings(folder / "tokenizer_config.json", companions)
    names = {key: _token(settings.get(key)) or default for key, default in _BERT_TOKENS.items()}
    missing = [name for name in names.values() if name not in vocab]
    if missing:
        raise UserError(
            f"{path} lacks the special tokens {', '.join(missing)}: it is not a BERT vocabulary, or a part of one."
        )
    fast = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=names["unk_token"], max_input_chars_per_word=100))
    fast.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = names["cls_token"], names["sep_token"]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    fast.add_special_tokens(list(names.values()))  # so that a "[SEP]" in a text is one token, as in transformers
    return fast


_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def _pad_id(fast: tokenizers.Tokenizer, companions: dict[str, str]) -> int:
    """The number of the padding token. Where none is named, 0: behind the attention mask any number will do."""
    stored = (fast.padding or {}).get("pad_token")
    return _special_id(fast, companions, "pad_token", (stored, "[PAD]", "<pad>")) or 0


def _special_id(
    fast: tokenizers.Tokenizer, companions: dict[str, str], field: str, guesses: tuple[str | None, ...]
) -> int | None:
    """The number of the token that the settings call `field`, or of the first guess that exists, or None."""
    named = [
        _token(_settings(Path(name), companions).get(field))
        for name in ("tokenizer_config.json", "special_tokens_map.json")
    ]
    for token in (*named, *guesses):
        number = fast.token_to_id(token) if token else None
        if number is not None:
            return int(number)
    return None


def _settings(path: Path, companions: dict[str, str]) -> dict[str, Any]:
    try:
        settings = json.loads(companions.get(path.name, "{}"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}). Fetch or copy it again.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no JSON object. Fetch or copy it again.")
    return settings


def _token(entry: Any) -> str | None:
    """A token's text: files spell it as a string or as {"content": string, ...}."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}). Fetch or copy it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _check_text(entry: object) -> None:
    if not isinstance(entry, str):
        raise UserError(f"A text to encode must be a string, not {type(entry).__name__} ({str(entry)[:40]!r}).")
    try:
        entry.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"The text {entry[:40]!r} holds half of a surrogate pair, which is not a character.") from error

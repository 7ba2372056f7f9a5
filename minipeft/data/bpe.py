"""Byte-pair tokenizers (arXiv 1508.07909) on bytes, as GPT-2's: any text can be written, and nothing is unknown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from minipeft.data.tokenize import Tokenizer
from minipeft.errors import UserError

END = "<|endoftext|>"
START, STOP = "<|im_start|>", "<|im_end|>"  # around each message of a chat
CHAT = (  # ChatML in Jinja, for transformers: what `chat.py` writes
    f"{{% for message in messages %}}{START}{{{{ message.role }}}}\n{{{{ message.content }}}}{STOP}\n{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{START}assistant\n{{% endif %}}"
)


def byte_level(
    vocab: dict[str, int],
    merges: Sequence[tuple[str, str]],
    special: Sequence[str],
    settings: dict[str, Any],
    single_digits: bool = False,
) -> Tokenizer:
    """A tokenizer from its tokens, written in GPT-2's alphabet of bytes, and its merges, the first ones first.

    Args:
        vocab: token -> number.
        merges: pairs of tokens that become one.
        special: tokens that a text can name but that no text is cut into.
        settings: of tokenizer_config.json: `eos_token`, `pad_token`, `chat_template`, ...
        single_digits: cut numbers into digits, as SmolLM does.

    Raises:
        UserError: the tokens and the merges do not fit together.
    """
    try:
        fast = tokenizers.Tokenizer(models.BPE(vocab, list(merges)))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"The tokens and the merges of this tokenizer do not fit together ({error}).") from error
    _set_up(fast, single_digits)
    fast.add_special_tokens([token for token in special if token in vocab])
    return Tokenizer(fast, {"tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False) + "\n"})


def from_vocab_and_merges(folder: Path) -> Tokenizer:
    """GPT-2's older pair of files, vocab.json and merges.txt. Raises UserError when one is damaged."""
    try:
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [(a, b) for a, _, b in (line.partition(" ") for line in lines if line and line[:8] != "#version")]
        if not isinstance(vocab, dict):
            raise ValueError("vocab.json holds no object")
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer in {folder} cannot be read ({error}). Fetch or copy it again.") from error
    return byte_level(vocab, merges, [END], {"eos_token": END, "pad_token": END})


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a tokenizer of at most `vocab_size` tokens (259 or more) from texts.

    Three are special: the end of a text, and the start and stop of a chat message, so that a model pre-trained with it can
    be taught to chat.

    Raises:
        UserError: `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    special = [END, START, STOP]
    if vocab_size < 256 + len(special):
        raise UserError(f"A vocabulary of {vocab_size}: the 256 bytes and {len(special)} special tokens need more.")
    fast = tokenizers.Tokenizer(models.BPE())
    _set_up(fast, single_digits=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    settings = {
        "eos_token": END,
        "pad_token": END,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT,
    }
    return Tokenizer(fast, {"tokenizer_config.json": json.dumps(settings, indent=2) + "\n"})


def _set_up(fast: tokenizers.Tokenizer, single_digits: bool) -> None:
    steps = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    fast.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    fast.decoder = decoders.ByteLevel()
    fast.post_processor = processors.ByteLevel(trim_offsets=False)

"""Batches: every index once, padded to the longest, and the same for the same generator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft.data.batching import POOL_BATCHES, EncodedSet, bucketed_order, collate, encode_examples, sorted_order
from minipeft.data.splits import Example
from minipeft.data.tokenize import Encoded

LENGTHS = st.lists(st.integers(1, 64), max_size=300)


class Letters:
    """A tokenizer for tests: a letter is a token, its number its place in the alphabet."""

    def encode(self, texts, pairs=None, max_length=128):
        first = [[ord(letter) - 96 for letter in text] for text in texts]
        second = [[ord(letter) - 96 for letter in text] for text in pairs] if pairs else [[] for _ in texts]
        return [
            Encoded(
                np.array((a + b)[:max_length], dtype=np.int32),
                np.array(([0] * len(a) + [1] * len(b))[:max_length], dtype=np.int32),
            )
            for a, b in zip(first, second, strict=True)
        ]


def encoded(*texts: str) -> EncodedSet:
    return encode_examples(Letters(), [Example(text, label=number % 2) for number, text in enumerate(texts)])


def test_encode_examples():
    dataset = encode_examples(Letters(), [Example("ab", 1, "c"), Example("a", 0, "bcd")], max_length=3)
    assert len(dataset) == 2
    assert dataset.lengths.tolist() == [3, 3]
    assert dataset.labels.tolist() == [1, 0]
    assert dataset.encodings[1].input_ids.tolist() == [1, 2, 3]
    assert dataset.encodings[1].token_type_ids.tolist() == [0, 1, 1]


def test_encode_examples_wants_all_pairs_or_none():
    with pytest.raises(ValueError, match="1 of 2 examples have a text_pair"):
        encode_examples(Letters(), [Example("a", 0), Example("a", 0, "b")])


def test_collate_pads_to_the_longest_of_the_batch():
    batch = collate(encoded("abc", "z", "ab", "abcdef"), np.array([1, 0]), pad_id=9)
    assert len(batch) == 2
    assert batch.input_ids.tolist() == [[26, 9, 9], [1, 2, 3]]
    assert batch.attention_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch.token_type_ids.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert batch.labels.tolist() == [1, 0]
    for array in (batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.labels):
        assert array.dtype == np.int32


def test_collate_of_nothing():
    with pytest.raises(ValueError, match="at least one"):
        collate(encoded("a"), [], pad_id=0)


@settings(deadline=None)  # the machine may be busy
@given(LENGTHS, st.integers(1, 17), st.integers(0, 2**32 - 1))
def test_bucketed_order_is_a_partition(lengths, batch_size, seed):
    batches = bucketed_order(np.array(lengths, dtype=np.int32), batch_size, np.random.default_rng(seed))
    indices = [index for batch in batches for index in batch.tolist()]
    assert sorted(indices) == list(range(len(lengths)))
    assert sum(len(batch) != batch_size for batch in batches) == (len(lengths) % batch_size != 0)


@settings(deadline=None)  # the machine may be busy
@given(LENGTHS, st.integers(1, 17))
def test_sorted_order_is_a_partition_longest_first(lengths, batch_size):
    batches = sorted_order(np.array(lengths, dtype=np.int32), batch_size)
    indices = [index for batch in batches for index in batch.tolist()]
    assert sorted(indices) == list(range(len(lengths)))
    assert [lengths[index] for index in indices] == sorted(lengths, reverse=True)


def test_bucketed_order_is_a_function_of_the_generator():
    lengths = np.random.default_rng(0).integers(5, 60, 500)
    one, again, other = (bucketed_order(lengths, 16, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_bucketed_order_saves_padding_and_stays_mixed():
    lengths = np.random.default_rng(0).integers(5, 60, 32 * POOL_BATCHES * 2)
    batches = bucketed_order(lengths, 32, np.random.default_rng(0))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.06 * lengths.sum()  # at random it is about 1.8
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3  # no drift from short to long over the epoch


@pytest.mark.parametrize(
    "order", [lambda n: sorted_order(np.ones(3), n), lambda n: bucketed_order(np.ones(3), n, None)]
)
def test_batch_size_must_be_positive(order):
    with pytest.raises(ValueError, match="at least 1"):
        order(0)

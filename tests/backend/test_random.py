"""Random numbers: pure functions of the root seed, apart from NumPy's global state."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from minipeft.backend import random
from minipeft.errors import UserError


def draws(generator) -> list[int]:
    return generator.integers(2**62, size=4).tolist()


def test_a_generator_depends_on_root_name_and_index_alone():
    first = draws(random.generator("data", 3))
    random.stream("init").standard_normal(10)
    random.dropout_key()
    draws(random.generator("data", 2))
    assert draws(random.generator("data", 3)) == first
    assert draws(random.generator("data", 3, root=0)) == first


def test_generators_differ_in_name_index_and_root():
    seen = [
        draws(random.generator(name, *index, root=root))
        for name in ("data", "init")
        for index in ((), (0,), (1,), (0, 1), (1, 0))
        for root in (0, 1)
    ]
    assert len({tuple(s) for s in seen}) == len(seen)


def test_different_names_are_uncorrelated():
    a, b = (random.generator(name).standard_normal(100_000) for name in ("data", "init"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(100_000)


def test_a_stream_goes_on_and_the_others_do_not_notice():
    reference = random.generator("a").standard_normal(20)
    first = random.stream("a").standard_normal(10)
    random.stream("b").standard_normal(7)
    second = random.stream("a").standard_normal(10)
    np.testing.assert_array_equal(np.concatenate([first, second]), reference)


def test_seed_starts_every_stream_afresh():
    random.seed(5)
    first = draws(random.stream("a"))
    assert draws(random.stream("a")) != first
    random.seed(5)
    assert draws(random.stream("a")) == first
    random.seed(6)
    assert draws(random.stream("a")) != first


@pytest.mark.parametrize("root", [-1, 1.5, "1", None])
def test_a_seed_that_is_no_seed(root):
    random.seed(3)
    before = draws(random.generator("data"))
    with pytest.raises(UserError, match="seed"):
        random.seed(root)
    assert draws(random.generator("data")) == before, "a refused seed changes nothing"


def test_permutations_are_orders_and_all_orders_come():
    orders = random.permutations(random.generator("data"), 600, 3)
    assert orders.shape == (600, 3)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile([0, 1, 2], (600, 1)))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 60, "each of the 6 orders about 100 times"


@pytest.mark.parametrize(("d", "k", "D"), [(1, 1, 1), (5, 4, 6), (40, 7, 50), (3, 5, 1000)])
def test_layers_share_out_every_entry_and_repeat_no_place(d, k, D):
    rng = np.random.default_rng(0)
    rows = [rng.choice(D, size=k, replace=False) for _ in range(d)]
    layers, where = random.layers_without_repeats(rows)
    entries = []
    for places, owners, index in layers:
        assert np.all(np.diff(places) > 0)
        assert np.array_equal(places, np.concatenate(rows)[index])
        assert np.array_equal(owners, index // k)
        entries += index.tolist()
    assert sorted(entries) == list(range(d * k))
    assert np.array_equal(np.array(entries)[where], np.arange(d * k))
    assert len(layers) == np.bincount(np.concatenate(rows)).max()  # as few as can be


def test_dropout_keys_are_a_function_of_seed_step_and_call():
    random.at_step(7)
    first = [random.dropout_key() for _ in range(5)]
    assert len(set(first)) == 5
    assert all(0 <= key < 2**64 for key in first)
    random.at_step(8)
    assert not set(first) & {random.dropout_key() for _ in range(5)}
    random.at_step(7)
    assert [random.dropout_key() for _ in range(5)] == first, "as if the run had been resumed at step 7"
    random.seed(1)
    random.at_step(7)
    assert not set(first) & {random.dropout_key() for _ in range(5)}


def test_each_shard_of_a_batch_and_each_thread_has_keys_of_its_own():
    random.at_step(7, shard=1)
    first = [random.dropout_key() for _ in range(3)]
    elsewhere: list[int] = []

    def work():
        random.at_step(7, shard=0)
        elsewhere.extend(random.dropout_key() for _ in range(5))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    first += [random.dropout_key() for _ in range(2)]  # not disturbed by the other thread
    random.at_step(7, shard=1)
    assert [random.dropout_key() for _ in range(5)] == first
    assert not set(first) & set(elsewhere)
    random.at_step(7)
    assert [random.dropout_key() for _ in range(5)] == elsewhere, "a key depends on the shard, not on the thread"


def test_the_global_state_of_numpy_is_neither_read_nor_moved():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = draws(random.generator("data")), draws(random.stream("init")), random.dropout_key()
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    random.seed(0)
    assert (draws(random.generator("data")), draws(random.stream("init")), random.dropout_key()) == first

"""Cached activations at the cut: the same training, with the frozen part computed once for each row."""

import numpy as np
import pytest
from tiny import CLASSES, LAYERS, PAD, D, tiny_data, tiny_model

import minipeft as mp
from minipeft.backend import active
from minipeft.data import collate
from minipeft.nn import ClassificationHead
from minipeft.peft import (
    AdapterConfig,
    FullConfig,
    HeadConfig,
    IntrinsicConfig,
    LoraConfig,
    TopKConfig,
    get_peft_model,
)
from minipeft.training import Trainer, TrainingConfig
from minipeft.training.cache import cache_for

DATA = tiny_data(40)


def trainer(config, **options):
    model = get_peft_model(tiny_model(), config)
    mp.seed(0)
    return Trainer(model, DATA, PAD, TrainingConfig(lr=0.01, batch_size=8, **options))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("config", [HeadConfig(), TopKConfig(0), TopKConfig(1), TopKConfig(2)], ids=str)
def test_training_is_the_same_and_takes_less_work(config, workers):
    runs, flops = [], []
    for cache_mb in (0, 1000):
        made = trainer(config, cache_mb=cache_mb, workers=workers)
        before = active().flops
        runs.append(made.run().losses)
        flops.append(active().flops - before)
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-4)
    assert workers > 1 or flops[1] < flops[0]  # of the work of other processes nothing is known here


@pytest.mark.parametrize(
    ("config", "cut"),
    [
        (HeadConfig(), LAYERS),
        (TopKConfig(0), LAYERS),
        (TopKConfig(1), LAYERS - 1),
        (TopKConfig(LAYERS), 0),
        (TopKConfig(1, train_embeddings=True), 0),
        (FullConfig(), 0),
        (LoraConfig(r=2, target_modules=("2.q_proj",)), 0),
        (AdapterConfig(2), 0),
        (IntrinsicConfig(8), 0),
    ],
    ids=str,
)
def test_the_cut_is_below_everything_that_moves(config, cut):
    model = get_peft_model(tiny_model(), config)
    assert model.method.cut(model.model) == cut
    assert (cache_for(model, DATA, PAD, 1000) is None) == (cut == 0)


def test_what_is_cached_is_what_enters_the_block():
    model = get_peft_model(tiny_model(), TopKConfig(1))
    cache = cache_for(model, DATA, PAD, 1000)
    cache.fill()
    batch = collate(DATA, [3, 0, 7], PAD)
    cached = cache.batch([3, 0, 7])
    with mp.no_grad():
        below = model.model.lower(batch.input_ids, batch.attention_mask, batch.token_type_ids, LAYERS - 1).numpy()
    counts = batch.attention_mask[:, :, None]
    np.testing.assert_allclose(cached.hidden, below * counts, atol=1e-6)
    assert np.array_equal(cached.labels, batch.labels)


def test_there_is_no_cache_over_the_budget_or_under_dropout():
    size = 4e-6 * DATA.lengths.sum() * D
    model = get_peft_model(tiny_model(), TopKConfig(1))
    assert cache_for(model, DATA, PAD, size * 1.01) is not None
    assert cache_for(model, DATA, PAD, size * 0.99) is None
    model = get_peft_model(tiny_model(dropout=0.1), TopKConfig(1))
    assert cache_for(model, DATA, PAD, 1000) is None


def test_dropout_in_the_head_alone_does_not_forbid_it():
    base = tiny_model()
    base.head = ClassificationHead(D, CLASSES, dropout=0.5)
    assert cache_for(get_peft_model(base, TopKConfig(1)), DATA, PAD, 1000) is not None


def test_a_resumed_run_has_the_same_bits(tmp_path):
    whole = trainer(TopKConfig(1))
    expected = whole.run().losses

    class StopError(Exception):
        pass

    def stop(step, total, loss):
        if step == 8:
            raise StopError

    made = trainer(TopKConfig(1))
    made.checkpoint, made.on_step = tmp_path / "run.safetensors", stop
    with pytest.raises(StopError):
        made.run()
    again = trainer(TopKConfig(1))
    again.checkpoint = tmp_path / "run.safetensors"
    assert again.run().losses == expected

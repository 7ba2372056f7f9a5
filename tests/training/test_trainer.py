"""The training loop: what it computes, at which rate, what it reports."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import BATCH, CLASSES, DATA, PAD, VOCAB, bits, disturb, logits, tiny_data, tiny_model

import minipeft as mp
from minipeft import UserError
from minipeft.autograd import functional
from minipeft.backend import active
from minipeft.backend.workers import current_workers
from minipeft.data import EncodedSet, collate
from minipeft.data.tokenize import Encoded
from minipeft.optim import SCHEDULES, AdamW
from minipeft.peft import AdapterConfig, FullConfig, IntrinsicConfig, LoraConfig, TopKConfig, get_peft_model
from minipeft.training import Trainer, TrainingConfig

STEPS = 5  # an epoch of DATA's 40 rows in batches of 8
QUICK = TrainingConfig(lr=0.01, epochs=2, batch_size=8)
QUICK_WITH = {workers: TrainingConfig(lr=0.01, epochs=2, batch_size=8, workers=workers) for workers in (2, 3)}


def trainer(config: TrainingConfig = QUICK, method: Any = None, dropout: float = 0.0, **options: Any) -> Trainer:
    model = tiny_model(dropout=dropout)
    return Trainer(get_peft_model(model, method) if method else model, DATA, PAD, config, **options)


# ---- what it does


@pytest.mark.parametrize(
    "method", [None, FullConfig(), TopKConfig(1), AdapterConfig(8), LoraConfig(), IntrinsicConfig(d=60)]
)
def test_the_loss_falls(method: Any) -> None:
    result = trainer(TrainingConfig(lr=0.03, epochs=10, batch_size=8), method).run()
    assert len(result.losses) == 10 * STEPS
    assert np.mean(result.losses[-STEPS:]) < 0.8 * np.mean(result.losses[:STEPS])
    assert result.seconds > 0
    assert 0 < result.step_ms < 1000 * result.seconds


def test_it_does_what_a_loop_by_hand_does() -> None:
    model = tiny_model()
    optimizer = AdamW(model.parameters(), lr=1.0, weight_decay=0.1)
    losses, step = [], 0
    for epoch in range(2):
        for rows in mp.data.bucketed_order(DATA.lengths, 8, mp.backend.random.generator("data", epoch)):
            batch = collate(DATA, rows, PAD)
            optimizer.zero_grad()
            loss = functional.cross_entropy(
                model(batch.input_ids, batch.attention_mask, batch.token_type_ids), batch.labels
            )
            loss.backward()
            norm = float(np.sqrt((optimizer.flat.grad**2).sum()))
            if norm > 0.5:
                optimizer.flat.grad *= 0.5 / norm
            rate = step / 3 if step < 3 else (10 - step) / 7
            optimizer.step(0.01 * rate)
            losses.append(loss.item())
            step += 1
    config = TrainingConfig(lr=0.01, epochs=2, batch_size=8, weight_decay=0.1, warmup=0.3, clip=0.5)
    trained = trainer(config)
    result = trained.run()
    np.testing.assert_allclose(result.losses, losses, rtol=1e-4)
    np.testing.assert_allclose(logits(trained.model), logits(model), rtol=1e-2, atol=1e-3)


def test_every_row_is_seen_once_an_epoch_and_the_order_changes() -> None:
    made = trainer()
    orders = [np.concatenate(made.batches(epoch)) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(len(DATA)))
    assert not np.array_equal(orders[0], orders[1])
    mp.seed(0)
    assert np.array_equal(orders[0], np.concatenate(made.batches(0)))
    mp.seed(1)
    assert not np.array_equal(orders[0], np.concatenate(made.batches(0)))


def test_on_step_is_told_of_every_step_and_the_model_ends_in_evaluation_mode() -> None:
    seen: list[tuple[int, int, float]] = []
    made = trainer(on_step=lambda step, total, loss: seen.append((step, total, float(loss))))
    result = made.run()
    assert [step for step, _, _ in seen] == list(range(1, 2 * STEPS + 1))
    assert {total for _, total, _ in seen} == {2 * STEPS}
    assert [loss for _, _, loss in seen] == result.losses
    assert not any(module.training for _, module in made.model.named_modules())


def test_dropout_is_on_in_training_also_after_an_evaluation() -> None:
    losses = []
    for dropout in (0.0, 0.3):
        made = trainer(dropout=dropout)
        made.model.eval()
        losses.append(made.run().losses)
    assert losses[0][0] != losses[1][0]


def test_a_last_short_batch_is_trained_on_too() -> None:
    made = Trainer(tiny_model(), tiny_data(rows=19), PAD, TrainingConfig(epochs=1, batch_size=8))
    assert len(made.run().losses) == 3


# ---- the rate


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_starts_at_zero_peaks_and_reaches_its_end(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(TrainingConfig(lr=0.02, epochs=4, batch_size=8, warmup=0.25, schedule=schedule))
    rates: list[float] = []
    step = made.optimizer.step
    monkeypatch.setattr(made.optimizer, "step", lambda lr, scale: rates.append(lr) or step(lr, scale))
    made.run()
    assert len(rates) == 20
    assert rates[0] == 0
    np.testing.assert_allclose(np.diff(rates[:6]), 0.02 / 5)  # a straight climb
    assert rates[5] == max(rates) == 0.02
    if schedule == "constant":
        assert set(rates[5:]) == {0.02}
    else:
        assert all(a > b for a, b in itertools.pairwise(rates[5:]))
        assert 0 < rates[-1] < 0.02 / 10
    if schedule == "linear":
        np.testing.assert_allclose(np.diff(rates[5:]), -0.02 / 15)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_is_one_after_the_warmup_and_zero_at_the_end(schedule: str) -> None:
    factor = SCHEDULES[schedule]
    assert factor(0, 100, 10) == 0
    assert factor(5, 100, 10) == 0.5
    assert factor(10, 100, 10) == 1
    assert factor(55, 100, 10) == pytest.approx(0.5)
    assert factor(100, 100, 10) == pytest.approx(0, abs=1e-12)
    assert factor(0, 100, 0) == 1  # no warm-up
    assert factor(99, 100, 100) < 1  # nothing but warm-up


def test_the_gradient_is_clipped_by_its_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_gradient(clip: float) -> np.ndarray:
        made = trainer(TrainingConfig(epochs=1, batch_size=8, clip=clip))
        flat, step = made.optimizer.flat, made.optimizer.step
        seen: list[np.ndarray] = []
        monkeypatch.setattr(made.optimizer, "step", lambda lr, scale: seen.append(scale * flat.grad) or step(lr, scale))
        made.run()
        return seen[0]

    free = first_gradient(0.0)
    norm = float(np.linalg.norm(free))
    assert np.array_equal(first_gradient(2 * norm), free)  # a short one is not made longer
    np.testing.assert_allclose(first_gradient(norm / 10), free / 10, rtol=1e-3, atol=1e-7)


# ---- what goes wrong


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"workers": 0},
        {"lr": 0.0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"warmup": 1.5},
        {"warmup": -0.1},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        TrainingConfig(**settings)


def test_an_unknown_schedule_names_the_nearest() -> None:
    with pytest.raises(UserError, match="cosine"):
        TrainingConfig(schedule="cosin")


def test_a_loss_that_is_not_a_number_stops_the_run() -> None:
    made = trainer()
    made.model.head.classifier.weight.data[0, 0] = np.nan
    with pytest.raises(UserError, match=r"(?i)nan.*learning rate"):
        made.run()


def test_nothing_to_train() -> None:
    with pytest.raises(UserError, match="nothing to train"):
        trainer(method=TopKConfig(0, train_head=False))


@pytest.mark.parametrize("bad", [VOCAB, -1])
def test_pitfall_token_ids_out_of_range(bad: int) -> None:
    ids = Encoded(np.array([1, bad, 2], dtype=np.int32), np.zeros(3, dtype=np.int32))
    data = EncodedSet((ids,), np.array([0], dtype=np.int32), np.array([3], dtype=np.int32))
    with pytest.raises(UserError, match=rf"{bad}.*0 to {VOCAB - 1}"):
        Trainer(tiny_model(), data, PAD, QUICK).run()


def test_a_label_that_is_no_class_of_the_model() -> None:
    data = EncodedSet(DATA.encodings, DATA.labels + 1, DATA.lengths)
    with pytest.raises(UserError, match="class 3"):
        Trainer(tiny_model(), data, PAD, QUICK).run()


ALL = {
    "plain": None,
    "topk": TopKConfig(1),
    "adapter": AdapterConfig(8),
    "lora": LoraConfig(),
    "did": IntrinsicConfig(d=60),
    "said": IntrinsicConfig(d=60, structure_aware=True),
}


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("method", ALL.values(), ids=ALL)
def test_several_workers_compute_the_gradient_of_one(
    method: Any, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_step(count: int) -> tuple[np.ndarray, float, float]:
        made = trainer(TrainingConfig(epochs=1, batch_size=8, workers=count), method)
        disturb(made.model, std=0.05)
        gradient, norm = (active().shared(shape, "float32") for shape in (made.optimizer.flat.grad.shape, (1,)))
        compute = made.gradients.compute

        def watched(shards: Any, step: int, *rest: Any, **options: Any) -> Any:
            result = compute(shards, step, *rest, **options)
            if step == 0:  # each rank has its part of the sum
                part = current_workers().slice(gradient.size)
                gradient[part], norm[0] = made.optimizer.flat.grad[part], result[1]
            return result

        monkeypatch.setattr(made.gradients, "compute", watched)
        loss = made.run().losses[0]
        return gradient.copy(), float(norm[0]), loss

    (one, one_norm, loss), (many, norm, same_loss) = first_step(1), first_step(workers)
    np.testing.assert_allclose(many, one, rtol=1e-3, atol=1e-5)
    assert norm == pytest.approx(one_norm, rel=1e-4)
    assert norm == pytest.approx(float(np.linalg.norm(many)), rel=1e-4)
    assert same_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("method", ALL.values(), ids=ALL)
def test_several_workers_give_the_same_bits_each_time_and_move_nothing_frozen(method: Any) -> None:
    def run() -> dict[str, bytes]:
        made = trainer(TrainingConfig(lr=0.01, epochs=2, batch_size=8, workers=2), method, dropout=0.1)
        frozen = {name for name, p in made.model.named_parameters() if not p.requires_grad}
        before = bits(made.model)
        made.run()
        after = bits(made.model)
        assert {name for name in before if before[name] == after[name]} == frozen
        return after

    assert run() == run()


def test_the_workers_draw_different_dropout_masks() -> None:
    same = EncodedSet((DATA.encodings[0],) * 4, np.repeat(DATA.labels[:1], 4), np.repeat(DATA.lengths[:1], 4))
    model = tiny_model(dropout=0.5)
    forward, seen = model.forward, active().shared((2, 2, CLASSES), "float32")  # of each worker two rows

    def watched(*inputs: Any) -> mp.Tensor:
        logits = forward(*inputs)
        seen[current_workers().rank] = logits.numpy()
        return logits

    model.forward = watched
    Trainer(model, same, PAD, TrainingConfig(epochs=1, batch_size=4, workers=2)).run()
    assert seen.any(axis=(1, 2)).all()
    assert not np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_that_dies_is_a_clear_error_and_the_run_goes_on_from_its_checkpoint(
    workers: int, tmp_path: Path
) -> None:
    expected = trainer(QUICK_WITH[workers]).run().losses
    made = trainer(QUICK_WITH[workers], checkpoint=tmp_path / "run.safetensors")
    compute, first = made.gradients.compute, os.getpid()

    def fatal(shards: Any, step: int, *rest: Any, **options: Any) -> Any:
        if step == STEPS + 2 and current_workers().rank == workers - 1:
            assert os.getpid() != first
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(shards, step, *rest, **options)

    made.gradients.compute = fatal
    with pytest.raises(UserError, match=rf"Worker {workers} of {workers} was killed by signal 9 \(SIGKILL\)"):
        made.run()
    with pytest.raises(ChildProcessError):  # no copy is left behind
        os.waitpid(-1, os.WNOHANG)
    again = trainer(QUICK_WITH[workers], checkpoint=tmp_path / "run.safetensors").run()
    assert again.losses == expected


def test_an_error_in_a_worker_is_told_as_one_here() -> None:
    bad = list(DATA.encodings)
    bad[5] = Encoded(np.full_like(bad[5].input_ids, VOCAB), bad[5].token_type_ids)
    with pytest.raises(UserError, match=f"token id {VOCAB} is out of range"):
        Trainer(tiny_model(), EncodedSet(tuple(bad), DATA.labels, DATA.lengths), PAD, QUICK_WITH[3]).run()


def test_more_workers_than_rows() -> None:
    result = trainer(TrainingConfig(epochs=1, batch_size=2, workers=4)).run()
    assert len(result.losses) == len(DATA) / 2


def test_it_runs_in_a_thread_and_gives_the_same_bits() -> None:
    here, there = trainer(method=LoraConfig(), dropout=0.1), None
    here.run()
    there = trainer(method=LoraConfig(), dropout=0.1)
    thread = threading.Thread(target=there.run)
    thread.start()
    thread.join()
    assert bits(there.model) == bits(here.model)


def test_first_batch_is_the_batch_of_step_0() -> None:
    made = trainer()
    first = made.first_batch()
    assert np.array_equal(first.input_ids, collate(DATA, made.batches(0)[0], PAD).input_ids)
    assert made.loss(first).item() == pytest.approx(
        trainer(TrainingConfig(lr=0.01, epochs=2, batch_size=8)).run().losses[0]
    )
    assert len(BATCH) == len(first)

"""Three training steps of every method on CuPy are NumPy's; nothing in a step waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cupy
import numpy as np
import pytest
from tiny import DATA, PAD, disturb, logits, tiny_model

import minipeft as mp
from minipeft.backend import active, random, set_backend
from minipeft.cost import measure_step
from minipeft.data import Batch
from minipeft.nn import ClassificationHead, Linear, Transformer, TransformerConfig
from minipeft.optim import AdamW, clip_factor
from minipeft.peft import (
    AdapterConfig,
    FullConfig,
    IntrinsicConfig,
    LoraConfig,
    PeftModel,
    TopKConfig,
    get_peft_model,
)
from minipeft.training import Trainer, TrainingConfig, evaluate
from minipeft.training.parallel import ShardedGradients

VOCAB, D, LAYERS, SEQ, ROWS = 40, 16, 2, 7, 4
METHODS: dict[str, Any] = {
    "full": FullConfig(),
    "topk": TopKConfig(1),
    "adapter": AdapterConfig(4),
    "lora": LoraConfig(2, 4),
    "intrinsic": IntrinsicConfig(30),
    "intrinsic-sparse": IntrinsicConfig(30, "sparse"),
    "intrinsic-dense-said": IntrinsicConfig(80, "dense", structure_aware=True),
}
methods = pytest.mark.parametrize("method", METHODS)
kinds = pytest.mark.parametrize("kind", ["encoder", "decoder"])

# The most launches that a step of LAYERS = 2 blocks may take, dropout included: kernels of ours and of CuPy, products,
# copies within the device, and fills. One more block takes 96 more in full fine-tuning, 24 of them matrix products.
LAUNCHES = {
    "full": 275,
    "topk": 185,
    "adapter": 235,
    "lora": 225,
    "intrinsic": 375,
    "intrinsic-sparse": 535,
    "intrinsic-dense-said": 540,
}


class Run:
    """A small model with a method, and its training step: the path that `Trainer` takes."""

    def __init__(self, kind: str, method: str) -> None:
        random.seed(0)
        decoder = kind == "decoder"
        config = TransformerConfig(
            VOCAB,
            D,
            LAYERS,
            heads=2,
            d_ff=24,
            max_positions=12,
            type_vocab=0 if decoder else 2,
            causal=decoder,
            norm_first=decoder,
            dropout=0.1,
            attention_dropout=0.1,
        )
        base = Transformer(config, Linear(D, VOCAB) if decoder else ClassificationHead(D, 3, 0.1))
        self.model = get_peft_model(base, METHODS[method]).train()
        rng = np.random.default_rng(1)
        for parameter in self.model.parameters():  # B = 0 and θ_d = 0 would hide most of a method's gradient
            if parameter.requires_grad:
                parameter.data += active().asarray((0.1 * rng.standard_normal(parameter.shape)).astype("float32"))
        # AdamW divides a gradient by its own size: one that is zero but for rounding, such as that of a key's bias, would
        # make a step of full length in a random direction. With this ε it does not.
        self.optimizer = AdamW(self.model.parameters(), lr=0.01, eps=1e-4)
        self.gradients = ShardedGradients(self.model, self.optimizer.flat)
        lengths = np.array([7, 5, 3, 7])
        mask = (np.arange(SEQ) < lengths[:, None]).astype(np.int32)
        labels = [rng.integers(0, VOCAB, (ROWS, SEQ)) if decoder else rng.integers(0, 3, ROWS) for _ in range(3)]
        self.batches: list[Any] = [Batch(rng.integers(0, VOCAB, (ROWS, SEQ)), mask, None, y) for y in labels]

    def step(self, i: int) -> Any:
        loss, norm = self.gradients.compute([self.batches[i]], i, batch=lambda made: made)
        self.optimizer.step(scale=clip_factor(norm, 1.0))
        return loss, norm

    def three_steps(self) -> dict[str, np.ndarray]:
        """Losses, norms of the gradient, and every parameter after the last step."""
        numbers = [x for i in range(3) for x in self.step(i)]
        found = {f"number {i}": active().to_numpy(x) for i, x in enumerate(numbers)}
        return found | {name: p.numpy() for name, p in self.model.named_parameters()}


@kinds
@methods
def test_three_steps_are_numpys(on_cupy, kind, method):
    ours = Run(kind, method).three_steps()
    set_backend("numpy")
    theirs = Run(kind, method).three_steps()
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5, err_msg=name)


@kinds
@methods
def test_a_step_does_not_wait_for_the_device(on_cupy, device_kind, kind, method):
    run = Run(kind, method)
    run.step(0)  # compiles the kernels
    if device_kind == "emulated":
        import cuda_emulator

        with cuda_emulator.counters() as counts:
            run.step(1)
        assert (counts.device_to_host, counts.synchronizations) == (0, 0), counts
        launches = counts.kernel_launches + counts.library_calls + counts.device_to_device + counts.memsets
        assert launches <= LAUNCHES[method], counts
        uploads = counts.host_to_device  # ids, segments, mask, targets, and the order of ids sorted on the host
        assert uploads <= 8, counts
        assert counts.allocations == 0, counts  # CuPy's pool has it all
    elif device_kind == "fake":
        before = fake_cupy.waits
        run.step(1)
        assert fake_cupy.waits == before
    else:
        pytest.skip("a GPU does not count what goes over to the host")


@methods
def test_saved_on_one_backend_and_loaded_on_the_other(on_cupy, method, tmp_path: Path):
    config = METHODS[method] if method != "lora" else LoraConfig(2, 4, target_modules="all-linear")
    m = get_peft_model(tiny_model(), config)
    disturb(m)
    expected = logits(m)
    m.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(), tmp_path)
    np.testing.assert_array_equal(logits(again), expected)
    set_backend("numpy")
    host = PeftModel.from_pretrained(tiny_model(), tmp_path)
    np.testing.assert_allclose(logits(host), expected, rtol=1e-5, atol=1e-5)


def test_merging_and_taking_out_again(on_cupy):
    m = get_peft_model(tiny_model(), LoraConfig(2, 4))
    disturb(m)
    expected, before = logits(m), {n: p.numpy() for n, p in m.named_parameters()}
    m.merge_adapter()
    np.testing.assert_allclose(logits(m), expected, rtol=1e-4, atol=1e-5)
    m.unmerge_adapter()
    for name, p in m.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name])


CONFIG = TrainingConfig(lr=1e-2, epochs=2, batch_size=8, workers=2)


@pytest.mark.parametrize("method", ["full", "topk", "lora"])
def test_the_trainer_the_cache_and_the_evaluation_are_numpys(on_cupy, method):
    def train() -> tuple[list[float], Any]:
        m = get_peft_model(tiny_model(), METHODS[method])
        result = Trainer(m, DATA, PAD, TrainingConfig(lr=1e-3, epochs=2, batch_size=8)).run()
        return result.losses, evaluate(m, DATA, PAD, batch_size=16)

    losses, score = train()
    set_backend("numpy")
    expected, host = train()
    np.testing.assert_allclose(losses, expected, rtol=1e-3, atol=1e-4)  # ten steps of AdamW: see `Run`
    assert score.loss == pytest.approx(host.loss, rel=1e-3)


def test_one_worker_is_used_whatever_is_asked_for(on_cupy):
    trainer = Trainer(get_peft_model(tiny_model(), LoraConfig(2, 4)), DATA, PAD, CONFIG)
    assert trainer.workers == 1
    assert on_cupy.useful_workers(4) == 1


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(on_cupy, tmp_path: Path):
    def trainer(stop_at: int | None) -> tuple[Any, Callable[[], Any]]:
        random.seed(0)
        m = get_peft_model(tiny_model(dropout=0.1), LoraConfig(2, 4))

        def on_step(step: int, steps: int, loss: Any) -> None:
            if step == stop_at:
                raise RuntimeError("stopped")

        config = TrainingConfig(lr=1e-2, epochs=2, batch_size=8, checkpoint_seconds=0)
        return m, Trainer(m, DATA, PAD, config, tmp_path / f"{stop_at}.ckpt", on_step=on_step).run

    whole, run = trainer(None)
    losses = run().losses
    _, run = trainer(7)
    with pytest.raises(RuntimeError, match="stopped"):
        run()
    (tmp_path / "7.ckpt").rename(tmp_path / "None.ckpt")
    resumed, run = trainer(None)
    assert run().losses == losses
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes(), name


def test_the_cost_of_a_step_is_measured(on_cupy, device_kind):
    run = Run("encoder", "lora")

    def loss() -> mp.Tensor:
        random.at_step(0)
        batch = run.batches[0]
        return mp.functional.cross_entropy(run.model(batch.input_ids, batch.attention_mask), batch.labels)

    cost = measure_step(run.model, loss)
    set_backend("numpy")
    run = Run("encoder", "lora")
    host = measure_step(run.model, loss)
    assert (cost.forward_flops, cost.backward_flops) == (host.forward_flops, host.backward_flops)
    assert 0.5 * host.activations < cost.activations < 2 * host.activations
    if device_kind != "fake":  # which has no pool to watch
        assert cost.activations <= cost.peak < 100 * cost.activations

"""The training loop: batches of similar length, a scheduled learning rate, clipping, and checkpoints that resume.

Every random choice is a function of (seed, epoch) or (seed, step), see `backend/random.py`: a run that was killed and
resumed goes through the same numbers as one that was not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from minipeft.autograd import Tensor, functional
from minipeft.backend import Array, active, random
from minipeft.backend.workers import Workers
from minipeft.data import Batch, TrainingSet
from minipeft.errors import Diverged, UserError, unknown
from minipeft.nn import Module
from minipeft.optim import SCHEDULES, AdamW, clip_factor
from minipeft.peft import PeftModel
from minipeft.training.cache import ActivationCache, cache_for
from minipeft.training.checkpoint import interrupt_between_steps, load_checkpoint, save_checkpoint
from minipeft.training.parallel import ShardedGradients, split
from minipeft.training.targets import logits_and_targets


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        lr: the peak learning rate.
        epochs: passes over the data.
        batch_size: rows a step.
        weight_decay: of AdamW.
        warmup: the part of all steps in which the rate climbs.
        schedule: "linear", "cosine" or "constant".
        clip: largest norm of the gradient; 0 for no clipping.
        workers: processes that share each batch; runs with the same number of them give the same bits. On CuPy it is one
            whatever is asked for: a second shard would only make the device's kernels smaller.
        cache_mb: budget for cached activations, in 10⁶ bytes (see `cache.py`); 0 for no cache.
        checkpoint_seconds: how often to write a checkpoint, besides the end of each epoch.
    """

    lr: float = 1e-3
    epochs: int = 3
    batch_size: int = 32
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: str = "linear"
    clip: float = 1.0
    workers: int = 1
    cache_mb: float = 1000.0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.workers) < 1 or not self.lr > 0 or not 0 <= self.warmup <= 1:
            raise UserError("Training needs epochs, batch_size and workers ≥ 1, lr > 0 and warmup in [0, 1].")
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)


@dataclass
class TrainingResult:
    """The loss of every step, the seconds that all took (over all resumed parts), and the median step in milliseconds."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    step_ms: float = 0.0


class Trainer:
    """Trains the trainable parameters of a model: a classifier, or a language model with a target at every token.

    Args:
        model: called with (input_ids, attention_mask, token_type_ids); gives logits.
        dataset: the training rows, and the order and the batches that they come in.
        pad_id: the token that fills a batch up.
        config: how to train.
        checkpoint: where to keep the state, so that the same call resumes; None for nowhere.
        identity: what else must be the same for a checkpoint to fit (JSON-able), e.g. the model's name and the seed.
        on_step: called after each step with (steps done, steps in all, the loss as an array of the backend).
    """

    def __init__(
        self,
        model: Module,
        dataset: TrainingSet,
        pad_id: int,
        config: TrainingConfig,
        checkpoint: Path | None = None,
        identity: dict[str, Any] | None = None,
        on_step: Callable[[int, int, Array], None] | None = None,
    ) -> None:
        self.model, self.dataset, self.pad_id, self.config = model, dataset, pad_id, config
        self.checkpoint, self.on_step = checkpoint, on_step
        self.workers = active().useful_workers(config.workers)
        self.cache_bytes = 0  # of the activations that `run` caches
        rates = model.method.rates() if isinstance(model, PeftModel) else None
        self.optimizer = AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, rates=rates)
        self.gradients = ShardedGradients(model, self.optimizer.flat, self.workers)
        self.steps_per_epoch = -(-len(dataset) // config.batch_size)
        self.total = config.epochs * self.steps_per_epoch
        shapes = {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        settings = {k: v for k, v in asdict(config).items() if k != "checkpoint_seconds"}
        method = getattr(model, "config", None)
        self.run_record = {
            "config": settings,
            "method": asdict(method) if is_dataclass(method) and not isinstance(method, type) else None,
            "rows": len(dataset),
            "trained": shapes,
            "identity": identity or {},
        }

    def loss(self, batch: Batch) -> Tensor:
        """The mean cross-entropy of a batch, as a scalar Tensor."""
        return functional.cross_entropy(*logits_and_targets(self.model, batch))

    def batches(self, epoch: int) -> list[Any]:
        """The rows of each step of an epoch: a function of (seed, epoch)."""
        return self.dataset.order(self.config.batch_size, random.generator("data", epoch))

    def first_batch(self) -> Batch:
        """The batch of step 0."""
        return self._batch(self.batches(0)[0])

    def run(self) -> TrainingResult:
        """Train, or go on where the checkpoint stands; the checkpoint file stays for the caller to remove.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; the state after the last whole step is in the checkpoint.
            UserError: the checkpoint is damaged or of another run.
            Diverged: the loss, or a number of the optimizer's, is not finite.
        """
        self.run_record["seed"] = random.root()
        step, result = self._resume()
        times: list[float] = []
        losses: list[Array] = []  # on the device, fetched at the end of an epoch or at a checkpoint
        started = last_save = time.perf_counter()
        self.model.train()
        cache = self._cache()
        self.cache_bytes = cache.tokens.nbytes if cache is not None else 0
        with interrupt_between_steps() as interrupted, Workers(self.workers) as workers:
            if cache is not None and step < self.total:
                cache.fill()
            for epoch in range(step // self.steps_per_epoch, self.config.epochs):
                for indices in self.batches(epoch)[step - epoch * self.steps_per_epoch :]:
                    began = time.perf_counter()
                    losses.append(self._step(step, indices, cache))
                    workers.barrier()  # θ has moved, for all
                    now = time.perf_counter()
                    times.append(now - began)
                    step += 1
                    if workers.rank:
                        continue  # the rest is for one to do; an error there, or Ctrl-C, ends the others
                    if self.on_step is not None:
                        self.on_step(step, self.total, losses[-1])
                    ends = step % self.steps_per_epoch == 0
                    due = now - last_save > self.config.checkpoint_seconds
                    if ends or due or interrupted():
                        self._fetch(losses, result, step)
                        result.seconds += now - started
                        started = last_save = now
                        if step < self.total or interrupted():
                            result.step_ms = 1000 * statistics.median(times)
                            self._save(step, result)
                    if interrupted():
                        raise KeyboardInterrupt
        result.step_ms = 1000 * statistics.median(times) if times else result.step_ms
        self.model.eval()
        return result

    def _cache(self) -> ActivationCache | None:
        if self.config.epochs == 1:  # every row is computed once in any case
            return None
        return cache_for(self.model, self.dataset, self.pad_id, self.config.cache_mb)

    def _step(self, step: int, indices: Any, cache: ActivationCache | None) -> Array:
        config, shards = self.config, split(indices, self.workers)
        targets = self.dataset.targets(indices)
        if cache is None:
            loss, norm = self.gradients.compute(shards, step, self._batch, targets=targets)
        else:
            loss, norm = self.gradients.compute(shards, step, cache.batch, cache.logits, targets)
        factor = SCHEDULES[config.schedule](step, self.total, round(config.warmup * self.total))
        self.optimizer.step(config.lr * factor, clip_factor(norm, config.clip) if config.clip else 1.0)
        return loss

    def _batch(self, indices: Any) -> Batch:
        return self.dataset.batch(indices, self.pad_id)

    def _fetch(self, losses: list[Array], result: TrainingResult, step: int) -> None:
        result.losses += active().to_numpy(active().xp.stack(losses)).tolist()  # one wait for all
        losses.clear()
        if not result.losses[-1] < float("inf"):  # also catches NaN
            raise Diverged(
                f"The loss is {result.losses[-1]} at step {step}: training diverged. Lower the learning rate."
            )

    def _save(self, step: int, result: TrainingResult) -> None:
        if self.checkpoint is not None:
            record = {"run": self.run_record, "step": step, **asdict(result)}
            save_checkpoint(self.checkpoint, self.optimizer.state_dict(), record)

    def _resume(self) -> tuple[int, TrainingResult]:
        if self.checkpoint is None or not self.checkpoint.exists():
            return 0, TrainingResult()
        arrays, record = load_checkpoint(self.checkpoint, self.run_record)
        self.optimizer.load_state_dict(arrays, record["step"])
        return record["step"], TrainingResult(
            list(record["losses"]), float(record["seconds"]), float(record["step_ms"])
        )

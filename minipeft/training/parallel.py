"""Batch shards: each worker runs the forward and backward pass of its part of the batch.

Each writes a gradient vector of its own; then each adds up a piece of all of them, in the order of the ranks: the same seed
and number of workers give the same bits. In the words of distributed training: data parallelism with a reduce-scatter, and
an optimizer whose state is shared out (arXiv 1910.02054, section 5.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minipeft.autograd import Tensor, functional
from minipeft.autograd.tape import Partial, Product, backward
from minipeft.backend import Array, active, random
from minipeft.backend.workers import current_workers
from minipeft.nn import Module
from minipeft.optim import FlatParameters
from minipeft.training.targets import logits_and_targets


class ShardedGradients:
    """Computes the gradient of a batch's mean loss into a flat vector, shard by shard.

    Args:
        model: called with the inputs of a `Batch`, it gives logits.
        flat: the parameters, and the vector for their gradient.
        workers: how many will share the work; make this before they start.
    """

    def __init__(self, model: Module, flat: FlatParameters, workers: int = 1) -> None:
        shared, dtype = active().shared, flat.grad.dtype
        self.model, self.flat = model, flat
        with model.prepared() as pairs:
            size = sum(leaf.numel() for _, leaf in pairs)
        others = range(1, workers)
        self.own = [flat.grad, *(shared(flat.grad.shape, dtype) for _ in others)]  # of each rank, over the parameters
        self.common = [shared((size,), dtype) for _ in range(workers)]  # and over what `prepared` gives
        self.sums = shared((workers, 2), dtype)  # of each rank: its part of the loss, and of the squared norm
        self.sink: Sink | None = None

    def compute(
        self,
        shards: Sequence[Any],
        step: int,
        batch: Callable[[Any], Any],
        forward: Callable[[Any], Tensor] | None = None,
        targets: int | None = None,
    ) -> tuple[Array, Array]:
        """Write dL/dθ to `flat.grad`; returns L, the mean cross-entropy over all shards, and the norm of dL/dθ.

        Both are 0-d arrays. With several workers, each finds its own `slice` of `flat.grad` complete.

        Args:
            shards: the numbers of the rows of each.
            step: for the random numbers of dropout.
            batch: makes a `Batch`, or what has labels like one, of such numbers.
            forward: gives the logits of what `batch` made; the model does, without one.
            targets: over how many targets the loss is a mean; one a row when None.
        """
        workers, rows = current_workers(), targets or sum(len(shard) for shard in shards)
        rank, xp = workers.rank, active().xp
        loss: Any = xp.zeros((), dtype=self.flat.grad.dtype)
        with self.model.prepared() as pairs:
            own = self._sink(rank)
            common = Sink([leaf for _, leaf in pairs], self.common[rank])

            def take(leaf: Tensor, g: Any) -> None:
                (common if leaf in common else own).add(leaf, g)

            for i in range(rank, len(shards), workers.count):
                random.at_step(step, i)
                made = batch(shards[i])
                logits, labels = (forward(made), made.labels) if forward else logits_and_targets(self.model, made)
                part = functional.cross_entropy(logits, labels, reduction="sum") * (1 / rows)
                backward([part], [xp.ones_like(part.data)], take)
                loss = loss + part.data
            if pairs:
                common.finish()
                workers.barrier()
                self._add_up(self.common)
                workers.barrier()
                total = Sink([leaf for _, leaf in pairs], self.common[0])
                gradients = [total.views[id(leaf)] for _, leaf in pairs]
                backward([tensor for tensor, _ in pairs], gradients, own.add if rank == 0 else _drop)
        own.finish()
        self.sums[rank, 0] = loss
        workers.barrier()
        losses = self.sums[:, 0].sum()
        self.sums[rank, 1] = self._add_up(self.own)
        workers.barrier()
        return losses, self.sums[:, 1].sum() ** 0.5

    def _sink(self, rank: int) -> Sink:
        if self.sink is None or self.sink.vector is not self.own[rank]:
            self.sink = Sink(self.flat.parameters, self.own[rank], nobody_else_writes=rank > 0)
        self.sink.dense.clear()
        return self.sink

    def _add_up(self, vectors: list[Array]) -> Array:
        """Add this rank's piece of all vectors into the first; returns the squared norm of the piece."""
        part = current_workers().slice(vectors[0].size)
        return active().sum_into([vector[part] for vector in vectors])


class Sink:
    """Takes the gradients of `leaves` into consecutive pieces of a vector, whatever was there before.

    `dense` says which pieces have been written. Partial gradients (a few rows of a table) wait for `finish`. Where nobody
    else writes to the vector, the rest of such a piece stays zero, and only the rows of last time are cleared.
    """

    def __init__(self, leaves: Sequence[Tensor], vector: Array, nobody_else_writes: bool = False) -> None:
        self.vector, self.nobody_else_writes = vector, nobody_else_writes
        self.views: dict[int, Array] = {}
        self.dense: set[int] = set()
        self.partials: dict[int, list[Partial]] = {}
        self.stale: dict[int, list[Any]] = {}  # of pieces that are zero elsewhere: the rows that are not
        start = 0
        for leaf in leaves:
            self.views[id(leaf)] = vector[start : start + leaf.numel()].reshape(leaf.shape)
            start += leaf.numel()

    def __contains__(self, leaf: Tensor) -> bool:
        return id(leaf) in self.views

    def add(self, leaf: Tensor, g: Any) -> None:
        """Add a gradient: an array, a `Partial`, or a `Product`, which is multiplied out in its place."""
        key = id(leaf)
        view = self.views[key]
        if isinstance(g, Partial):
            self.partials.setdefault(key, []).append(g)
        elif key in self.dense:
            view += g.value() if isinstance(g, Product) else g
        elif isinstance(g, Product):
            active().matmul(g.left, g.right, out=view)
        else:
            view[...] = g
        if not isinstance(g, Partial):
            self.dense.add(key)

    def finish(self) -> None:
        """Add the partial gradients; a leaf without any gradient gets zero."""
        for key, view in self.views.items():
            stale = self.stale.pop(key, None)
            if key not in self.dense:
                if stale is None:
                    view.fill(0)
                else:
                    for index in stale:
                        view[index] = 0
                if self.nobody_else_writes:
                    self.stale[key] = [index for index, _ in self.partials.get(key, ())]
            for index, value in self.partials.pop(key, ()):
                view[index] += value


def _drop(leaf: Tensor, g: Any) -> None:
    """The gradient behind what is `prepared` is the same in every rank; one keeps it."""


def split(indices: Any, shards: int) -> list[Any]:
    """At most `shards` parts of nearly equal size, none of them empty."""
    shards = min(shards, len(indices))
    return [indices[i::shards] for i in range(shards)]

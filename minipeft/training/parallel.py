"""Batch shards: each worker runs the forward and backward pass of its part of the batch.

Each writes a gradient vector of its own, and the vectors are added in a fixed order: the same seed and number of workers
give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minipeft.autograd import Tensor, functional
from minipeft.autograd.tape import Partial, Product, backward
from minipeft.backend import Array, active, random
from minipeft.backend.workers import Workers, parallel_map
from minipeft.data import Batch
from minipeft.nn import Module
from minipeft.optim import FlatParameters


class ShardedGradients:
    """Computes the gradient of a batch's mean loss into a flat vector, shard by shard."""

    def __init__(self, flat: FlatParameters) -> None:
        self.flat = flat
        self._own: dict[int, Array] = {}  # the gradient vectors of the shards after the first
        self._shared: dict[int, Array] = {}  # and those of what the shards share (see Module.prepared)

    def compute(
        self,
        model: Module,
        shards: Sequence[Any],
        step: int,
        workers: Workers,
        forward: Callable[[Any], Tensor] | None = None,
    ) -> Array:
        """Write dL/dθ to `flat.grad` and return L, the mean cross-entropy over the rows of all shards (a 0-d array).

        `forward` gives a shard's logits; without one, the model is called with the inputs of a `Batch`.
        """
        rows = sum(len(shard) for shard in shards)

        def plain(batch: Batch) -> Tensor:
            logits: Tensor = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
            return logits

        with model.prepared() as shared:
            leaves = [leaf for _, leaf in shared]

            def run(i: int) -> tuple[Array, Sink, Sink]:
                random.at_step(step, i)
                own = Sink(
                    self.flat.parameters, self.flat.grad if i == 0 else self._vector(self._own, i, self.flat.grad)
                )
                rest = Sink(leaves, self._vector(self._shared, i, leaves))
                shard = shards[i]
                logits = (forward or plain)(shard)
                loss = functional.cross_entropy(logits, shard.labels, reduction="sum") * (1 / rows)
                backward(
                    [loss],
                    [active().xp.ones_like(loss.data)],
                    lambda leaf, g: (rest if leaf in rest else own).add(leaf, g),
                )
                return loss.data, own, rest

            results = workers.map(run, range(len(shards)))
            add_up([own for _, own, _ in results])
            add_up([rest for _, _, rest in results])
            if leaves:
                views = results[0][2].views
                sink = Sink(self.flat.parameters, self.flat.grad)
                sink.dense.update(sink.views)  # what is there stays, and more is added
                backward([tensor for tensor, _ in shared], [views[id(leaf)] for leaf in leaves], sink.add)
                add_up([sink])
        return sum((loss for loss, _, _ in results[1:]), start=results[0][0])

    def _vector(self, kept: dict[int, Array], i: int, like: Any) -> Array:
        if i not in kept:
            xp = active().xp
            size = like.size if hasattr(like, "size") else sum((leaf.numel() for leaf in like), start=0)
            kept[i] = xp.empty(size, dtype=self.flat.grad.dtype)
        return kept[i]


class Sink:
    """Takes the gradients of `leaves` into consecutive pieces of a vector, whatever was there before.

    `dense` says which pieces have been written. Partial gradients (of a few rows of a table) wait for `add_up`: only there
    does the table's piece have to be filled, once for all shards.
    """

    def __init__(self, leaves: Sequence[Tensor], vector: Array) -> None:
        self.views: dict[int, Array] = {}
        self.dense: set[int] = set()
        self.partials: dict[int, list[Partial]] = {}
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


def add_up(sinks: list[Sink]) -> None:
    """Add what all sinks have taken into the first one's vector, in their order; a leaf without a gradient gets zero."""

    def add(key: int) -> None:
        total = sinks[0].views[key]
        if key not in sinks[0].dense:
            total.fill(0)
        for sink in sinks[1:]:
            if key in sink.dense:
                total += sink.views[key]
        for sink in sinks:
            for index, value in sink.partials.get(key, ()):
                total[index] += value

    parallel_map(add, sorted(sinks[0].views, key=lambda key: -sinks[0].views[key].size))


def split(indices: Any, shards: int) -> list[Any]:
    """At most `shards` parts of nearly equal size, none of them empty."""
    shards = min(shards, len(indices))
    return [indices[i::shards] for i in range(shards)]

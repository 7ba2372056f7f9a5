"""Our side of a step: the path that `minipeft.training.Trainer` takes, without its log and its checkpoints."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.cases import CLIP, LR, WEIGHT_DECAY, Shape, Unsupported, inputs, split_method, threads, widths
from minipeft.autograd import Tensor
from minipeft.backend import active, random, set_backend
from minipeft.backend.workers import Workers, current_workers
from minipeft.cost import activation_bytes, count_flops
from minipeft.data import Batch, EncodedSet, collate
from minipeft.data.tokenize import Encoded
from minipeft.errors import UserError
from minipeft.experiments.methods import parse_method
from minipeft.nn import ClassificationHead, LanguageHead, Linear, Module, Transformer, TransformerConfig
from minipeft.optim import AdamW, clip_factor
from minipeft.peft import get_peft_model
from minipeft.training.parallel import ShardedGradients, split


class MLP(Module):
    """relu(X W + b) some times, then a linear layer."""

    def __init__(self, sizes: list[int]) -> None:
        self.layers = [Linear(i, o) for i, o in itertools.pairwise(sizes)]

    def forward(self, x: Any, *_: Any) -> Tensor:
        """Float array (batch, in) -> (batch, classes); the mask and the segments of a `Batch` are not for it."""
        h = Tensor(x)
        for layer in self.layers[:-1]:
            h = layer(h).relu()
        return self.layers[-1](h)


DECODER: dict[str, Any] = {"norm_first": True, "causal": True, "norm_eps": 1e-5}
LLAMA = {"norm": "rms", "rope_base": 1e5, "activation": "swiglu", "attention_bias": False, "mlp_bias": False}
KINDS: dict[str, dict[str, Any]] = {
    "bert": {"type_vocab": 2},
    "gpt": DECODER,
    "llama": DECODER | LLAMA,
    "tied": DECODER | LLAMA,
}


def import_for(shape: Shape, peer: str) -> None:
    """Nothing: this module has imported it all."""


def build_model(shape: Shape) -> Module:
    """The model of a shape, with random weights and no method."""
    if shape.kind == "mlp":
        return MLP(widths(shape))
    config = TransformerConfig(
        vocab_size=shape.vocab,
        d_model=shape.d,
        layers=shape.layers,
        heads=shape.heads,
        d_ff=shape.d_ff,
        max_positions=shape.positions,
        **KINDS[shape.kind],
        kv_heads=shape.kv_heads,
    )
    if shape.kind == "bert":
        return Transformer(config, ClassificationHead(shape.d, shape.classes))
    if shape.kind == "tied":
        model = Transformer(config)
        model.head = LanguageHead(model.embed.word)
        return model
    return Transformer(config, Linear(shape.d, shape.vocab, bias=shape.kind == "gpt"))


class Step:
    """Calling it makes one training step and returns the loss: gradient by shards, clipping, AdamW.

    The loss of a row is the sum over its positions, and that of the batch their mean: what `ShardedGradients` computes.
    Use it as a context manager: the workers live inside.
    """

    def __init__(self, shape: Shape, method: str, backend: str = "numpy", model: Module | None = None) -> None:
        try:
            set_backend(backend)
        except UserError as error:
            raise Unsupported(str(error)) from None
        random.seed(0)
        self.cached = split_method(method)[2]
        base = build_model(shape) if model is None else model
        if shape.kind == "mlp":
            self.model = base
        else:
            self.model = get_peft_model(base, parse_method(method.removesuffix(":cached")).config)
        self.data = _dataset(shape)
        self.optimizer = AdamW(self.model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        count = active().useful_workers(threads())
        self.gradients = ShardedGradients(self.model, self.optimizer.flat, count)
        self.workers = Workers(count)
        self.steps = 0
        self.cache: Any = self._make_cache() if self.cached else None
        self.go_on = active().shared((1,), "uint8")  # rank 0 tells the others whether there is a step to come

    def __enter__(self) -> Step:
        self.model.train()
        self.workers.__enter__()
        if self.cache is not None:
            self.cache.fill()
        if self.workers.rank:
            self.workers.barrier()
            while self.go_on[0]:
                self._work()
                self.workers.barrier()
            self.workers.__exit__(None, None, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_on[0] = 0
        if error is None:
            self.workers.barrier()
        self.workers.__exit__(kind, error, trace)

    def __call__(self) -> Any:
        """One step; the loss as a 0-d array."""
        self.go_on[0] = 1
        self.workers.barrier()
        return self._work()

    def _work(self) -> Any:
        loss, norm = self.gradient()
        self.optimizer.step(scale=clip_factor(norm, CLIP))
        self.workers.barrier()
        self.steps += 1
        return loss

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""
        active().synchronize()

    def device_mb(self) -> float:
        """What the backend's pool holds on a GPU."""
        return active().device_bytes() / 1e6

    def gradient(self) -> Any:
        """The gradient of the batch alone; its loss and norm."""
        shards = split(np.arange(len(self.data)), current_workers().count)
        if self.cache is not None:
            return self.gradients.compute(shards, self.steps, self.cache.batch, self.cache.logits)
        return self.gradients.compute(shards, self.steps, self.batch)

    def batch(self, rows: Any) -> Batch:
        """Some rows as the model takes them."""
        if isinstance(self.data, EncodedSet):
            return collate(self.data, rows, pad_id=0)
        return Batch(self.data.input_ids[rows], None, None, self.data.labels[rows])  # type: ignore[arg-type]

    def count(self) -> dict[str, float]:
        """Operations of the matrix products of a step, what its tape holds, and the number of trained parameters."""
        with Workers(1), count_flops() as counted:  # in this process: of the others' operations it knows nothing
            self.gradient()
        batch = self.batch(np.arange(len(self.data)))
        logits = self.model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        return {
            "gflop": counted.flops / 1e9,
            "activation_mb": activation_bytes(logits, self.model) / 1e6,
            "trained": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
        }

    def _make_cache(self) -> Any:
        try:
            from minipeft.training.cache import cache_for
        except ImportError:
            raise Unsupported("This version of minipeft has no activation cache.") from None
        cache = cache_for(self.model, self.data, 0, float("inf"))
        if cache is None:
            raise Unsupported("There is nothing to cache: no block is frozen below the lowest trained one.")
        return cache


def _dataset(shape: Shape) -> Any:
    """The rows of the batch. Rows of "gpt" carry a label a position, which `collate` and the loss take as they are."""
    x, labels = inputs(shape)
    if shape.kind == "mlp":
        return Batch(x, None, None, labels)  # type: ignore[arg-type]
    no_segment = np.zeros(shape.seq, dtype=np.int32)
    rows = tuple(Encoded(row.astype(np.int32), no_segment) for row in x)
    return EncodedSet(rows, labels.astype(np.int32), np.full(len(rows), shape.seq, dtype=np.int32))

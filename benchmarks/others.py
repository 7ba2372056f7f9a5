"""The small autograd engines as peers, on the MLP and the GPT: HIPS autograd and MyGrad.

Models are written as these libraries' users would: their NumPy, their ops. Both get a plain AdamW and the same clipping.
The GPT's GELU is the tanh form: neither has erf without SciPy.
"""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np

from benchmarks.cases import CLIP, LR, WEIGHT_DECAY, Shape, inputs, widths


class AdamW:
    """AdamW and clipping on a list of arrays, in place."""

    def __init__(self, arrays: list[Any]) -> None:
        self.arrays, self.steps = arrays, 0
        self.m, self.v = [np.zeros_like(a) for a in arrays], [np.zeros_like(a) for a in arrays]

    def step(self, gradients: list[Any]) -> None:
        """One update."""
        self.steps += 1
        norm = float(sum(np.vdot(g, g) for g in gradients)) ** 0.5
        factor = np.float32(min(1.0, CLIP / (norm + 1e-6)))
        root = (1 - 0.999**self.steps) ** 0.5
        for a, g, m, v in zip(self.arrays, gradients, self.m, self.v, strict=True):
            g = g * factor
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            a *= 1 - LR * WEIGHT_DECAY
            a -= (LR / (1 - 0.9**self.steps)) * m / (np.sqrt(v) / root + 1e-8)


def parameters(shape: Shape) -> list[Any]:
    """Random weights: W, b of each layer of the MLP; of the GPT the two tables, 16 arrays a block, and the last four."""
    rng = np.random.default_rng(0)

    def linear(i: int, o: int) -> list[Any]:
        return [0.02 * rng.standard_normal((i, o), dtype=np.float32), np.zeros(o, dtype=np.float32)]

    def norm() -> list[Any]:
        return [np.ones(shape.d, dtype=np.float32), np.zeros(shape.d, dtype=np.float32)]

    if shape.kind == "mlp":
        sizes = widths(shape)
        return [a for i, o in itertools.pairwise(sizes) for a in linear(i, o)]
    d, ff = shape.d, shape.d_ff
    out = [0.02 * rng.standard_normal((n, d), dtype=np.float32) for n in (shape.vocab, shape.positions)]
    for _ in range(shape.layers):
        out += norm() + [a for _ in range(4) for a in linear(d, d)] + norm() + linear(d, ff) + linear(ff, d)
    return out + norm() + linear(d, shape.vocab)


class AutogradStep:
    """One step with HIPS autograd."""

    def __init__(self, shape: Shape) -> None:
        from autograd import value_and_grad

        self.theta = parameters(shape)
        self.optimizer = AdamW(self.theta)
        x, labels = inputs(shape)
        logits = _mlp if shape.kind == "mlp" else _gpt

        def loss(theta: list[Any]) -> Any:
            import autograd.numpy as anp

            z = logits(anp, theta, x, shape)
            z = z.reshape(-1, z.shape[-1])
            z = z - anp.max(z, axis=-1, keepdims=True)
            log_p = z - anp.log(anp.sum(anp.exp(z), axis=-1, keepdims=True))
            return -anp.sum(log_p[np.arange(labels.size), labels.reshape(-1)]) / np.float32(len(labels))

        self.loss_and_gradient = value_and_grad(loss)

    def __call__(self) -> Any:
        loss, gradients = self.loss_and_gradient(self.theta)
        self.optimizer.step(gradients)
        return loss


class MygradStep:
    """One step with MyGrad."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.theta = parameters(shape)
        self.optimizer = AdamW(self.theta)
        self.x, self.labels = inputs(shape)
        self.logits = _mlp if shape.kind == "mlp" else _gpt

    def __call__(self) -> Any:
        import mygrad as mg
        from mygrad.nnet.losses import softmax_crossentropy

        theta = [mg.tensor(a, copy=False) for a in self.theta]
        logits = self.logits(mg, theta, self.x, self.shape)
        labels = self.labels.reshape(-1)
        loss = softmax_crossentropy(logits, labels) * np.float32(labels.size / len(self.labels))
        loss.backward()
        self.optimizer.step([t.grad for t in theta])
        return loss.data


def _dot(anp: Any) -> Any:
    return getattr(anp, "dot", anp.matmul)  # autograd's gradient of dot is the faster one; MyGrad has no dot


def _mlp(anp: Any, theta: list[Any], h: Any, shape: Shape) -> Any:
    dot = _dot(anp)
    for i in range(0, len(theta) - 2, 2):
        h = anp.maximum(dot(h, theta[i]) + theta[i + 1], 0)
    return dot(h, theta[-2]) + theta[-1]


def _gpt(anp: Any, theta: list[Any], ids: Any, shape: Shape) -> Any:
    batch, seq = ids.shape
    dot = _dot(anp)
    future = np.triu(np.full((seq, seq), -1e30, dtype=np.float32), 1)

    def norm(x: Any, w: Any, b: Any) -> Any:
        x = x - anp.mean(x, axis=-1, keepdims=True)
        return x / anp.sqrt(anp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * w + b

    def heads(x: Any) -> Any:
        return anp.transpose(x.reshape(batch, seq, shape.heads, -1), (0, 2, 1, 3))

    x = (theta[0][ids] + theta[1][:seq]).reshape(-1, shape.d)  # 2-D from here on: dot has BLAS for that alone
    for i in range(2, 2 + 16 * shape.layers, 16):
        n1, c1, wq, bq, wk, bk, wv, bv, wo, bo, n2, c2, wu, bu, wd, bd = theta[i : i + 16]
        h = norm(x, n1, c1)
        q, k, v = (heads(dot(h, w) + b) for w, b in ((wq, bq), (wk, bk), (wv, bv)))
        scores = anp.matmul(q, anp.swapaxes(k, -1, -2)) * (shape.d // shape.heads) ** -0.5 + future
        e = anp.exp(scores - anp.max(scores, axis=-1, keepdims=True))
        mixed = anp.matmul(e / anp.sum(e, axis=-1, keepdims=True), v)
        x = x + dot(anp.transpose(mixed, (0, 2, 1, 3)).reshape(-1, shape.d), wo) + bo
        u = dot(norm(x, n2, c2), wu) + bu
        x = x + dot(0.5 * u * (1 + anp.tanh(0.7978845608 * (u + 0.044715 * u * u * u))), wd) + bd
    return dot(norm(x, *theta[-4:-2]), theta[-2]) + theta[-1]


def import_for(shape: Shape, peer: str) -> None:
    """Import the library; ImportError when it is not there."""
    importlib.import_module("autograd.numpy" if peer == "autograd" else "mygrad.nnet.losses")


class Step:
    """The step of a peer, on all parameters (`method` is "full")."""

    def __init__(self, shape: Shape, method: str, peer: str) -> None:
        self.step = (AutogradStep if peer == "autograd" else MygradStep)(shape)
        self.trained = sum(a.size for a in self.step.theta)

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self) -> Any:
        """One step; the loss."""
        return self.step()

    def count(self) -> dict[str, float]:
        """The number of trained parameters."""
        return {"trained": self.trained}

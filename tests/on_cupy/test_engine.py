"""Every op and fused function: the value against NumPy's, the gradient against NumPy's and against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minipeft.autograd import Tensor, functional, gradcheck, ops
from minipeft.backend import random, set_backend
from minipeft.errors import UserError

A, B = (2, 3, 4), (3, 4)
Case = tuple[Callable[..., Tensor], list[tuple[int, ...]]]

CONDITION = np.arange(12).reshape(B) % 3 == 0
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=np.int32)
IDS = np.array([[3, 0, 3], [1, 3, 0]], dtype=np.int32)
TARGETS = np.array([2, 0, -100, 3], dtype=np.int32)


def _attention(**options: Any) -> Callable[..., Tensor]:
    return lambda q, k, v: functional.attention(q, k, v, 2, **options)


CASES: dict[str, Case] = {
    "add": (ops.add, [A, B]),
    "subtract": (ops.subtract, [A, B]),
    "multiply": (ops.multiply, [A, B]),
    "multiply by an array of the host": (lambda x: x * CONDITION.astype("float32"), [B]),
    "divide": (lambda x, y: x / (y * y + 1.0), [A, B]),
    "power": (lambda x: (x * x + 0.5) ** 1.5, [B]),
    "maximum": (ops.maximum, [A, B]),
    "where": (lambda x, y: ops.where(CONDITION, x, y), [B, B]),
    "exp": (ops.exp, [B]),
    "log": (lambda x: (x * x + 0.5).log(), [B]),
    "sqrt": (lambda x: (x * x + 0.5).sqrt(), [B]),
    "tanh": (ops.tanh, [B]),
    "relu": (ops.relu, [B]),
    "matmul": (ops.matmul, [(3, 4), (4, 2)]),
    "matmul of a batch and a weight": (ops.matmul, [(2, 3, 4), (4, 2)]),
    "matmul of batches": (ops.matmul, [(2, 3, 4), (2, 4, 5)]),
    "matmul of batches of two axes": (ops.matmul, [(2, 3, 4, 5), (2, 3, 5, 2)]),
    "reshape": (lambda x: x.reshape(4, 6) * 2.0, [A]),
    "swapaxes": (lambda x: x.swapaxes(0, 2) * 2.0, [A]),
    "transpose": (lambda x: x.transpose(2, 0, 1) * 2.0, [A]),
    "getitem": (lambda x: x[:, 0] + x[:, 1] * 2.0, [A]),
    "concatenate": (lambda x, y: ops.concatenate([x, y], axis=1), [(2, 3), (2, 1)]),
    "stack": (lambda x, y: ops.stack([x, y], axis=1), [B, B]),
    "sum": (lambda x: x.sum(axis=(0, 2)) + x.sum(), [A]),
    "mean": (lambda x: x.mean(axis=1, keepdims=True) * x, [A]),
    "max": (lambda x: x.max(axis=1) + x.max(), [A]),
    "linear": (functional.linear, [(2, 5, 3), (3, 4), (4,)]),
    "layer_norm": (lambda x, w, b: functional.layer_norm(x, w, b, 1e-3), [A, (4,), (4,)]),
    "rms_norm": (lambda x, w: functional.rms_norm(x, w, 1e-3), [A, (4,)]),
    "gelu": (functional.gelu, [A]),
    "gelu, tanh": (lambda x: functional.gelu(x, "tanh"), [A]),
    "silu": (functional.silu, [A]),
    "softmax": (functional.softmax, [A]),
    "cross_entropy": (lambda x: functional.cross_entropy(x, TARGETS), [(4, 5)]),
    "cross_entropy, summed": (lambda x: functional.cross_entropy(x, TARGETS, reduction="sum"), [(4, 5)]),
    "embedding": (lambda w: functional.embedding(w, IDS), [(5, 3)]),
    "attention": (_attention(), [(2, 5, 4)] * 3),
    "attention, masked": (_attention(mask=MASK), [(2, 5, 4)] * 3),
    "attention, causal": (_attention(causal=True), [(2, 5, 4)] * 3),
    "attention, all of it": (_attention(mask=MASK, causal=True, dropout_p=0.3), [(2, 5, 4)] * 3),
    "dropout": (lambda x: functional.dropout(x, 0.4), [A]),
}


def same_masks(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Dropout draws the same mask at each call: a function that gradcheck can look at."""

    def call(*inputs: Tensor) -> Tensor:
        random.at_step(3)
        return f(*inputs)

    return call


def compute(case: Case, dtype: str) -> list[np.ndarray]:
    """The value, and the gradient of Σ c ⊙ value for each input, on the active backend."""
    f, shapes = case
    rng = np.random.default_rng(0)
    inputs = [Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True) for shape in shapes]
    out = same_masks(f)(*inputs)
    out.backward(rng.standard_normal(out.shape).astype(dtype))
    return [out.numpy(), *(Tensor(x.grad).numpy() for x in inputs)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_numpys(on_cupy, name, dtype):
    ours = compute(CASES[name], dtype)
    set_backend("numpy")
    tolerance = 2e-6 if dtype == "float32" else 1e-12
    for a, b in zip(ours, compute(CASES[name], dtype), strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_gradient_agrees_with_finite_differences(on_cupy, name):
    f, shapes = CASES[name]
    rng = np.random.default_rng(1)
    inputs = [Tensor(rng.standard_normal(shape), requires_grad=True) for shape in shapes]
    gradcheck(same_masks(f), *inputs, directions=1)


def test_ids_and_classes_out_of_range_are_refused(on_cupy):
    table = Tensor(np.zeros((5, 2), dtype="float32"))
    for ids in ([[5]], [[-1]], [[0.0]]):
        for place in (np.array(ids), on_cupy.asarray(np.array(ids))):
            with pytest.raises(UserError, match="token id"):
                functional.embedding(table, place)
    with pytest.raises(UserError, match="class 5 is out of range"):
        functional.cross_entropy(Tensor(np.zeros((1, 5), dtype="float32")), np.array([5]))

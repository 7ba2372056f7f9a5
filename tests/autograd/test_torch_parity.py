"""Every fused function against torch: values and gradients, to 1e-12 in float64 and to 1e-5 in float32."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from minipeft.autograd import Tensor, functional
from minipeft.autograd import functional as F
from minipeft.backend import random

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
MASK = np.array([[1, 1, 1, 0, 0, 1, 0], [1, 1, 0, 1, 1, 1, 1]])
IDS = np.array([[1, 4, 1, 8], [0, 1, 4, 4]])
TARGETS = np.array([0, 3, -100, 1, 1])


def split(torch, x, heads):
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def attention(torch, q, k, v, heads, mask=None, causal=False):
    """The attention of torch; `mask` (batch, seq) of what may be seen."""
    allowed = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    allowed = allowed.tril(k.shape[1] - q.shape[1]) if causal else allowed
    allowed = allowed[None, None]
    if mask is not None:
        allowed = allowed & torch.tensor(mask).bool()[:, None, None, :]
    heads_out = torch.nn.functional.scaled_dot_product_attention(
        *(split(torch, t, heads) for t in (q, k, v)), attn_mask=allowed
    )
    return heads_out.transpose(1, 2).reshape(q.shape)


def both_attentions(heads, **options):
    return (
        lambda q, k, v: F.attention(q, k, v, heads, **options),
        lambda torch, q, k, v: attention(torch, q, k, v, heads, **options),
    )


# name: ours, torch's, shapes of the inputs
CASES = {
    "linear": (
        F.linear,
        lambda torch, x, w, b: torch.nn.functional.linear(x, w.T, b),
        [(2, 5, 6), (6, 4), (4,)],
    ),
    "linear without bias": (F.linear, lambda torch, x, w: torch.nn.functional.linear(x, w.T), [(1, 6), (6, 4)]),
    "layer_norm": (
        lambda x, w, b: F.layer_norm(x, w, b, 1e-12),
        lambda torch, x, w, b: torch.nn.functional.layer_norm(x, (33,), w, b, 1e-12),
        [(2, 5, 33), (33,), (33,)],
    ),
    "layer_norm without bias": (
        lambda x, w: F.layer_norm(x, w, None),
        lambda torch, x, w: torch.nn.functional.layer_norm(x, (6,), w),
        [(1, 6), (6,)],
    ),
    "rms_norm": (
        lambda x, w: F.rms_norm(x, w, 1e-6),
        lambda torch, x, w: torch.nn.functional.rms_norm(x, (33,), w, 1e-6),
        [(2, 5, 33), (33,)],
    ),
    "gelu": (F.gelu, lambda torch, x: torch.nn.functional.gelu(x), [(7, 300)]),
    "gelu tanh": (
        lambda x: F.gelu(x, "tanh"),
        lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh"),
        [(7, 300)],
    ),
    "silu": (F.silu, lambda torch, x: torch.nn.functional.silu(x), [(7, 30)]),
    "swiglu": (F.swiglu, lambda torch, gate, up: torch.nn.functional.silu(gate) * up, [(7, 30), (7, 30)]),
    "unembed": (F.unembed, lambda torch, x, E: torch.nn.functional.linear(x, E), [(2, 5, 6), (9, 6)]),
    "softmax": (F.softmax, lambda torch, x: torch.softmax(x, dim=-1), [(2, 3, 9)]),
    "cross_entropy": (
        lambda x: F.cross_entropy(x, TARGETS),
        lambda torch, x: torch.nn.functional.cross_entropy(x, torch.tensor(TARGETS)),
        [(5, 4)],
    ),
    "cross_entropy sum": (
        lambda x: F.cross_entropy(x, TARGETS, reduction="sum"),
        lambda torch, x: torch.nn.functional.cross_entropy(x, torch.tensor(TARGETS), reduction="sum"),
        [(5, 4)],
    ),
    "cross_entropy ignoring 1": (
        lambda x: F.cross_entropy(x, abs(TARGETS) % 4, ignore_index=1),
        lambda torch, x: torch.nn.functional.cross_entropy(x, torch.tensor(abs(TARGETS) % 4), ignore_index=1),
        [(5, 4)],
    ),
    "embedding": (
        lambda w: F.embedding(w, IDS),
        lambda torch, w: torch.nn.functional.embedding(torch.tensor(IDS), w),
        [(9, 5)],
    ),
    "dropout": (  # torch's masks are its own: compare at the mask that we drew
        lambda x: F.dropout(x, 0.3),
        lambda torch, x: x * torch.tensor(F.dropout(Tensor(np.ones((9, 5))), 0.3).numpy() != 0) / 0.7,
        [(9, 5)],
    ),
    "attention": (*both_attentions(2), [(2, 7, 6)] * 3),
    "attention one head": (*both_attentions(1), [(2, 7, 6)] * 3),
    "attention masked": (*both_attentions(3, mask=MASK), [(2, 7, 6)] * 3),
    "attention causal": (*both_attentions(2, causal=True), [(2, 7, 6)] * 3),
    "attention causal masked": (*both_attentions(2, causal=True, mask=MASK), [(2, 7, 6)] * 3),
    "attention few queries": (*both_attentions(2, causal=True), [(2, 3, 6), (2, 7, 6), (2, 7, 6)]),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("name", CASES)
def test_parity(torch, name, dtype, scale):
    ours, theirs, shapes = CASES[name]
    rng = np.random.default_rng(len(name))
    values = [(rng.standard_normal(shape) * (scale if i == 0 else 1)).astype(dtype) for i, shape in enumerate(shapes)]
    inputs = [Tensor(v, requires_grad=True) for v in values]
    references = [torch.tensor(v, requires_grad=True) for v in values]

    random.at_step(0)
    out = ours(*inputs)
    random.at_step(0)
    expected = theirs(torch, *references)
    g = np.asarray(rng.standard_normal(out.shape)).astype(dtype)
    out.backward(g)
    expected.backward(torch.tensor(g))

    def close(mine, torchs, what):
        torchs = torchs.detach().numpy()
        tolerance = TOLERANCE[dtype] * max(1.0, np.abs(torchs).max())
        np.testing.assert_allclose(mine, torchs, rtol=0, atol=tolerance, err_msg=what)

    close(out.data, expected, "value")
    for i, (t, r) in enumerate(zip(inputs, references, strict=True)):
        close(t.grad, r.grad, f"gradient of argument {i}")


def test_every_public_function_is_compared():
    public = {
        name
        for name, f in inspect.getmembers(functional, inspect.isfunction)
        if f.__module__ == functional.__name__ and not name.startswith("_")
    }
    assert public - {"check_range"} == {name.split()[0] for name in CASES}

"""Each kernel of the CuPy backend against the base's formula in float64, on the fake, the emulated device or a GPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from minipeft.backend import Backend


class Plain(Backend):
    """The base's formulas on NumPy."""

    xp = np

    def to_numpy(self, array: Any) -> Any:
        return np.asarray(array)

    def erf(self, x: Any) -> Any:
        return np.vectorize(math.erf)(x)


PLAIN = Plain()
TOLERANCE = {"float32": 4e-6, "float64": 1e-11}  # of sums of thousands of numbers, too
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
# a row shorter than a warp, one of a warp and a little, one that takes a block; one row, one column, and none
SHAPES = [(1, 1), (3, 7), (2, 3, 33), (9, 5, 31), (2, 1500), (1, 64), (0, 5)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def draw(shape: tuple[int, ...], dtype: str = "float64", scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * scale).astype(dtype)


def check(backend: Backend, ours: Any, plain: Any, dtype: str) -> None:
    """Same shape, the dtype that went in, values equal to rounding."""
    for a, b in zip(ours, plain, strict=True):
        assert isinstance(a, backend.xp.ndarray)
        assert a.dtype == dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(backend.to_numpy(a), b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    return [a.astype("float64") for a in arrays]


@dtypes
@pytest.mark.parametrize("tanh", [False, True])
def test_gelu(on_cupy, dtype, tanh):
    x = draw((5, 37), dtype, scale=3)
    check(on_cupy, on_cupy.gelu(on_cupy.asarray(x), tanh), PLAIN.gelu(*wide(x), tanh), dtype)
    value, slope = on_cupy.gelu(on_cupy.asarray(x), tanh, slope=False)
    assert slope is None
    check(on_cupy, [value], PLAIN.gelu(*wide(x), tanh)[:1], dtype)


@dtypes
def test_silu_and_erf(on_cupy, dtype):
    x = draw((41, 3), dtype, scale=4)
    check(on_cupy, on_cupy.silu(on_cupy.asarray(x)), PLAIN.silu(*wide(x)), dtype)
    check(on_cupy, [on_cupy.erf(on_cupy.asarray(x))], [PLAIN.erf(*wide(x))], dtype)
    far = on_cupy.silu(on_cupy.asarray(np.array([-1e30, 1e30], dtype=dtype)))[0]
    np.testing.assert_array_equal(on_cupy.to_numpy(far), np.array([0, 1e30], dtype=dtype))


@dtypes
@shapes
def test_softmax_and_its_backward(on_cupy, shape, dtype):
    x, g = draw(shape, dtype, scale=3), draw(shape, dtype, seed=1)
    if not x.size:
        assert on_cupy.softmax(on_cupy.asarray(x)).shape == shape
        return
    p = PLAIN.softmax(*wide(x))
    check(on_cupy, [on_cupy.softmax(on_cupy.asarray(x))], [p], dtype)
    ours = on_cupy.softmax_backward(on_cupy.asarray(p.astype(dtype)), on_cupy.asarray(g))
    check(on_cupy, [ours], [PLAIN.softmax_backward(p.astype(dtype).astype("float64"), *wide(g))], dtype)


@dtypes
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("causal", "queries", "keys"), [(False, 5, 7), (True, 6, 6), (True, 3, 40)])
def test_attention_weights(on_cupy, dtype, masked, causal, queries, keys):
    scores = draw((2, 3, queries, keys), dtype)
    mask = np.random.default_rng(0).integers(0, 2, (2, keys)) if masked else None
    if mask is not None:
        mask[:, 0] = 1
    ours = on_cupy.attention_weights(
        on_cupy.asarray(scores), 0.3, None if mask is None else on_cupy.asarray(mask), causal
    )
    check(on_cupy, [ours], [PLAIN.attention_weights(*wide(scores), 0.3, mask, causal)], dtype)


def test_attention_of_a_row_that_may_see_nothing_is_finite(on_cupy):
    mask = np.zeros((2, 4), dtype=np.int32)
    p = on_cupy.to_numpy(
        on_cupy.attention_weights(on_cupy.asarray(draw((2, 1, 4, 4), "float32")), 1.0, on_cupy.asarray(mask), True)
    )
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-6)


@dtypes
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (3, 33), (2, 1500)], ids=str)
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_cross_entropy(on_cupy, shape, dtype, index):
    logits = draw(shape, dtype, scale=3)
    targets = np.random.default_rng(1).integers(shape[1], size=shape[0]).astype(index)
    ours = on_cupy.cross_entropy(on_cupy.asarray(logits), on_cupy.asarray(targets))
    check(on_cupy, ours, PLAIN.cross_entropy(*wide(logits), targets), dtype)


@dtypes
@shapes
@pytest.mark.parametrize("kernel", ["layer_norm", "rms_norm"])
def test_norm_and_its_backward(on_cupy, kernel, shape, dtype):
    x, g = draw(shape, dtype, scale=2) + np.asarray(1, dtype), draw(shape, dtype, seed=1)
    x_hat, scale = getattr(PLAIN, kernel)(*wide(x), 1e-2)
    check(on_cupy, getattr(on_cupy, kernel)(on_cupy.asarray(x), 1e-2), (x_hat, scale), dtype)
    x_hat, scale = x_hat.astype(dtype), scale.astype(dtype)
    given = [on_cupy.asarray(a) for a in (g, x_hat, scale)]
    plain = getattr(PLAIN, f"{kernel}_backward")(*wide(g, x_hat, scale))
    check(on_cupy, [getattr(on_cupy, f"{kernel}_backward")(*given)], [plain], dtype)


def test_norm_of_a_row_far_from_zero_keeps_its_precision(on_cupy):
    x = draw((4, 384), "float32") + np.float32(1000)
    ours = on_cupy.layer_norm(on_cupy.asarray(x), 1e-12)[0]
    np.testing.assert_allclose(on_cupy.to_numpy(ours), PLAIN.layer_norm(*wide(x), 1e-12)[0], atol=2e-3)


@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_kernels_of_a_view(on_cupy, layout):
    x = draw((6, 8))
    device = on_cupy.asarray(x)
    view = (lambda a: a.T) if layout == "transposed" else (lambda a: a[:, ::2])
    check(on_cupy, [on_cupy.softmax(view(device))], [PLAIN.softmax(view(x))], "float64")
    check(on_cupy, on_cupy.gelu(view(device)), PLAIN.gelu(view(x)), "float64")
    check(on_cupy, on_cupy.layer_norm(view(device), 1e-5), PLAIN.layer_norm(view(x), 1e-5), "float64")
    np.testing.assert_array_equal(
        on_cupy.to_numpy(device)[::1, 1::2] if layout == "strided" else x, x[:, 1::2] if layout == "strided" else x
    )


@dtypes
def test_column_sum_and_row_dot(on_cupy, dtype):
    x, y = draw((31, 33), dtype), draw((31, 33), dtype, seed=1)
    check(on_cupy, [on_cupy.column_sum(on_cupy.asarray(x))], [PLAIN.column_sum(*wide(x))], dtype)
    check(on_cupy, [on_cupy.row_dot(on_cupy.asarray(x), on_cupy.asarray(y))], [PLAIN.row_dot(*wide(x, y))], dtype)


@dtypes
@pytest.mark.parametrize("indices", [[3], [2, 2, 2], [4, 0, 4, 1, 0, 4], list(range(9, -1, -1)), []], ids=str)
@pytest.mark.parametrize("place", ["host", "device"])
def test_scatter_rows_is_add_at(on_cupy, indices, dtype, place):
    indices = np.array(indices, dtype="int32")
    rows = draw((len(indices), 300), dtype)
    expected = np.zeros((10, 300))
    np.add.at(expected, indices, rows)
    given = indices if place == "host" else on_cupy.asarray(indices)
    distinct, sums = on_cupy.scatter_rows(given, on_cupy.asarray(rows))
    assert on_cupy.to_numpy(distinct).tolist() == sorted(set(indices.tolist()))
    check(on_cupy, [sums], [expected[sorted(set(indices.tolist()))]], dtype)


@pytest.mark.parametrize("p", [0.0, 0.3, 1 - 1e-12])
@pytest.mark.parametrize("key", [0, 2**40 + 5, 2**64 - 1])
def test_dropout_mask_is_the_base_formulas_bit_for_bit(on_cupy, p, key):
    mask = on_cupy.dropout_mask((7, 3, 11), p, key)
    assert mask.dtype == bool
    np.testing.assert_array_equal(on_cupy.to_numpy(mask), PLAIN.dropout_mask((7, 3, 11), p, key))


@dtypes
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_step_is_the_bases(on_cupy, weight_decay, dtype):
    options = {"lr": 1e-2, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "weight_decay": weight_decay}
    start = draw((101,), dtype)
    ours = [on_cupy.asarray(a) for a in (start, np.zeros(101, dtype), np.zeros(101, dtype))]
    plain = wide(start, np.zeros(101), np.zeros(101))
    for step in range(1, 5):
        g = draw((101,), dtype, seed=step)
        on_cupy.adamw_step(ours[0], on_cupy.asarray(g), *ours[1:], step=step, **options)
        PLAIN.adamw_step(plain[0], *wide(g), *plain[1:], step=step, **options)
    check(on_cupy, ours, plain, dtype)


@dtypes
def test_adamw_step_takes_the_factor_of_clipping_from_the_device(on_cupy, dtype):
    options = {"lr": 1e-2, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.1, "step": 1}
    found = []
    for scale in (0.25, on_cupy.xp.full((), 0.25, dtype=dtype)):
        ours = [on_cupy.asarray(draw((101,), dtype, seed=i)) for i in range(2)] + [
            on_cupy.xp.zeros(101, dtype) for _ in "mv"
        ]
        on_cupy.adamw_step(*ours, scale=scale, **options)
        found.append(ours)
    plain = wide(draw((101,), dtype), draw((101,), dtype, seed=1) / 4, np.zeros(101), np.zeros(101))
    PLAIN.adamw_step(*plain, **options)
    for ours in found:
        check(on_cupy, [ours[0], *ours[2:]], [plain[0], *plain[2:]], dtype)


@dtypes
@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 3), (3, 4)), ((1, 1), (1, 1)), ((2, 5, 3), (3, 4)), ((2, 5, 3), (2, 3, 4)), ((2, 3, 5, 4), (2, 3, 4, 6))],
    ids=str,
)
def test_matmul_and_its_count_of_operations(on_cupy, left, right, dtype):
    x, y = draw(left, dtype), draw(right, dtype, seed=1)
    expected = np.matmul(*wide(x, y))
    before = on_cupy.flops
    check(on_cupy, [on_cupy.matmul(on_cupy.asarray(x), on_cupy.asarray(y))], [expected], dtype)
    assert on_cupy.flops - before == 2 * expected.size * left[-1]
    out = on_cupy.xp.empty(expected.shape, dtype=dtype)
    assert on_cupy.matmul(on_cupy.asarray(x), on_cupy.asarray(y), out=out) is out
    check(on_cupy, [out], [expected], dtype)


@dtypes
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(("m", "n"), [(5, 7), (1, 4), (4, 1)])
def test_products_of_the_heads_of_attention(on_cupy, batch, heads, m, n, dtype):
    """Strided views and transposes of them, from and into (batch, seq, heads · 4)."""

    def split(a: Any) -> Any:
        return a.reshape(*a.shape[:2], heads, -1).swapaxes(1, 2)

    q, k = draw((batch, m, 4 * heads), dtype), draw((batch, n, 4 * heads), dtype, seed=1)
    Q, K = on_cupy.asarray(q), on_cupy.asarray(k)
    scores = np.matmul(split(wide(q)[0]), split(wide(k)[0]).swapaxes(-1, -2))
    ours = on_cupy.matmul(split(Q), split(K).swapaxes(-1, -2))
    check(on_cupy, [ours], [scores], dtype)
    out = on_cupy.xp.empty(Q.shape, dtype=dtype)
    on_cupy.matmul(ours, split(K), out=split(out))
    mixed = np.matmul(scores, split(wide(k)[0]))
    check(on_cupy, [split(out)], [mixed], dtype)
    back = on_cupy.xp.empty(K.shape, dtype=dtype)
    on_cupy.matmul(ours.swapaxes(-1, -2), split(Q), out=split(back))
    check(on_cupy, [split(back)], [np.matmul(scores.swapaxes(-1, -2), split(wide(q)[0]))], dtype)


def test_asarray_and_to_numpy_are_the_way_in_and_out(on_cupy):
    x = draw((2, 3), "float32")
    device = on_cupy.asarray(x)
    assert isinstance(device, on_cupy.xp.ndarray)
    assert on_cupy.asarray(device) is device
    assert isinstance(on_cupy.to_numpy(device), np.ndarray)
    np.testing.assert_array_equal(on_cupy.to_numpy(device), x)
    assert on_cupy.to_numpy(x) is x
    assert on_cupy.asarray([1, 2], dtype="float64").dtype == np.float64

"""Each kernel of the NumPy and the Numba backend against its plain twin in base.py, evaluated in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft import backend
from minipeft.backend import Backend, active, set_backend
from minipeft.backend.numpy_backend import BLOCK, NumpyBackend
from minipeft.errors import UserError

scipy_special = pytest.importorskip("scipy.special")


class Plain(Backend):
    """The base's formulas on NumPy, with scipy's erf."""

    xp = np

    def to_numpy(self, array):
        return np.asarray(array)

    def erf(self, x):
        return scipy_special.erf(x)


PLAIN = Plain()


@pytest.fixture(scope="module", params=["numpy", "numba"])
def FAST(request: pytest.FixtureRequest) -> Backend:
    """The backend under test."""
    if request.param == "numpy":
        return NumpyBackend()
    pytest.importorskip("numba", reason="the extra 'fast' (numba) is not installed")
    from minipeft.backend.numba_backend import NumbaBackend

    return NumbaBackend()


ROWS = [
    (1, 1),
    (3,),
    (1, 7),
    (5, 1),
    (2, 3, 5),
    (1, BLOCK - 1),
    (2, BLOCK),
    (3, BLOCK + 1),
    (BLOCK // 8 + 1, 8),
    (BLOCK // 8 - 1, 8),
    (131, 129),
    (2, 4, 33, 65),
]
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
shapes = pytest.mark.parametrize("shape", ROWS, ids=str)
layouts = pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])


def draw(shape, dtype="float64", scale=1.0, seed=0):
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * scale).astype(dtype)


def laid_out(x, layout):
    """The same values at other places in memory."""
    if layout == "transposed":
        return np.asfortranarray(x)
    if layout == "strided":
        wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    return x.copy()


def agree(fast, plain, dtype, tolerance=None):
    """Same shape, the dtype that went in, values equal to rounding."""
    for ours, theirs in zip(fast, plain, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance or TOLERANCE[dtype])


def wide(*arrays):
    return [a.astype("float64") for a in arrays]


# ---- activations


@dtypes
@shapes
@pytest.mark.parametrize("tanh", [False, True])
def test_gelu(FAST, shape, dtype, tanh):
    x = draw(shape, dtype, scale=3)
    before = x.copy()
    agree(FAST.gelu(x, tanh), PLAIN.gelu(*wide(x), tanh), dtype, tolerance=3e-6 if dtype == "float32" else None)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_gelu_of_a_view(FAST, tanh, layout):
    x = draw((37, 500), "float32")
    agree(FAST.gelu(laid_out(x, layout), tanh), FAST.gelu(x, tanh), "float32", tolerance=1e-7)


@dtypes
@pytest.mark.parametrize("tanh", [False, True])
def test_gelu_far_out_is_the_identity_or_zero(FAST, dtype, tanh):
    x = np.array([-1e4, -50, -20, 0, 20, 50, 1e4], dtype=dtype)
    value, slope = FAST.gelu(x, tanh)
    np.testing.assert_allclose(value, [0, 0, 0, 0, 20, 50, 1e4], atol=1e-9, rtol=1e-7)
    np.testing.assert_allclose(slope, [0, 0, 0, 0.5, 1, 1, 1], atol=1e-6)


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gelu_without_its_slope_has_the_same_value(FAST, tanh, dtype):
    x = np.linspace(-6, 6, 1001, dtype=dtype)
    alone, beside = FAST.gelu(x, tanh, slope=False)[0], FAST.gelu(x, tanh)[0]
    np.testing.assert_array_equal(alone, beside)


def test_gelu_of_a_single_number(FAST):
    for tanh in (False, True):
        for dtype in ("float32", "float64"):
            x = np.array(0.3, dtype=dtype)
            agree(FAST.gelu(x, tanh), PLAIN.gelu(*wide(x), tanh), dtype)


def test_the_slope_of_gelu_and_silu_is_their_difference_quotient(FAST):
    x, h = draw((200,)), 1e-6
    for f in (FAST.gelu, lambda x: FAST.gelu(x, True), FAST.silu):
        np.testing.assert_allclose(f(x)[1], (f(x + h)[0] - f(x - h)[0]) / (2 * h), atol=1e-9)


@dtypes
def test_silu(FAST, dtype):
    x = draw((41, 13), dtype, scale=4)
    exact = wide(x)[0]
    sigma = scipy_special.expit(exact)
    agree(FAST.silu(x), (exact * sigma, sigma * (1 + exact * (1 - sigma))), dtype)
    value, slope = FAST.silu(np.array([-1e30, -1e4, 1e4, 1e30], dtype=dtype))
    np.testing.assert_array_equal(value, np.array([0, 0, 1e4, 1e30], dtype=dtype))
    np.testing.assert_array_equal(slope, [0, 0, 1, 1])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 6e-7), ("float64", 1e-15)])
def test_erf(FAST, dtype, tolerance):
    x = np.concatenate([np.linspace(-6, 6, 4001), [-30, 30, 1e-8, -1e-8]]).astype(dtype)
    ours = FAST.erf(x)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours, scipy_special.erf(wide(x)[0]), rtol=0, atol=tolerance)
    np.testing.assert_array_equal(FAST.erf(-x), -ours, err_msg="erf is odd")


def test_erf_in_float64_is_the_c_librarys(FAST):
    x = draw((50,), scale=2)
    assert FAST.erf(x).tolist() == [math.erf(v) for v in x]


# ---- softmax


@dtypes
@shapes
def test_softmax(FAST, shape, dtype):
    x = draw(shape, dtype, scale=3)
    p = FAST.softmax(x.copy())
    agree([p], [PLAIN.softmax(*wide(x))], dtype)
    np.testing.assert_allclose(p.sum(axis=-1), 1, atol=1e-4 if dtype == "float32" else 1e-12)


@dtypes
@shapes
def test_softmax_backward(FAST, shape, dtype):
    p, g = PLAIN.softmax(draw(shape)).astype(dtype), draw(shape, dtype, seed=1)
    before = p.copy()
    agree([FAST.softmax_backward(p, g.copy())], [PLAIN.softmax_backward(*wide(p, g))], dtype)
    np.testing.assert_array_equal(p, before, err_msg="only g's memory may be reused")


@layouts
def test_softmax_and_its_backward_in_any_layout(FAST, layout):
    x, g = draw((3, 70, 300)), draw((3, 70, 300), seed=1)
    p = PLAIN.softmax(x)
    agree([FAST.softmax(laid_out(x, layout))], [p], "float64")
    expected = PLAIN.softmax_backward(p, g)
    agree([FAST.softmax_backward(laid_out(p, layout), laid_out(g, layout))], [expected], "float64")


@dtypes
def test_softmax_of_huge_numbers(FAST, dtype):
    lowest = np.finfo(dtype).min
    x = np.array([[1e4, 0, -1e4], [lowest, 0, lowest], [lowest, lowest, lowest]], dtype=dtype)
    np.testing.assert_allclose(FAST.softmax(x), [[1, 0, 0], [0, 1, 0], [1 / 3] * 3], rtol=1e-6)


@dtypes
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (4, 1), (BLOCK // 16 + 1, 17)], ids=str)
def test_cross_entropy(FAST, shape, dtype):
    logits = draw(shape, dtype, scale=3)
    targets = np.random.default_rng(1).integers(shape[1], size=shape[0])
    log_p = scipy_special.log_softmax(wide(logits)[0], axis=-1)
    one_hot = np.eye(shape[1])[targets]
    agree(FAST.cross_entropy(logits, targets), (-(log_p * one_hot).sum(axis=-1), np.exp(log_p) - one_hot), dtype)


def test_cross_entropy_of_huge_logits(FAST):
    losses, derivative = FAST.cross_entropy(np.array([[1e4, -1e4], [1e4, -1e4]]), np.array([0, 1]))
    np.testing.assert_array_equal(losses, [0, 2e4])
    np.testing.assert_array_equal(derivative, [[0, 0], [1, -1]])


# ---- norms and sums


@dtypes
@shapes
@pytest.mark.parametrize("kernel", ["layer_norm", "rms_norm"])
def test_norm(FAST, kernel, shape, dtype):
    x = draw(shape, dtype, scale=2) + np.asarray(1, dtype)
    before = x.copy()
    eps = 1e-3
    # a sum of d float32 numbers is off by some √d roundings, and the largest x̂ is √d
    tolerance = 1e-12 if dtype == "float64" else 1e-6 * (4 + math.sqrt(shape[-1]) / 4)
    x_hat, scale = getattr(FAST, kernel)(x, eps)
    agree((x_hat, scale), getattr(PLAIN, kernel)(*wide(x), eps), dtype, tolerance * 10 if shape[-1] == 1 else tolerance)
    np.testing.assert_array_equal(x, before)


@dtypes
@shapes
@pytest.mark.parametrize("kernel", ["layer_norm", "rms_norm"])
def test_norm_backward(FAST, kernel, shape, dtype):
    x_hat, scale = getattr(PLAIN, kernel)(draw(shape), 1e-1)
    g, x_hat, scale = draw(shape, dtype, seed=1), x_hat.astype(dtype), scale.astype(dtype)
    before = g.copy(), x_hat.copy(), scale.copy()
    backward = f"{kernel}_backward"
    fast, plain = getattr(FAST, backward)(g, x_hat, scale), getattr(PLAIN, backward)(*wide(g, x_hat, scale))
    agree([fast], [plain], dtype, 1e-5 if dtype == "float32" else None)
    for now, then in zip((g, x_hat, scale), before, strict=True):
        np.testing.assert_array_equal(now, then)


@layouts
def test_layer_norm_and_its_backward_in_any_layout(FAST, layout):
    x, g = draw((3, 90, 200)), draw((3, 90, 200), seed=1)
    x_hat, scale = PLAIN.layer_norm(x, 1e-5)
    agree(FAST.layer_norm(laid_out(x, layout), 1e-5), (x_hat, scale), "float64")
    fast = FAST.layer_norm_backward(laid_out(g, layout), laid_out(x_hat, layout), scale)
    agree([fast], [PLAIN.layer_norm_backward(g, x_hat, scale)], "float64")


def test_layer_norm_of_a_row_far_from_zero_keeps_its_precision(FAST):
    x = draw((16, 384), "float32") + np.float32(1000)
    agree(FAST.layer_norm(x, 1e-12), PLAIN.layer_norm(*wide(x), 1e-12), "float32", 2e-3)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1), (0, 3), (1001, 33)], ids=str)
def test_column_sum_and_row_dot(FAST, shape, dtype):
    x, y = draw(shape, dtype), draw(shape, dtype, seed=1)
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    agree([FAST.column_sum(x)], [PLAIN.column_sum(*wide(x))], dtype, tolerance)
    agree([FAST.row_dot(x, y)], [PLAIN.row_dot(*wide(x, y))], dtype, tolerance)


# ---- scatter


@pytest.mark.parametrize("index_dtype", ["int32", "int64", "uint16"])
@pytest.mark.parametrize(
    "indices",
    [[3], [2, 2, 2], [0, 1, 2], [4, 0, 4, 1, 0, 4], list(range(9, -1, -1))],
    ids=["one", "all equal", "distinct", "mixed", "descending"],
)
def test_scatter_rows_is_add_at(FAST, indices, index_dtype):
    indices = np.array(indices, dtype=index_dtype)
    rows = draw((len(indices), 3))
    expected = np.zeros((10, 3))
    np.add.at(expected, indices, rows)
    for kernels in (FAST, PLAIN):
        distinct, sums = kernels.scatter_rows(indices, rows)
        assert distinct.tolist() == sorted(set(indices.tolist()))
        full = np.zeros((10, 3))
        full[distinct] = sums
        np.testing.assert_allclose(full, expected, rtol=1e-14)


def test_scatter_rows_of_none(FAST):
    distinct, sums = FAST.scatter_rows(np.zeros(0, dtype="int64"), np.zeros((0, 3)))
    assert distinct.shape == (0,)
    assert sums.shape == (0, 3)


def test_scatter_rows_of_many(FAST):
    indices, rows = np.random.default_rng(0).integers(500, size=9000), draw((9000, 7), "float32")
    expected = np.zeros((500, 7))
    np.add.at(expected, indices, rows.astype("float64"))
    distinct, sums = FAST.scatter_rows(indices, rows)
    assert sums.dtype == np.float32
    np.testing.assert_allclose(sums, expected[distinct], atol=2e-5)
    again = FAST.scatter_rows(indices, rows)[1]
    assert sums.tobytes() == again.tobytes(), "the same bits every time"


# ---- matrix products


@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 3), (3, 4)), ((1, 1), (1, 1)), ((2, 5, 3), (3, 4)), ((2, 1, 5, 3), (3, 1)), ((2, 5, 3), (2, 3, 4))],
    ids=str,
)
def test_matmul_and_its_count_of_operations(left, right):
    kernels = NumpyBackend()
    x, y = draw(left), draw(right, seed=1)
    expected = np.einsum("...ij,...jk->...ik", x, y)
    np.testing.assert_allclose(kernels.matmul(x, y), expected, rtol=1e-12, atol=1e-12)
    operations = 2 * expected.size * left[-1]  # a multiplication and an addition
    assert kernels.flops == operations
    out = np.empty_like(expected)
    assert kernels.matmul(x, y, out=out) is out
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
    assert kernels.flops == 2 * operations


# ---- dropout


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    p=st.floats(0, 1, exclude_max=True),
    key=st.integers(0, 2**64 - 1),
)
@settings(max_examples=60, deadline=None)
def test_dropout_mask_is_the_base_formulas_bit_for_bit(FAST, shape, p, key):
    mask = FAST.dropout_mask(tuple(shape), p, key)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, PLAIN.dropout_mask(tuple(shape), p, key))


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_dropout_mask_does_not_depend_on_the_blocks(FAST, size):
    np.testing.assert_array_equal(
        FAST.dropout_mask((size,), 0.3, 2**40 + 5), PLAIN.dropout_mask((size,), 0.3, 2**40 + 5)
    )


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-12])
@pytest.mark.parametrize("key", [0, 1, 2**32, 2**64 - 1, 0x0123456789ABCDEF])
def test_dropout_keeps_one_minus_p(FAST, p, key):
    n = 200_000
    kept = int(FAST.dropout_mask((n,), p, key).sum())
    assert abs(kept - n * (1 - p)) <= 5 * math.sqrt(n * p * (1 - p)) + 1e-3


def test_dropout_masks_of_different_keys_and_of_neighbours_are_independent(FAST):
    n = 100_000
    keys = [int(k) for k in np.random.default_rng(0).integers(2**63, size=6)]
    keys += [keys[0] ^ 1 << 40, keys[0] ^ 1 << 63]  # one bit apart in the upper word
    masks = [FAST.dropout_mask((n,), 0.5, key) for key in keys]
    rows = [*masks, np.roll(masks[0], 1), np.roll(masks[0], 64)]
    correlation = np.corrcoef(np.array(rows, dtype=float)) - np.eye(len(rows))
    assert np.abs(correlation).max() < 5 / math.sqrt(n)
    assert not np.array_equal(FAST.dropout_mask((n,), 0.5, 7), FAST.dropout_mask((n,), 0.5, 8))


# ---- the optimizer's step


@dtypes
@pytest.mark.parametrize("size", [1, 7, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_step_is_the_bases(FAST, size, weight_decay, dtype):
    options = {"lr": 1e-2, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "weight_decay": weight_decay}
    fast = [draw((size,), dtype), None, np.zeros(size, dtype), np.zeros(size, dtype)]
    plain = wide(fast[0], *fast[2:])
    plain.insert(1, None)
    for step in range(1, 5):
        fast[1] = draw((size,), dtype, seed=step)
        before = fast[1].copy()
        plain[1] = wide(fast[1])[0]
        FAST.adamw_step(*fast, step=step, **options)
        PLAIN.adamw_step(*plain, step=step, **options)
        np.testing.assert_array_equal(fast[1], before, err_msg="the gradient is only read")
    agree(fast, plain, dtype)


@pytest.mark.parametrize("plain", [False, True], ids=["fast", "base"])
@pytest.mark.parametrize("eps", [1e-8, 1e-1])
def test_adamw_step_is_torchs(FAST, torch, plain, eps):
    kernels = PLAIN if plain else FAST
    theta = draw((11,))
    theirs = torch.nn.Parameter(torch.tensor(theta))
    optimizer = torch.optim.AdamW([theirs], lr=3e-2, betas=(0.7, 0.95), eps=eps, weight_decay=0.2)
    m, v = np.zeros(11), np.zeros(11)
    for step in range(1, 8):
        g = draw((11,), seed=step) * 10.0 ** np.arange(-9, 2)  # small enough for ε to matter
        theirs.grad = torch.tensor(g)
        optimizer.step()
        kernels.adamw_step(theta, g, m, v, lr=3e-2, beta1=0.7, beta2=0.95, eps=eps, weight_decay=0.2, step=step)
        np.testing.assert_allclose(theta, theirs.detach().numpy(), rtol=1e-12, atol=1e-14)


# ---- choosing a backend


def test_set_backend(monkeypatch):
    monkeypatch.setattr(backend, "_active", active())  # put back afterwards
    assert set_backend("numpy") is active()
    assert active().name == "numpy"
    before = active()
    with pytest.raises(UserError, match=r"Unknown backend 'numpi'\. Did you mean 'numpy'"):
        set_backend("numpi")
    assert active() is before

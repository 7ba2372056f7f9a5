"""What is particular to the Numba backend: its exponential, NaN and ∞, threads, training, and that it is optional.

That its kernels compute what the formulas say is checked in test_kernels.py, together with NumPy's.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from tiny import PAD, call, logits, take_steps, tiny_data, tiny_model

from minipeft import UserError, backend
from minipeft.backend import active, set_backend
from minipeft.backend.numpy_backend import NumpyBackend
from minipeft.peft import AdapterConfig, FullConfig, LoraConfig, get_peft_model
from minipeft.training import Trainer, TrainingConfig

try:
    import numba

    from minipeft.backend import numba_backend, numba_kernels
except ImportError:
    numba = None

needs_numba = pytest.mark.skipif(numba is None, reason="the extra 'fast' (numba) is not installed")
METHODS = [FullConfig(), LoraConfig(r=2), AdapterConfig(4)]
OPTIONS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}


@pytest.fixture(autouse=True)
def restore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever backend a test chooses, the one before is back afterwards."""
    monkeypatch.setattr(backend, "_active", active())


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- optional


def test_importing_minipeft_imports_no_numba() -> None:
    program = "import sys, minipeft; minipeft.set_backend('numpy'); assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_numba_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it now fails
    for name in ("numba_backend", "numba_kernels"):
        monkeypatch.delitem(sys.modules, f"minipeft.backend.{name}", raising=False)
    before = active()
    with pytest.raises(UserError, match=r"pip install 'minipeft\[fast\]'"):
        set_backend("numba")
    assert active() is before


def test_an_unknown_backend_is_told_of_both() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'numba'\? Known: .*numba, numpy"):
        set_backend("numbas")


@needs_numba
def test_set_backend_numba() -> None:
    assert set_backend("numba") is active()
    assert active().name == "numba"


# ---- the exponential


@needs_numba
def test_the_exponential_over_all_of_float32() -> None:
    @numba_kernels.loop(cache=False)  # the flags that the kernels have, for a function may inherit its caller's
    def exp(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = numba_kernels.exp(x[i])

    every = np.arange(-(2**31), 2**31, 331).astype(np.int32).view(np.float32)  # of all exponents, and NaNs among them
    near = np.linspace(-90, 90, 1_000_001, dtype=np.float32)
    x = np.concatenate([every, near, np.array([0, -0.0, np.inf, -np.inf, np.nan], np.float32)])
    ours = np.empty_like(x)
    exp(x, ours)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.exp(x.astype(np.float64))
        infinite = np.isinf(exact.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(x))
    np.testing.assert_array_equal(np.isinf(ours), infinite)
    small = exact < 1.001 * np.finfo(np.float32).tiny  # denormal numbers become zero
    assert np.abs(ours[small]).max() <= 1.001 * np.finfo(np.float32).tiny
    normal = np.isfinite(exact) & ~infinite & ~small
    assert normal.sum() > 1_000_000
    assert np.abs(ours[normal] / exact[normal] - 1).max() < 1e-7
    assert ours[-5:-1].tolist() == [1, 1, np.inf, 0]


# ---- NaN and ∞, shapes and places in memory


@needs_numba
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("d", [3, 64])
@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's
def test_nan_and_infinity_go_where_numpys_do(bad: float, d: int) -> None:
    ours, theirs = numba_backend.NumbaBackend(), NumpyBackend()
    x, g = draw(4, d), draw(4, d, seed=1)
    x[1, 2] = x[3, 0] = bad
    x[3] = bad
    p, y = np.abs(draw(4, d, seed=2)), np.array([0, 1, 2, 0])
    scale = np.ones((4, 1), np.float32)
    for kernel, arguments in {
        "softmax": (x,),
        "softmax_backward": (p, x),
        "cross_entropy": (x, y),
        "layer_norm": (x, 1e-5),
        "rms_norm": (x, 1e-5),
        "layer_norm_backward": (x, g, scale),
        "rms_norm_backward": (x, g, scale),
        "silu": (x,),
        "gelu": (x,),
    }.items():
        got, expected = (
            _tuple(getattr(kernels, kernel)(*(a.copy() if isinstance(a, np.ndarray) else a for a in arguments)))
            for kernels in (ours, theirs)
        )
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=kernel)


@needs_numba
def test_a_nan_gradient_is_a_nan_parameter() -> None:
    kernels = numba_backend.NumbaBackend()
    theta, g, m, v = draw(40), draw(40), np.zeros(40, np.float32), np.zeros(40, np.float32)
    g[7] = np.nan
    kernels.adamw_step(theta, g, m, v, step=1, **OPTIONS)
    assert np.flatnonzero(np.isnan(theta)).tolist() == [7]


@needs_numba
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0,), (3, 0)], ids=str)
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    kernels = numba_backend.NumbaBackend()
    x = np.zeros(shape, np.float32)
    for y in (*kernels.gelu(x), *kernels.gelu(x, True), *kernels.silu(x), kernels.softmax(x)):
        assert y.shape == shape
    for name in ("layer_norm", "rms_norm"):
        x_hat, scale = getattr(kernels, name)(x, 1e-5)
        assert (x_hat.shape, scale.shape) == (shape, (*shape[:-1], 1))
        assert getattr(kernels, f"{name}_backward")(x, x_hat, scale).shape == shape
    assert kernels.softmax_backward(x, x).shape == shape
    assert kernels.dropout_mask(shape, 0.5, 1).shape == shape


@needs_numba
@pytest.mark.parametrize("place", ["transposed", "strided", "read-only"])
def test_any_place_in_memory(place: str) -> None:
    def placed(a: np.ndarray) -> np.ndarray:
        if place == "transposed":
            return np.asfortranarray(a)
        wide = np.repeat(a, 2, axis=-1)
        if place == "strided":
            return wide[..., ::2]
        a = a.copy()
        a.flags.writeable = False
        return a

    kernels = numba_backend.NumbaBackend()
    x, g, scale = draw(3, 4, 35), draw(3, 4, 35, seed=1), draw(3, 4, 1, seed=2)
    ids = np.array([2, 0, 2, 5])
    for kernel, arguments in {
        "gelu": (x,),
        "silu": (x,),
        "layer_norm": (x, 1e-5),
        "rms_norm": (x, 1e-5),
        "layer_norm_backward": (g, x, scale),
        "rms_norm_backward": (g, x, scale),
        "cross_entropy": (x[0], ids),
        "scatter_rows": (ids, x[0]),
    }.items():
        moved = (placed(a) if isinstance(a, np.ndarray) else a for a in arguments)
        for a, b in zip(
            _tuple(getattr(kernels, kernel)(*moved)), _tuple(getattr(kernels, kernel)(*arguments)), strict=1
        ):
            np.testing.assert_array_equal(a, b, err_msg=kernel)
    if place != "read-only":  # the last two may work in place
        np.testing.assert_array_equal(kernels.softmax(placed(x)), kernels.softmax(x.copy()))
        ours = kernels.softmax_backward(placed(x), placed(g))
        np.testing.assert_array_equal(ours, kernels.softmax_backward(x, g.copy()))


@needs_numba
def test_a_class_out_of_range_is_an_error_and_no_memory_is_read() -> None:
    with pytest.raises(IndexError):
        numba_backend.NumbaBackend().cross_entropy(draw(2, 3), np.array([0, 3]))


# ---- how they are compiled


@needs_numba
def test_every_function_is_compiled_with_care() -> None:
    functions = [f for f in vars(numba_kernels).values() if isinstance(f, numba.core.dispatcher.Dispatcher)]
    assert len(functions) >= 10
    for function in functions:
        options = function.targetoptions
        assert options["error_model"] == "numpy"
        assert not set(options.get("fastmath", ())) & {"fast", "nnan", "ninf", "afn", "arcp"}, (
            "NaN and ∞ must stay right"
        )
        assert "parallel" not in options, "workers are processes, see workers.py"


# ---- training


@needs_numba
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_three_steps_as_with_numpy(method: Any) -> None:
    results = []
    for name in ("numpy", "numba"):
        set_backend(name)
        model = get_peft_model(tiny_model(), method)
        take_steps(model, 3)
        results.append(logits(model))
        assert call(model).dtype == np.float32
    before = logits(get_peft_model(tiny_model(), method))
    assert np.abs(results[0] - before).max() > 0.1, "the steps were felt"
    np.testing.assert_allclose(results[1], results[0], rtol=1e-3, atol=1e-3)


@needs_numba
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_the_trainer_with_workers_and_dropout_as_with_numpy(method: Any, workers: int) -> None:
    def train(name: str) -> tuple[list[float], np.ndarray]:
        set_backend(name)
        model = get_peft_model(tiny_model(dropout=0.2), method)
        config = TrainingConfig(lr=0.01, epochs=1, batch_size=8, workers=workers)
        result = Trainer(model, tiny_data(rows=24), PAD, config).run()
        return result.losses, logits(model)

    numpys, numbas = train("numpy"), train("numba")
    assert len(numbas[0]) == 3
    np.testing.assert_allclose(numbas[0], numpys[0], rtol=1e-4)
    np.testing.assert_allclose(numbas[1], numpys[1], rtol=1e-3, atol=1e-3)
    again = train("numba")
    assert again[0] == numbas[0]
    assert again[1].tobytes() == numbas[1].tobytes(), "the same bits every time"


def _tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)

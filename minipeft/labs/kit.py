"""What a lab's tests are written with. A test is a function of `lab`, the student's module, and `mp`, which is minipeft::

    @task(2)
    def test_starts_as_the_base(lab, mp):
        layer = lab.LoRALinear(mp.nn.Linear(6, 4), r=2, alpha=4, seed=0)
        close(layer.B.data, zeros(2, 4), "B starts at zero")

The same function runs in three places: under pytest, where `lab` is the module itself, and in `minipeft lab check` and
`grade`, where `lab` and `mp` stand for objects in another process (see `remote.py`). So a test keeps to calls, attributes
and plain values. Arrays come by value: to change one, assign it, `layer.B.data = new`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any  # NumPy's, on the host
Test = Callable[..., None]


def task(number: int) -> Callable[[Test], Test]:
    """Say which task of the lab a test belongs to."""

    def mark(test: Test) -> Test:
        test.task = number  # type: ignore[attr-defined]
        return test

    return mark


def draw(*shape: int, seed: int = 0, dtype: str = "float64") -> Array:
    """Standard normal numbers, the same on every machine."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def array(values: Any) -> Array:
    """Numbers that the test gives itself, in float64."""
    return np.asarray(values, dtype="float64")


def whole(low: int, high: int, *shape: int, seed: int = 0) -> Array:
    """Whole numbers from `low` up to, without, `high`."""
    return np.random.default_rng(seed).integers(low, high, shape)


def close(got: Any, want: Any, hint: str, ulps: float = 256) -> None:
    """Refuse an array that differs from a float64 reference by more than rounding explains.

    Args:
        got: what the submission gave; an array, a number, or a list of them.
        want: the reference, computed in float64.
        hint: what to think about if it differs.
        ulps: the allowed error: this times the rounding unit of `got`, times the largest number in `want`.

    Raises:
        AssertionError: it has another shape, is no float or is not finite, or differs; it says where.
    """
    g, w = _array(got, hint), np.asarray(want, dtype="float64")
    if g.shape != w.shape:
        raise AssertionError(f"{hint} [shape {g.shape}, expected {w.shape}]")
    if not g.size:
        return
    unit = float(np.finfo(g.dtype).eps) if g.dtype.kind == "f" else 0.0
    allowed = ulps * unit * max(float(abs(w).max()), 1e-30)
    error = abs(g.astype("float64") - w)
    if not (error <= allowed).all():  # also true of a NaN
        at = tuple(int(i) for i in np.unravel_index(int(np.nan_to_num(error, nan=np.inf).argmax()), w.shape))
        place = f" at {list(at)}" if at else ""
        raise AssertionError(f"{hint} [got {float(g[at]):.6g}, expected {float(w[at]):.6g}{place}]")


def same(got: Any, want: Any, hint: str) -> None:
    """Refuse anything but the very same value: numbers, texts, lists, dicts, or arrays to the last bit."""
    if hasattr(want, "dtype"):
        g = _array(got, hint)
        if g.shape != want.shape or g.dtype != want.dtype or g.tobytes() != np.asarray(want).tobytes():
            raise AssertionError(f"{hint} [it is not the same to the last bit]")
    elif type(got) is bool or type(want) is bool:
        if got is not want:
            raise AssertionError(f"{hint} [got {_short(got)}, expected {want!r}]")
    elif not _equal(got, want):
        raise AssertionError(f"{hint} [got {_short(got)}, expected {_short(want)}]")


def that(condition: bool, hint: str) -> None:
    """Refuse what is not so."""
    if condition is not True:
        raise AssertionError(hint)


def refuses(call: Callable[[], Any], error: str, hint: str) -> None:
    """Refuse a call that does not raise an error of the class named `error`, or of one below it."""
    try:
        call()
    except Exception as raised:
        kinds = getattr(raised, "kinds", None) or [kind.__name__ for kind in type(raised).__mro__]
        if error in kinds and "NotImplementedError" not in kinds:
            return
        if "NotImplementedError" in kinds:
            raise
        raise AssertionError(f"{hint} [it raised {kinds[0]}, expected {error}]") from None
    raise AssertionError(f"{hint} [nothing was raised, expected {error}]")


def held(lab: Any, array: Array) -> Any:
    """A copy of an array, kept where the submission is: whoever is given it is given the very same array each time."""
    session = vars(lab).get("_session")
    return array.copy() if session is None else session.hold(array)


def value(array: Any) -> Array:
    """What stands by now in an array that is `held`."""
    session = vars(array).get("_session") if hasattr(array, "__dict__") else None
    return array.copy() if session is None else session.value(array)


def kind(thing: Any) -> str:
    """The name of an object's class, wherever it lives."""
    return str(getattr(thing, "remote_kind", None) or type(thing).__name__)


def softmax(z: Array) -> Array:
    """exp(z) / Σ exp(z) along the last axis, in float64: the reference."""
    z = z.astype("float64")
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def numerical_gradient(f: Callable[[Array], float], x: Array, step: float = 1e-5) -> Array:
    """∂f/∂x by central differences, for a function that the test itself defines."""
    gradient = np.zeros_like(x)
    for i in range(x.size):
        ends = []
        for h in (step, -step):
            moved = x.copy()
            moved.reshape(-1)[i] += h
            ends.append(f(moved))
        gradient.reshape(-1)[i] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def _array(got: Any, hint: str) -> Array:
    if got is None:
        raise AssertionError(f"{hint} [got None: is a `return` missing?]")
    if isinstance(got, str | bytes | bool | dict):
        raise AssertionError(f"{hint} [got a {type(got).__name__}, expected an array of numbers]")
    try:
        array = np.asarray(got)
    except (TypeError, ValueError):
        raise AssertionError(f"{hint} [got {kind(got)}, expected an array of numbers]") from None
    if array.dtype.kind not in "fiu":
        raise AssertionError(f"{hint} [got {kind(got)}, expected an array of numbers]")
    return array


def _equal(a: Any, b: Any) -> bool:
    if isinstance(b, list | tuple):
        return isinstance(a, list | tuple) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(b, dict):
        return isinstance(a, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in b)
    if isinstance(b, bool) or isinstance(a, bool):
        return a is b
    if isinstance(b, int | float):
        return isinstance(a, int | float) and a == b
    return type(a) is type(b) and bool(a == b)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def zeros(*shape: int) -> Array:
    """An array of zeros, float64."""
    return np.zeros(shape)

"""The fake is held to the real thing: the same table of what CuPy refuses, and allows, is tried on both.

On the fake the rules are put on this file, too; see fake_cupy.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import fake_cupy
import numpy as np
import pytest


@pytest.fixture
def xp(on_cupy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(fake_cupy, "rules_for_all", True)
    return on_cupy.xp


HOST = np.ones((2, 3), dtype="float32")
UNSUPPORTED = r"Unsupported type <class 'numpy.ndarray'>"
IMPLICIT = "Implicit conversion to a NumPy array is not allowed"
WRONG_TYPE = "incorrect type .expected cupy._core.core._ndarray_base, got numpy.ndarray"

REFUSED: dict[str, tuple[Callable[[Any, Any], Any], type[Exception], str]] = {
    "array + host": (lambda xp, a: a + HOST, TypeError, UNSUPPORTED),
    "host + array": (lambda xp, a: HOST + a, TypeError, UNSUPPORTED),
    "array + 0-d host": (lambda xp, a: a + np.array(2, "float32"), TypeError, UNSUPPORTED),
    "array += host": (lambda xp, a: a.__iadd__(HOST), TypeError, UNSUPPORTED),
    "array == host": (lambda xp, a: a == HOST, TypeError, UNSUPPORTED),
    "array @ host": (lambda xp, a: a @ HOST.T, TypeError, WRONG_TYPE),
    "exp(host)": (lambda xp, a: xp.exp(HOST), TypeError, UNSUPPORTED),
    "where(host)": (lambda xp, a: xp.where(HOST > 0, a, 0), TypeError, UNSUPPORTED),
    "concatenate": (lambda xp, a: xp.concatenate([a, HOST]), TypeError, UNSUPPORTED),
    "ascontiguousarray(host)": (lambda xp, a: xp.ascontiguousarray(HOST), TypeError, WRONG_TYPE),
    "array[...] = host": (lambda xp, a: a.__setitem__(..., HOST), ValueError, "non-scalar numpy.ndarray"),
    "fill(host)": (lambda xp, a: a.fill(HOST), ValueError, "non-scalar numpy.ndarray"),
    "out=host": (lambda xp, a: xp.exp(a, out=HOST.copy()), TypeError, UNSUPPORTED),
    "np.asarray(array)": (lambda xp, a: np.asarray(a), TypeError, IMPLICIT),
    "np.array([array])": (lambda xp, a: np.array([a.sum()]), TypeError, IMPLICIT),
    "exp(where=)": (lambda xp, a: xp.exp(a, where=a > 0), TypeError, "Wrong arguments"),
    "sum(where=)": (lambda xp, a: xp.sum(a, where=a > 0), TypeError, "unexpected keyword argument 'where'"),
    "array.sum(where=)": (lambda xp, a: a.sum(where=a > 0), TypeError, "unexpected keyword argument 'where'"),
    "sum(initial=)": (lambda xp, a: xp.sum(a, initial=1), TypeError, "unexpected keyword argument 'initial'"),
    "array.max(initial=)": (lambda xp, a: a.max(initial=0), TypeError, "unexpected keyword argument 'initial'"),
    "mean(where=)": (lambda xp, a: xp.mean(a, where=a > 0), TypeError, "unexpected keyword argument 'where'"),
    "vecdot": (lambda xp, a: xp.vecdot(a, a), AttributeError, "vecdot"),
    "frompyfunc": (lambda xp, a: xp.frompyfunc(float, 1, 1), AttributeError, "frompyfunc"),
    "maximum.reduce": (lambda xp, a: xp.maximum.reduce(a), (AttributeError, NotImplementedError), ""),
    "multiply.at": (lambda xp, a: xp.multiply.at(a, xp.asarray([0]), a[:1]), (AttributeError, NotImplementedError), ""),
    "hash": (lambda xp, a: hash(a), TypeError, "unhashable"),
    "shapes": (lambda xp, a: a + xp.ones(7, dtype="float32"), ValueError, "broadcast"),
    "reshape": (lambda xp, a: a.reshape(7), ValueError, "cannot reshape"),
    "index": (lambda xp, a: a[5], IndexError, "out of bounds"),
}
ALLOWED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "a number": (lambda xp, a: a * 2.0, "float32"),
    "a NumPy scalar": (lambda xp, a: a * np.float32(2), "float32"),
    "a wider NumPy scalar": (lambda xp, a: a * np.float64(2), "float64"),
    "a 0-d array": (lambda xp, a: a * a.sum(), "float32"),
    "a power": (lambda xp, a: a**0.5, "float32"),
    "a sum": (lambda xp, a: a.sum(), "float32"),
    "an element": (lambda xp, a: a[0, 0], "float32"),
    "a row by an array": (lambda xp, a: a[xp.asarray(np.array([1, 0]))], "float32"),
    "a clip": (lambda xp, a: a.clip(max=0.5), "float32"),
    "a comparison": (lambda xp, a: a > 0, "bool"),
    "where of numbers": (lambda xp, a: xp.where(a > 0, 0.0, 1.0), "float64"),
    "zeros_like(host)": (lambda xp, a: xp.zeros_like(HOST), "float32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(xp, name):
    f, error, message = REFUSED[name]
    with pytest.raises(error, match=message or None):
        f(xp, xp.ones((2, 3), dtype="float32"))


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed_and_an_array_of_the_device(xp, name):
    f, dtype = ALLOWED[name]
    result = f(xp, xp.ones((2, 3), dtype="float32"))
    assert isinstance(result, xp.ndarray)
    assert result.dtype == dtype


def test_views_know_whose_memory_they_are(xp):
    a = xp.ones((2, 3), dtype="float32")
    assert a.base is None
    for view in (a[1], a.reshape(-1), a.reshape(3, 2)[1:], a.T):
        assert view.base is a
    assert (a + 1).base is None


def test_the_fake_has_no_name_that_cupy_has_not(xp, device_kind):
    if device_kind == "fake":
        assert {name for name in dir(xp) if not name.startswith("_")} <= fake_cupy.MODULE_NAMES
    missing = [name for name in fake_cupy.MODULE_NAMES if device_kind != "fake" and not hasattr(xp, name)]
    missing += [name for name in fake_cupy.ARRAY_NAMES if device_kind != "fake" and not hasattr(xp.ndarray, name)]
    assert not missing, "cupy_names.txt lists names that this CuPy has not"


def test_a_kernel_that_is_not_in_its_source_is_refused(xp):
    kernel = xp.RawKernel('extern "C" __global__ void one(float *x) { x[0] = 1; }', "another")
    with pytest.raises(Exception, match=r"CUDA_ERROR_NOT_FOUND|named symbol"):
        kernel((1,), (1,), (xp.zeros(1, dtype="float32"),))


def test_a_kernel_needs_a_name_that_c_can_read(xp):
    with pytest.raises(ValueError, match="Invalid kernel name"):
        xp.ElementwiseKernel("T x", "T y", "y = x", "<lambda>")

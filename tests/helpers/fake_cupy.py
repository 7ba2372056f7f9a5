"""A stand-in for `cupy`, computed by NumPy: it has only CuPy's names, and refuses what CuPy refuses, in CuPy's words.

`installed()` puts it where `import cupy` finds it. It is stricter than CuPy in two points, which cost time there and
raise nothing: an index that would be uploaded unseen is refused, and `waits` counts how often the host waited for a value.
The rules hold for the code of minipeft. The tests of the engine and of the methods, which compare with NumPy's arrays, may
mix the two, or they could not run on it; `rules_for_all` holds tests to the rules as well, and with it
tests/on_cupy/test_refusals.py compares what is refused with the real CuPy. Kernels are in fake_kernels.py.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import minipeft

IMPLICIT = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)
_sections = Path(__file__).with_name("cupy_names.txt").read_text().split("[ndarray]")
MODULE_NAMES = set(_sections[0].replace("[module]", "").split())
ARRAY_NAMES = set(_sections[1].split())

# Keywords of NumPy's that CuPy's functions and methods do not have.
NOT_THERE = {
    "sum": {"where", "initial"},
    "prod": {"where", "initial"},
    "mean": {"where"},
    "var": {"where", "correction"},
    "max": {"where", "initial"},
    "min": {"where", "initial"},
}
AT = {"add", "maximum", "minimum"}  # the ufuncs whose `at` works on floats
REDUCE = {"add", "multiply"}
FROM_HOST = {"array", "asarray", "zeros_like", "ones_like", "empty_like", "full_like"}

waits = 0  # how often minipeft asked for a value that the host would have had to wait for
rules_for_all = False

OWN_FILES = {__file__, str(Path(__file__).with_name("fake_kernels.py"))}
NUMPYS, MINIPEFTS = (str(Path(module.__file__ or "").parent) for module in (np, minipeft))


def _bound() -> bool:
    """Whether the caller, past our own frames and NumPy's, is bound by the rules."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename in OWN_FILES or frame.f_code.co_filename.startswith(NUMPYS)):
        frame = frame.f_back
    return rules_for_all or frame.f_code.co_filename.startswith(MINIPEFTS)


def _wait() -> None:
    global waits
    waits += _bound()


def unwrap(value: Any) -> Any:
    """The NumPy array inside; an array of NumPy's own is refused."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, int | float | slice | str) or value is None:
        return value
    if isinstance(value, np.ndarray) and _bound():
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple):
        return type(value)(unwrap(part) for part in value)
    if isinstance(value, dict):
        return {key: unwrap(part) for key, part in value.items()}
    return value


def wrap(value: Any, owner: ndarray | None = None) -> Any:
    """A result as a fake array, 0-d ones too; a view of `owner` knows whose memory it is."""
    if isinstance(value, np.ndarray | np.generic):
        shares = owner is not None and isinstance(value, np.ndarray) and np.may_share_memory(value, owner._a)
        base = (owner.base if owner.base is not None else owner) if shares and owner is not None else None
        return ndarray(np.asarray(value), base)
    return type(value)(wrap(part) for part in value) if isinstance(value, tuple | list) else value


def _function(numpys: Callable[..., Any], name: str, owner: ndarray | None = None) -> Callable[..., Any]:
    """NumPy's function (or the method of `owner`) behind CuPy's rules."""

    def call(*arguments: Any, **options: Any) -> Any:
        lacking = NOT_THERE.get(name, set()) & options.keys()
        if isinstance(numpys, np.ufunc) and "where" in options:
            raise TypeError(f"Wrong arguments {{'where': {options['where']}}}")
        if lacking:
            raise TypeError(f"{name}() got an unexpected keyword argument {sorted(lacking)[0]!r}")
        result = numpys(*unwrap(arguments), **unwrap(options))
        out = options.get("out")
        return out if out is not None else wrap(result, owner)

    if isinstance(numpys, np.ufunc):
        if name in AT:
            call.at = lambda a, i, b: numpys.at(unwrap(a), unwrap(i), unwrap(b))  # type: ignore[attr-defined]
        if name in REDUCE:
            call.reduce = _function(numpys.reduce, name)  # type: ignore[attr-defined]
    return call


class ndarray:
    """An array on the pretended device: `_a` is NumPy's."""

    __array_priority__ = 100

    def __init__(self, a: np.ndarray, base: ndarray | None = None) -> None:
        self._a, self.base = a, base

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if _bound():
            raise TypeError(IMPLICIT)
        return np.array(self._a, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or ufunc.__name__ not in MODULE_NAMES:
            return NotImplemented
        return _function(ufunc, ufunc.__name__)(*inputs, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in ARRAY_NAMES:
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        value = getattr(self._a, name)
        return _function(value, name, self) if callable(value) else wrap(value, self)

    dtype = property(lambda self: self._a.dtype)
    shape = property(lambda self: self._a.shape)
    strides = property(lambda self: self._a.strides)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    itemsize = property(lambda self: self._a.itemsize)
    nbytes = property(lambda self: self._a.nbytes)

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self._a.ctypes.data)

    def get(self) -> np.ndarray:
        _wait()
        return self._a.copy()

    def item(self) -> Any:
        _wait()
        return self._a.item()

    def tolist(self) -> Any:
        _wait()
        return self._a.tolist()

    def fill(self, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        self._a.fill(value._a if isinstance(value, ndarray) else value)

    def __getitem__(self, index: Any) -> Any:
        return wrap(self._a[_index(index)], self)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and _bound():
            if value.ndim:
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            value = value[()]
        self._a[_index(index)] = unwrap(value)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self._a)))

    def __float__(self) -> float:
        _wait()
        return float(self._a)

    def __int__(self) -> int:
        _wait()
        return int(self._a)

    def __bool__(self) -> bool:
        _wait()
        return bool(self._a)

    def __format__(self, how: str) -> str:
        _wait()
        return format(self._a[()], how)

    def __repr__(self) -> str:
        _wait()
        return repr(self._a)

    def __len__(self) -> int:
        return len(self._a)

    __hash__ = None  # type: ignore[assignment]


def _index(index: Any) -> Any:
    """Lists and NumPy arrays are refused: CuPy would upload them, and nobody would see it."""
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, list | np.ndarray) and _bound():
            raise TypeError(f"an index of type {type(part).__name__} is a hidden upload; use asarray")
        if isinstance(part, ndarray) and part.dtype == bool:
            _wait()  # the host waits for the number of elements
    return unwrap(index)


def _operator(name: str) -> Callable[..., Any]:
    in_place = name.startswith("__i") and name != "__invert__"

    def apply(self: ndarray, *others: Any) -> Any:
        for other in others:
            if "matmul" in name and isinstance(other, np.ndarray) and _bound():
                raise TypeError(
                    "Argument 'b' has incorrect type (expected cupy._core.core._ndarray_base, got numpy.ndarray)"
                )
        result = getattr(self._a, name)(*unwrap(others))
        if result is NotImplemented:
            return NotImplemented
        return self if in_place else wrap(result)

    return apply


_OPERATORS = "add sub mul truediv floordiv pow matmul mod and or xor rshift lshift"
for _name in _OPERATORS.split():
    for _form in (f"__{_name}__", f"__r{_name}__", f"__i{_name}__"):
        setattr(ndarray, _form, _operator(_form))
for _name in ["lt", "le", "gt", "ge", "eq", "ne", "neg", "invert", "abs"]:
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


def _asarray(value: Any, dtype: Any = None) -> ndarray:
    """As cupy.asarray: the upload of an array of the host, or of numbers."""
    if isinstance(value, ndarray):
        return value if dtype is None or value.dtype == dtype else ndarray(value._a.astype(dtype))
    parts = value if isinstance(value, list | tuple) else ()
    if any(isinstance(part, ndarray) for part in parts):
        value = [unwrap(part) for part in parts]
    return ndarray(np.array(value, dtype=dtype))


def _ascontiguousarray(a: Any) -> ndarray:
    if isinstance(a, np.ndarray) and _bound():
        raise TypeError("Argument 'a' has incorrect type (expected cupy._core.core._ndarray_base, got numpy.ndarray)")
    a = _asarray(a)
    return a if a._a.flags.c_contiguous else ndarray(np.ascontiguousarray(a._a))


def make_module() -> types.ModuleType:
    """The module `cupy`: NumPy's functions of CuPy's names, and the parts of cupy.cuda that the backend uses."""
    import fake_kernels

    module: Any = types.ModuleType("cupy")
    module.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    for name in MODULE_NAMES:
        value = getattr(np, name, None)
        if value is not None and not isinstance(value, types.ModuleType):
            is_function = callable(value) and not isinstance(value, type)
            setattr(module, name, _function(value, name) if is_function else value)
    module.ndarray, module.__version__ = ndarray, "fake"
    module.asarray = module.array = _asarray
    module.ascontiguousarray = _ascontiguousarray
    module.asnumpy = lambda a: a.get() if isinstance(a, ndarray) else np.asarray(a)
    for name in FROM_HOST - {"array", "asarray"}:
        numpys = getattr(np, name)
        setattr(module, name, lambda a, *rest, _f=numpys, **options: ndarray(_f(getattr(a, "_a", a), *rest, **options)))
    module.ElementwiseKernel, module.RawKernel = fake_kernels.ElementwiseKernel, fake_kernels.RawKernel
    module.cuda = fake_kernels.make_cuda()
    return module


OURS = ("minipeft.backend.cupy_backend", "minipeft.backend.cupy_kernels")  # made anew over the fake
_modules: dict[str, Any] = {}


@contextlib.contextmanager
def installed() -> Iterator[types.ModuleType]:
    """Inside, `import cupy` gives the fake, and the CuPy backend is one over it."""
    import fake_kernels

    if not _modules:
        module: Any = make_module()
        libraries = types.SimpleNamespace(cublas=fake_kernels.cublas)
        _modules.update({"cupy": module, "cupy.cuda": module.cuda, "cupy_backends.cuda.libs": libraries})
    before = {name: sys.modules.pop(name, None) for name in (*OURS, *_modules)}
    package = sys.modules["minipeft.backend"]
    sys.modules.update(_modules)
    try:
        yield _modules["cupy"]
        _modules.update({name: sys.modules[name] for name in OURS if name in sys.modules})
    finally:
        for name, value in before.items():
            sys.modules.pop(name, None)
            if value is not None:
                sys.modules[name] = value
        for name in OURS:  # `from minipeft.backend import cupy_kernels` looks here first
            vars(package).pop(name.rpartition(".")[2], None)

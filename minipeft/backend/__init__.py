"""Layer 0, the array shim: the one place that imports an array library for arithmetic.

Everything above asks `active()` for the backend in use: `active().xp` is its array namespace (NumPy's names), and its
methods are the kernels worth writing by hand.
"""

from __future__ import annotations

from collections.abc import Callable

from minipeft.backend.base import Array, Backend
from minipeft.backend.numpy_backend import NumpyBackend
from minipeft.errors import UserError, unknown

__all__ = ["Array", "Backend", "active", "set_backend"]


def _numba() -> Backend:
    """Imported when asked for: it is optional, and takes longer to load than all the rest."""
    try:
        from minipeft.backend.numba_backend import NumbaBackend
    except ImportError as error:
        raise UserError(f"Backend 'numba' is not installed: pip install 'minipeft[fast]' ({error}).") from error
    return NumbaBackend()


BACKENDS: dict[str, Callable[[], Backend]] = {"numpy": NumpyBackend, "numba": _numba}
_active: Backend = NumpyBackend()


def active() -> Backend:
    """The backend that new arrays and all kernels use."""
    return _active


def set_backend(name: str) -> Backend:
    """Choose the backend by name. Tensors made before stay where they are: choose first, then load a model.

    Raises:
        UserError: there is no backend of that name, or the package that it needs is missing.
    """
    global _active
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    _active = BACKENDS[name]()
    return _active

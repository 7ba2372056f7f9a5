"""Layer 0, the array shim: the one place that imports an array library for arithmetic.

Everything above asks `active()` for the backend in use: `active().xp` is its array namespace (NumPy's names), and its
methods are the kernels worth writing by hand.
"""

from __future__ import annotations

from minipeft.backend.base import Array, Backend
from minipeft.backend.numpy_backend import NumpyBackend
from minipeft.errors import unknown

__all__ = ["Array", "Backend", "active", "set_backend"]

BACKENDS: dict[str, type[Backend]] = {"numpy": NumpyBackend}
_active: Backend = NumpyBackend()


def active() -> Backend:
    """The backend that new arrays and all kernels use."""
    return _active


def set_backend(name: str) -> Backend:
    """Choose the backend by name. Tensors made before stay where they are: choose first, then load a model.

    Raises:
        UserError: there is no backend of that name.
    """
    global _active
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    _active = BACKENDS[name]()
    return _active

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


def _cupy() -> Backend:
    """Three things can be missing, and each has its own remedy: the package, the GPU, CUDA's libraries.

    The last shows only when something is computed, so a kernel is compiled and a product taken here.
    """
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise UserError(NO_LIBRARIES.format(error)) from error
        raise UserError(NO_CUPY) from error
    except ImportError as error:
        raise UserError(NO_LIBRARIES.format(_last_line(error))) from error
    if not cupy.cuda.is_available():
        raise UserError(
            "CuPy is installed, but there is no usable GPU: it needs one of NVIDIA's, and a driver for the CUDA version "
            "that CuPy was built for. `nvidia-smi` shows both. Without a GPU, use the backend 'numpy' or 'numba'."
        )
    try:
        from minipeft.backend.cupy_backend import CupyBackend

        backend = CupyBackend()
        one = cupy.ones((2, 2), dtype="float32")
        backend.gelu(one @ one)
    except (ImportError, OSError, RuntimeError, cupy.cuda.compiler.CompileException) as error:
        raise UserError(NO_LIBRARIES.format(_last_line(error))) from error
    backend.synchronize()
    return backend


NO_CUPY = (
    "Backend 'cupy' is not installed: pip install 'minipeft[gpu]' for CUDA 13, "
    "or pip install 'cupy-cuda12x[ctk]' for CUDA 12."
)
NO_LIBRARIES = (
    "CuPy cannot use CUDA's libraries or headers ({}). Install them beside it: pip install 'cupy-cuda13x[ctk]', or "
    "'cupy-cuda12x[ctk]' for CUDA 12, the one that you have."
)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" =")]
    return lines[-1] if lines else type(error).__name__


BACKENDS: dict[str, Callable[[], Backend]] = {"numpy": NumpyBackend, "numba": _numba, "cupy": _cupy}
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

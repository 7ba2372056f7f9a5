"""What this machine offers minipeft, for `minipeft doctor`: facts that explain a speed or an error, and what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator

from threadpoolctl import threadpool_info

from minipeft.backend import active, set_backend
from minipeft.backend.workers import default_workers
from minipeft.data.asset_table import ASSETS
from minipeft.data.assets import cache_folder, is_fetched
from minipeft.errors import UserError


def facts() -> Iterator[tuple[str, str]]:
    """Pairs of (what, how it is here)."""
    yield (
        "minipeft",
        importlib.metadata.version("minipeft") if _installed("minipeft") else "not installed, run in place",
    )
    yield "Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "NumPy", importlib.metadata.version("numpy")
    yield "backend", active().name
    yield from active().describe()
    if active().name != "cupy":
        yield "GPU", gpu()
    yield "processors", f"{os.cpu_count()}, {default_workers()} used as workers"
    for library in threadpool_info():
        if library["user_api"] == "blas":
            kernel = library.get("architecture", "unknown kernel")
            yield "BLAS", f"{library['internal_api']} {library['version']}, {kernel}, {library['num_threads']} threads"
    yield (
        "cache",
        f"{cache_folder()} ({', '.join(name for name in ASSETS if is_fetched(name)) or 'nothing fetched yet'})",
    )


def gpu() -> str:
    """What `--backend cupy` would say here, in one line; nothing is changed."""
    if importlib.util.find_spec("cupy") is None:
        return "not asked for: CuPy is not installed (pip install 'minipeft[gpu]')"
    before = active().name
    try:
        return ", ".join(f"{what} {how}" for what, how in set_backend("cupy").describe())
    except UserError as error:
        return str(error)
    finally:
        set_backend(before)


def advice() -> Iterator[str]:
    """What could be better, one sentence each."""
    if os.environ.get("OPENBLAS_CORETYPE"):
        yield "OPENBLAS_CORETYPE is set: a newer NumPy may be faster without it."
    if importlib.util.find_spec("numba") is not None and active().name == "numpy":
        yield "numba is installed: --backend numba compiles the kernels between the matrix products."
    missing = [name for name in ("minilm", "sarcasm") if not is_fetched(name)]
    if missing:
        yield f"`minipeft fetch {' '.join(missing)}` brings what the defaults of `minipeft compare` need."


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

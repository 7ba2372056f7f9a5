"""These tests run on whatever `cupy` this process has.

pytest tests/on_cupy                                          on the fake (layer 1), as in every run of the suite
python tests/cuda_emulator run -- pytest tests/on_cupy        on CuPy's own code over an emulated device (layer 2)
pytest -m gpu                                                 on a GPU (layer 4)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fake_cupy
import pytest

from minipeft import backend
from minipeft.backend import Backend, set_backend
from minipeft.errors import UserError

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("gpu")


@pytest.fixture(scope="session")
def device_kind(request: pytest.FixtureRequest) -> str:
    """Which it is: fake, emulated or gpu."""
    if "CUDA_EMULATOR_HOME" in os.environ:
        return "emulated"
    return "gpu" if request.config.getoption("-m") == "gpu" else "fake"


@pytest.fixture(scope="session")
def cupy_library(device_kind: str) -> Iterator[object]:
    """The module `cupy` of this process."""
    if device_kind == "fake":
        with fake_cupy.installed() as module:
            yield module
        return
    try:
        set_backend("cupy")
    except UserError as error:
        if device_kind == "emulated":
            raise
        pytest.skip(str(error))
    finally:
        set_backend("numpy")
    import cupy

    yield cupy


@pytest.fixture(autouse=True)
def on_cupy(cupy_library: object) -> Iterator[Backend]:
    """The CuPy backend, active during the test."""
    before = backend.active()
    yield set_backend("cupy")
    backend._active = before

"""Fixtures for the whole suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import fake_cupy
import pytest

from minipeft import backend, cli
from minipeft.backend import random
from minipeft.data import fetch
from minipeft.errors import UserError

ON_CUPY_TOO = {"autograd", "nn", "optim", "peft"}  # the tests of the engine and of the methods
# Cases of tests/peft/test_common.py that compute with the same functions as others: once is enough, it takes its time.
ON_NUMPY_ALONE = (
    *(
        "topk-0",
        "topk-2",
        "topk-2-no-head",
        "topk-1-embeddings",
        "adapter-pfeiffer",
        "adapter-parallel",
        "adapter-norms",
    ),
    *("lora-all-linear", "lora-gaussian-rs", "lora-one-layer", "lora-bias-targets", "lora-bias-all"),
    *("did-scope", "said-dense", "said-sparse"),
    *("bitfit-q-up", "ia3-q", "prompt-random", "dora-everywhere", "vera-up-down", "loraplus"),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The engine and the methods are tested on NumPy and once more on the fake CuPy."""
    if metafunc.module and Path(metafunc.module.__file__).parent.name in ON_CUPY_TOO:
        marked = next(metafunc.definition.iter_markers("numpy_only"), None)
        both = not marked and metafunc.config.getoption("--backend") == "numpy"
        metafunc.parametrize("array_library", ["numpy", "fake-cupy"] if both else ["numpy"], indirect=True)


@pytest.fixture(autouse=True)
def array_library(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend of the test: NumPy's, or CuPy's over a fake `cupy` (see fake_cupy.py)."""
    name, wanted = getattr(request, "param", "numpy"), request.config.getoption("--backend")
    before = backend.active()
    if name == "numpy":
        if wanted != "numpy":
            backend.set_backend(wanted)
        yield wanted
        backend._active = before
        return
    with fake_cupy.installed():
        backend.set_backend("cupy")
        yield name
        backend._active = before


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--backend", default="numpy", choices=["numpy", "numba"], help="where the tests compute")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not item.name.endswith(tuple(f"[fake-cupy-{c}]" for c in ON_NUMPY_ALONE))]
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes more than ten seconds; run with --slow"))


@pytest.fixture(autouse=True)
def fresh_seed() -> None:
    """Every test starts from root seed 0, whichever ran before it."""
    random.seed(0)


@pytest.fixture
def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs `minipeft ARGUMENTS` in an empty folder; gives (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any) -> tuple[int, str, str]:
        status: Any = 0
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as end:
            status = end.code or 0
        text = capsys.readouterr()
        return status, text.out, text.err

    return call


@pytest.fixture(scope="session")
def torch() -> Any:
    """The module, on one thread so that its pool leaves NumPy's alone; skips the test where it is not installed."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


@cache
def _fetch(name: str) -> Path | str:
    """The asset's folder, or why it cannot be had: asked once a session, since a missing network takes its time."""
    try:
        return fetch(name, progress=False)
    except UserError as error:
        return str(error)


@pytest.fixture
def asset() -> Callable[[str], Path]:
    """`asset(name)` gives the folder of a fetched asset, or skips the test and says why."""

    def get(name: str) -> Path:
        found = _fetch(name)
        if isinstance(found, str):
            pytest.skip(found)
        return found

    return get

"""For pytest in a student's folder: the fixtures `lab` and `mp`, and a mark for every task (`pytest -m lab3_2`)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import minipeft
from minipeft.backend import random
from minipeft.labs.release import lab_in
from minipeft.labs.run import load_module
from minipeft.labs.spec import all_labs


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks."""
    for lab in all_labs().values():
        for task in lab.tasks:
            config.addinivalue_line("markers", f"lab{lab.number}_{task.number}: {lab.title}: {task.title}")


def pytest_itemcollected(item: Any) -> None:
    """Mark a lab's test with its task."""
    task = getattr(getattr(item, "function", None), "task", None)
    found = lab_in(Path(item.path).parent)
    if task is not None and found is not None:
        item.add_marker(f"lab{found.number}_{task}")


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> ModuleType:
    """The student's module, imported anew."""
    found = lab_in(request.path.parent)
    assert found is not None, f"there is no labN.py beside {request.path}"
    random.seed(0)
    return load_module(request.path.parent / f"{found.name}.py", found.name)


@pytest.fixture
def mp() -> ModuleType:
    """minipeft."""
    return minipeft


@pytest.fixture
def answers(request: pytest.FixtureRequest) -> str:
    """The student's written answers."""
    path = request.path.parent / "answers.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""

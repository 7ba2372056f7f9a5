"""Fixtures for the whole suite."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from minipeft.data import fetch
from minipeft.errors import UserError


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

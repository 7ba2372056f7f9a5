"""Running the tests of a lab, wherever the submission lives: one outcome for each."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from minipeft.errors import UserError

Test = Callable[..., None]


@dataclass(frozen=True)
class Outcome:
    """Of one test: `message` is None when it passed, else what is wrong, with a hint."""

    name: str
    task: int
    hidden: bool
    message: str | None

    @property
    def passed(self) -> bool:
        """Whether the submission is right."""
        return self.message is None


def load_module(path: str | Path, name: str) -> ModuleType:
    """Run a file as the module `name`, whatever else is of that name; its own errors come through."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_tests(path: Path) -> list[Test]:
    """The test functions of a file, in its order.

    Raises:
        UserError: the file is missing, or a test does not say which task it belongs to.
    """
    if not path.is_file():
        raise UserError(f"The tests {path} are missing.")
    module = load_module(path, path.stem)
    tests = [thing for name, thing in vars(module).items() if name.startswith("test_") and callable(thing)]
    for test in tests:
        if not hasattr(test, "task"):
            raise UserError(f"{path}: {test.__name__} needs @task(N), the task that it belongs to.")
    return tests


def run_test(test: Test, lab: Any, mp: Any, answers: str = "") -> str | None:
    """None if it passes, else a message. Errors of the submission, whatever they are, are messages."""
    given = {"lab": lab, "mp": mp, "answers": answers}
    try:
        test(**{name: given[name] for name in inspect.signature(test).parameters})
    except AssertionError as error:
        return str(error) or "an assertion failed"
    except NotImplementedError as error:
        return str(error)
    except Exception as error:
        return getattr(error, "told", None) or f"{type(error).__name__}: {error}"
    return None


def title(test: Test) -> str:
    """What a test is called in a report: "test_starts_as_the_base" -> "starts as the base"."""
    return test.__name__.removeprefix("test_").replace("_", " ")

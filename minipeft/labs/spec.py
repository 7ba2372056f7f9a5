"""What a lab is: `lab.toml` beside its files, in a student's release and in an instructor's solved source alike."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipeft.errors import UserError

RELEASES = Path(__file__).parent / "releases"
SPEC = "lab.toml"


@dataclass(frozen=True)
class Task:
    """One question of a lab. Its checks share its points in equal parts."""

    number: int
    title: str
    points: float


@dataclass(frozen=True)
class Lab:
    """One lab, and the folder that it was read from.

    Attributes:
        number: from 1 on.
        title: what it is about.
        minutes: what it takes a student.
        seconds: the longest that one task may compute, all its checks together.
        megabytes: memory that it may ask for.
        closed: dotted names of minipeft that a solution may not use: what the lab asks for.
        loads: modules that are imported before a submission is closed in, and stay readable to it.
        tasks: in order.
        folder: where its files are.
    """

    number: int
    title: str
    minutes: int
    seconds: float
    megabytes: int
    closed: tuple[str, ...]
    loads: tuple[str, ...]
    tasks: tuple[Task, ...]
    folder: Path

    @property
    def name(self) -> str:
        """The module that a student writes: "lab3"."""
        return f"lab{self.number}"

    @property
    def points(self) -> float:
        """Of all tasks together."""
        return sum(task.points for task in self.tasks)

    def public_tests(self) -> Path:
        """The tests that a student has as well."""
        return self.folder / f"test_{self.name}.py"

    def hidden_tests(self) -> Path:
        """The tests that only an instructor has."""
        return self.folder / f"hidden_{self.name}.py"

    def solution(self) -> Path:
        """The solved source."""
        return self.folder / "solution.py"


def read_lab(folder: Path) -> Lab:
    """Read `folder`/lab.toml.

    Raises:
        UserError: the file is missing, or a field is missing, unknown or of another kind.
    """
    path = folder / SPEC
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{folder} holds no lab: there is no {SPEC} in it.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: {error}.") from None
    try:
        tasks = tuple(
            Task(number, str(t["title"]), float(t["points"])) for number, t in enumerate(raw.pop("tasks"), start=1)
        )
        lists: dict[str, Any] = {name: tuple(raw.pop(name, ())) for name in ("closed", "loads")}
        lab = Lab(**{"seconds": 30, "megabytes": 3000, **raw}, **lists, tasks=tasks, folder=folder)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: {error}. It needs number, title, minutes, and [[tasks]] with title and points."
        ) from None
    if not lab.tasks or any(not 0 < task.points < 1e4 for task in lab.tasks):
        raise UserError(f"{path}: a lab has one task or more, and each is worth more than 0 points.")
    return lab


def all_labs(root: Path = RELEASES) -> dict[int, Lab]:
    """Every lab in the folders `root`/labN, by number."""
    labs = [read_lab(path.parent) for path in root.glob(f"lab*/{SPEC}")]
    return {lab.number: lab for lab in sorted(labs, key=lambda lab: lab.number)}


def find_lab(number: int, root: Path = RELEASES) -> Lab:
    """Lab `number`. Raises UserError when there is none."""
    labs = all_labs(root)
    if number not in labs:
        known = ", ".join(map(str, labs)) or "none"
        raise UserError(f"There is no lab {number} in {root}; the labs there are: {known}.")
    return labs[number]

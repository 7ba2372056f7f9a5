"""What every lesson begins with: its two options, a place for its figures, and the style that all figures share."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from cycler import cycler  # comes with matplotlib
from matplotlib import style
from matplotlib.figure import Figure

from minipeft.errors import UserError
from minipeft.files import atomic_path
from minipeft.report.style import LOOKS, STYLE

T = TypeVar("T")


@dataclass(frozen=True)
class Lesson:
    """A lesson that runs.

    Attributes:
        name: as its file, "07_lora".
        fast: whether it is to show in seconds that it works, on a few rows, rather than in minutes what there is to learn.
        out: the folder of its figures.
    """

    name: str
    fast: bool
    out: Path

    def pick(self, full: T, fast: T) -> T:
        """One value for the whole lesson, another for a quick look."""
        return fast if self.fast else full

    def save(self, figure: Figure, name: str) -> None:
        """Write the figure to `out`/NAME.png."""
        path = self.out / f"{name}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
        print(f"figure: {path.name}")


def begin(name: str) -> Lesson:
    """Read `--fast` and `--out DIR` from the command line, and set the style of the figures.

    In a notebook there is no command line: MINIPEFT_FAST=1 in the environment does what `--fast` does. What the user can
    mend, a missing asset above all, ends the script with one line in place of a traceback.
    """
    parser = argparse.ArgumentParser(description=f"The lesson {name} of minipeft.", allow_abbrev=False)
    parser.add_argument("--fast", action="store_true", help="a few rows: seconds instead of minutes")
    parser.add_argument("--out", type=Path, default=Path("runs/lessons"), metavar="DIR", help="where figures go")
    options, _ = parser.parse_known_args()  # a notebook's kernel has options of its own
    colours = [LOOKS[family].colour for family in ("topk", "adapter", "lora", "intrinsic", "full")]
    mine = {"text.parse_math": True, "axes.prop_cycle": cycler(color=colours)}  # labels of log axes are formulas
    style.use(["default", STYLE, mine])
    sys.excepthook = _show
    return Lesson(name, options.fast or bool(os.environ.get("MINIPEFT_FAST")), options.out / name)


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, UserError):
        print(f"Error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)

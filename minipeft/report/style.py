"""How every figure looks: the one style, and a colour, a marker and a line for each family of methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from minipeft.files import atomic_path
from minipeft.report.summary import FAMILIES

INK, GREY, LIGHT = "#222222", "#666666", "#e4e4e4"
BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind a text: hides the grid
STYLE = {
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "svg.hashsalt": "minipeft",  # fixed ids: the same input gives the same bytes
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a method's name is a "$"
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0.6,
    "legend.columnspacing": 1.6,
    "legend.handletextpad": 0.6,
}


@dataclass(frozen=True, slots=True)
class Look:
    """What tells a family apart: in colour by the first, in greyscale by the other two."""

    colour: str
    marker: str
    line: Any  # a matplotlib line style


# Okabe and Ito's colours, safe for the colour-blind; yellow is left out: it is illegible on white.
LOOKS: Mapping[str, Look] = {
    "full": Look("#333333", "*", "-"),
    "topk": Look("#0072B2", "o", "-"),
    "adapter": Look("#D55E00", "s", "--"),
    "lora": Look("#009E73", "D", "-."),
    "intrinsic": Look("#CC79A7", "^", ":"),
    "head": Look("#7F7F7F", "P", "-"),
}
SPARE = (
    Look("#E69F00", "v", (0, (5, 1, 1, 1, 1, 1))),
    Look("#56B4E9", "X", (0, (8, 3))),
    Look("#8C564B", "p", (0, (3, 1, 1, 1))),
    Look("#6A51A3", "h", (0, (1, 3))),
    Look("#B8860B", "<", (0, (6, 2, 1, 2))),
    Look("#1F9E9E", ">", (0, (2, 2))),
    Look("#A6324A", "d", (0, (10, 2, 2, 2))),
    Look("#3B3B98", "H", (0, (4, 1))),
)


@contextmanager
def styled() -> Iterator[None]:
    """The one style of all figures, whatever the user's matplotlibrc says, for the length of a `with` block."""
    with style.context(["default", STYLE]):
        yield


def family_looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for every family of a run; unknown ones take the spare looks in the order of their names."""
    unknown = sorted(set(methods) - set(FAMILIES))
    return {**LOOKS, **{method: SPARE[place % len(SPARE)] for place, method in enumerate(unknown)}}


def marker(look: Look) -> dict[str, Any]:
    """A marker of about the same area for every shape, with a white rim that parts it from its neighbours."""
    size = {"*": 15.0, "D": 8.0, "^": 9.5, "P": 10.5, "X": 10.0, "v": 9.5, "p": 10.0}.get(look.marker, 8.5)
    return {"color": look.colour, "marker": look.marker, "markersize": size, "markeredgecolor": "white"}


def tint(colour: str, strength: float) -> tuple[float, float, float]:
    """The colour mixed with white; a strength of 1 is the colour itself."""
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def ink(colour: str) -> tuple[float, float, float]:
    """The colour, darkened for text."""
    red, green, blue = (0.7 * part for part in to_rgb(colour))
    return red, green, blue


def blank_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """A figure of so many inches with a title and a line below it, both flush left."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 1 - 0.72 / height), wspace=0.04)
    figure.text(0.15 / width, 1 - 0.16 / height, title, fontsize=14, fontweight="bold", va="top")
    figure.text(0.15 / width, 1 - 0.45 / height, subtitle, color=GREY, va="top")
    return figure


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write PATH.png and PATH.svg; the same figure gives the same bytes."""
    paths = []
    for kind, metadata in (("png", None), ("svg", {"Date": None})):
        paths.append(path.with_name(f"{path.name}.{kind}"))
        with atomic_path(paths[-1]) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)
    return paths

"""results.csv as typed rows, and their mean and standard deviation over seeds. Standard library only."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from minipeft.errors import UserError

# The families in the order in which every figure and table shows them: display name, symbol of the setting.
FAMILIES: Mapping[str, tuple[str, str]] = {
    "full": ("Full fine-tuning", ""),
    "topk": ("Top-K layers", "K"),
    "adapter": ("Adapters", "R"),
    "lora": ("LoRA", "r"),
    "intrinsic": ("Intrinsic dimension", "d"),
    "head": ("Head only", ""),
}
# Further families, shown after these by name.
OTHERS: Mapping[str, tuple[str, str]] = {
    "bitfit": ("BitFit", ""),
    "dora": ("DoRA", "r"),
    "ia3": ("(IA)³", ""),
    "loraplus": ("LoRA+", "r"),
    "pissa": ("PiSSA", "r"),
    "prefix": ("Prefix tuning", "n"),
    "prompt": ("Prompt tuning", "n"),
    "vera": ("VeRA", "r"),
}

Curve = tuple[tuple[int, float], ...]
Norms = tuple[tuple[str, float], ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One finished cell: one (method, setting, seed). The fields are the columns of results.csv, in their order."""

    method: str
    setting: str
    seed: int
    lr: float
    trainable_params: int
    trainable_percent: float
    method_params: int
    head_params: int
    total_params: int
    accuracy: float  # 0..1; nan where the next token of a text is the task
    test_loss: float  # nan where the run diverged
    perplexity: float  # nan, as the next two, where the task has classes
    bits_per_byte: float
    untrained: float  # the bits per byte, or the accuracy, of the language model before any training
    train_seconds: float
    step_ms: float
    forward_gflop: float
    backward_gflop: float
    activation_mb: float
    peak_mb: float
    gradient_mb: float
    optimizer_mb: float
    cache_mb: float  # activations below a top-K cut, kept for all epochs
    saved_mb: float
    loss_curve: Curve  # (step, training loss) pairs, steps ascending
    gradient_norms: Norms  # (layer, length of the gradient at the first step), from the words up


COLUMNS = tuple(field.name for field in fields(Row))
MEMORY = {  # what training adds to the weights
    "Activations": "activation_mb",
    "Gradients": "gradient_mb",
    "Optimizer state": "optimizer_mb",
    "Cached activations": "cache_mb",
}
MEASURES = tuple(name for name in COLUMNS if name not in ("method", "setting", "seed", "loss_curve", "gradient_norms"))


@dataclass(frozen=True, slots=True)
class Summary:
    """All seeds of one (method, setting). `mean` and `sd` have a key for every name in MEASURES."""

    method: str
    setting: str
    n: int  # number of seeds
    mean: Mapping[str, float]
    sd: Mapping[str, float]  # sample standard deviation (n - 1); nan for one seed: a spread nobody has seen
    curves: tuple[Curve, ...]  # one a seed
    gradients: Mapping[str, float]  # layer -> mean length of the gradient at the first step

    @property
    def family(self) -> str:
        """The family's display name, "LoRA"."""
        return family_name(self.method)

    @property
    def setting_label(self) -> str:
        """The setting as the lecture writes it: "r=8", "K=1", "d=1000, dense"; empty where there is none."""
        symbol = {**FAMILIES, **OTHERS}.get(self.method, ("", ""))[1]
        label = self.setting.replace(":", ", ")
        return f"{symbol}={label}" if symbol and label else label

    @property
    def of_text(self) -> bool:
        """Whether the task is the next token of a text, so that bits per byte are the score and not accuracy."""
        return not math.isnan(self.mean["bits_per_byte"])

    @property
    def label(self) -> str:
        """Family and setting: "LoRA r=8"."""
        return f"{self.family} {self.setting_label}".rstrip()


def family_name(method: str) -> str:
    """The display name of a method's family; an unknown family keeps its own."""
    return {**FAMILIES, **OTHERS}.get(method, (method, ""))[0]


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Group rows by (method, setting) and average over seeds.

    The order is that of FAMILIES, then unknown families by name; within a family by trainable parameters.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.setting), []).append(row)
    rank = {method: place for place, method in enumerate(FAMILIES)}
    cells = [_summary(group) for group in groups.values()]
    return sorted(cells, key=lambda c: (rank.get(c.method, len(rank)), c.method, c.mean["trainable_params"], c.setting))


def _summary(group: list[Row]) -> Summary:
    columns = {name: [float(getattr(row, name)) for row in group] for name in MEASURES}
    mean = {name: math.fsum(xs) / len(xs) for name, xs in columns.items()}
    sd = {name: _sd(xs, mean[name]) for name, xs in columns.items()}
    curves = tuple(row.loss_curve for row in group)
    norms = [dict(row.gradient_norms) for row in group]
    gradients = {layer: math.fsum(n.get(layer, math.nan) for n in norms) / len(norms) for layer in norms[0]}
    return Summary(group[0].method, group[0].setting, len(group), mean, sd, curves, gradients)


def _sd(xs: list[float], mean: float) -> float:
    return math.hypot(*(x - mean for x in xs)) / math.sqrt(len(xs) - 1) if len(xs) > 1 else math.nan


def read_results(path: str | os.PathLike[str]) -> list[Row]:
    """Read results.csv. Columns are found by name: their order is free, and columns that Row lacks are ignored.

    Raises:
        UserError: the file is missing or empty, lacks a column, or has a cell that is not what its column holds
            (file, line and column are named), or names one (method, setting, seed) twice.
    """
    path = Path(path)
    rows: list[Row] = []
    lines: dict[tuple[str, str, int], int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if not header:
                raise UserError(f"{path} is empty. Expected a header line with the columns {', '.join(COLUMNS)}.")
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise UserError(f"{path}, line 1: no column {', '.join(missing)}. Found: {', '.join(header)}.")
            for cells in reader:
                if not cells:  # a blank line
                    continue
                where = f"{path}, line {reader.line_num}"
                row = _row(dict(zip(header, cells, strict=False)), where)
                first = lines.setdefault((row.method, row.setting, row.seed), reader.line_num)
                if first != reader.line_num:
                    name = f"{row.method}:{row.setting}".rstrip(":")
                    raise UserError(f"{where}: {name} with seed {row.seed} is there already, on line {first}.")
                rows.append(row)
    except FileNotFoundError as error:
        raise UserError(f"No file {path}. `minipeft compare` writes it when a method has finished.") from error
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not a CSV file ({error}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    if not rows:
        raise UserError(f"{path} has a header and no rows: no method has finished yet.")
    return rows


def _row(cells: Mapping[str, str], where: str) -> Row:
    values: dict[str, Any] = {}
    for name, (expected, parse) in _PARSERS.items():
        if name not in cells:
            raise UserError(f"{where}, column {name}: nothing there; the line has {len(cells)} cells and is cut short.")
        try:
            values[name] = parse(cells[name])
        except ValueError:
            shown = cells[name] if len(cells[name]) <= 60 else cells[name][:57] + "..."
            raise UserError(f"{where}, column {name}: {shown!r} is not {expected}.") from None
    return Row(**values)


def _name(text: str) -> str:
    return _checked(text.strip(), bool(text.strip()))


def _count(text: str) -> int:
    return _checked(value := int(text), value >= 0)


def _measure(text: str) -> float:
    return _checked(value := float(text), 0 <= value < math.inf)


def _fraction(text: str) -> float:
    return _checked(value := float(text), 0 <= value <= 1) if text.strip() else math.nan


def _if_any(text: str) -> float:
    return _measure(text) if text.strip() else math.nan


def _loss(text: str) -> float:
    return _checked(value := float(text), not value < 0)


def _curve(text: str) -> Curve:
    pairs = [pair.split(":") for pair in text.split(";") if pair.strip()]
    curve = tuple((_count(step), _loss(loss)) for step, loss in pairs)
    return _checked(curve, all(a < b for (a, _), (b, _) in pairwise(curve)))


def _norms(text: str) -> Norms:
    pairs = [pair.rpartition(":") for pair in text.split(";") if pair.strip()]
    norms = tuple((_name(layer), _loss(norm)) for layer, _, norm in pairs)
    return _checked(norms, len(dict(norms)) == len(norms))


def _checked(value: T, holds: bool) -> T:
    if not holds:
        raise ValueError
    return value


_KINDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "str": ("a text", str.strip),
    "int": ("a whole number of 0 or more", _count),
    "float": ("a finite number of 0 or more", _measure),
    "Curve": ("step:loss pairs joined by ';' with ascending steps", _curve),
    "Norms": ("layer:norm pairs joined by ';', each layer once", _norms),
}
_PARSERS = {field.name: _KINDS[str(field.type)] for field in fields(Row)} | {
    "method": ("the name of a method", _name),
    "accuracy": ("a number between 0 and 1, or empty", _fraction),
    "perplexity": ("a number of 0 or more, or empty", _if_any),
    "bits_per_byte": ("a number of 0 or more, or empty", _if_any),
    "untrained": ("a number of 0 or more, or empty", _if_any),
    "test_loss": ("a loss (0 or more, or nan)", _loss),
}

"""How the grader and a submission's process talk: one JSON line each way, and never pickle.

Numbers, texts, lists, tuples, dicts and arrays of numbers go by value; any other object stays where it is, and a
number that stands for it goes in its place.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

MOST_BYTES = 64_000_000  # of a line
MOST_PARTS = 1_000_000  # of a value: numbers in lists, keys; an array is one
MOST_KEYS = 10_000  # of a dict: keys can be chosen so that each one costs as much as all before it
FORM = "an answer is not of the agreed form"
DTYPES = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"}


class WireError(ValueError):
    """A line that is not of this form, or a value that cannot be sent."""


def pack(value: Any, hold: Callable[[Any], Any]) -> Any:
    """A value as JSON knows it; `hold(thing)` gives what stands for a thing that is not sent."""
    if value is None or isinstance(value, bool | str):
        return value if isinstance(value, bool) or value is None else str(value)
    if isinstance(value, int) and not hasattr(value, "dtype"):
        return int(value)
    if isinstance(value, float) and not hasattr(value, "dtype"):
        return float(value)
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [pack(item, hold) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, hold), pack(item, hold)] for key, item in value.items()]}
    if isinstance(value, np.ndarray | np.generic) and str(value.dtype) in DTYPES:
        array = np.ascontiguousarray(value)
        data = base64.b64encode(array.tobytes()).decode()
        return {"array": data, "dtype": str(array.dtype), "shape": list(value.shape)}
    return {"held": hold(value)}


def unpack(value: Any, find: Callable[[Any], Any]) -> Any:
    """The value again; `find` gives the thing that a number stands for.

    Raises:
        WireError: the other side did not keep to the form.
    """
    if not isinstance(value, dict):
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise WireError(FORM)
    try:
        if "list" in value:
            return [unpack(item, find) for item in value["list"]]
        if "tuple" in value:
            return tuple(unpack(item, find) for item in value["tuple"])
        if "dict" in value:
            if len(value["dict"]) > MOST_KEYS:
                raise WireError(f"a dict has more than {MOST_KEYS:,} keys")
            return {unpack(key, find): unpack(item, find) for key, item in value["dict"]}
        if "array" in value:
            if value["dtype"] not in DTYPES:
                raise WireError(f"an array of {value['dtype']} cannot be sent")
            flat = np.frombuffer(base64.b64decode(value["array"]), dtype=value["dtype"])
            return flat.reshape([abs(int(n)) for n in value["shape"]]).copy()
        return find(value["held"])
    except WireError:
        raise
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise WireError(f"{FORM} ({type(error).__name__})") from None


def plain(text: Any, most: int) -> str:
    """The beginning of a text from over there, without what a terminal or XML would take for something else."""
    return re.sub(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd]", "?", str(text)[:most])


def to_line(message: dict[str, Any]) -> bytes:
    """A message as a line. Raises WireError when it is too long, or of too many parts."""
    line = json.dumps(message).encode() + b"\n"
    if len(line) > MOST_BYTES:
        raise WireError(f"a value takes {len(line) / 1e6:,.0f} MB; {MOST_BYTES / 1e6:.0f} MB is the most that is read")
    _check_parts(line)
    return line


def from_line(line: bytes) -> dict[str, Any]:
    """A line as a message. Raises WireError."""
    _check_parts(line)
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise WireError(FORM) from None
    if not isinstance(message, dict):
        raise WireError(FORM)
    return message


def _check_parts(line: bytes) -> None:
    """Refuse a line whose values would take many times its own memory."""
    if sum(line.count(mark) for mark in (b",", b"[", b"{")) > 3 * MOST_PARTS:
        raise WireError(f"a value has more than {MOST_PARTS:,} parts")

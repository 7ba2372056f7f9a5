"""Checkpoints: one safetensors file, written in one step, from which a run goes on to the same bits."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from minipeft.backend import storage
from minipeft.errors import Diverged, UserError

FIELDS = {"run", "step", "losses", "seconds"}  # of a checkpoint's record, see Trainer


def save_checkpoint(path: Path, arrays: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Write arrays and a JSON-able record, atomically.

    Raises:
        Diverged: a number is not finite; the checkpoint that stood there before stays.
    """
    for name, array in arrays.items():
        if array.size and not (math.isfinite(array.min()) and math.isfinite(array.max())):
            raise Diverged(f"{name} holds a NaN or an infinity: training diverged. Lower the learning rate.")
    storage.write_tensors(path, arrays, {"minipeft": json.dumps(record)})


def load_checkpoint(path: Path, expected: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and the record of a checkpoint whose record["run"] must equal `expected`.

    Raises:
        UserError: the file is damaged, or was written by a run with other settings; nothing is deleted.
    """
    advice = f"Delete {path} to start this run from its beginning, or choose another folder."
    try:
        arrays, metadata = storage.read_tensors(path)
        record = json.loads(metadata["minipeft"])
        if not isinstance(record, dict) or not record.keys() >= FIELDS:
            raise UserError(f"Its record lacks some of {', '.join(sorted(FIELDS))}.")
    except (UserError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"The checkpoint {path} cannot be read: {error} {advice}") from error
    if record["run"] != json.loads(json.dumps(expected)):
        raise UserError(f"The checkpoint {path} belongs to a run with other settings. {advice}")
    return arrays, record


@contextlib.contextmanager
def interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C does not break into a step: the yielded function says whether it was pressed.

    A second Ctrl-C breaks in at once. In a thread that is not the main one, nothing changes.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def on_signal(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, on_signal)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)

"""The process that a submission runs in: `python -P -m minipeft.labs.child`, started by `sandbox.py`.

It does what it is asked and answers with values. It knows no test, no expected value and no points, so there is nothing in
it that a submission could read or change to its advantage.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
import traceback
from typing import Any

from minipeft.labs.guard import close_parts, readable_places, set_limits, watch
from minipeft.labs.native import BY_THEMSELVES, stand_in
from minipeft.labs.run import load_module
from minipeft.labs.wire import MOST_BYTES, WireError, from_line, pack, to_line, unpack

PRINTED = 4000  # characters of the submission's output that are kept


class _Output(io.TextIOBase):
    """Keeps the beginning of what is printed and drops the rest."""

    def __init__(self) -> None:
        self.kept, self.room = "", PRINTED

    def write(self, text: str) -> int:
        self.kept += text[: self.room]
        self.room -= min(self.room, len(text))
        return len(text)

    def take(self) -> str:
        kept, self.kept = self.kept, ""
        return kept


class Kept:
    """Around a value that is to stay here, although it could be sent."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Child:
    """The objects that the grader knows by number: 0 is the submission's module, 1 is minipeft."""

    def __init__(self, lab: Any, minipeft: Any) -> None:
        self.held = [lab, minipeft]

    def hold(self, thing: Any) -> dict[str, Any]:
        """Keep an object and say which number it has."""
        thing = thing.value if isinstance(thing, Kept) else thing
        self.held.append(thing)
        return {"id": len(self.held) - 1, "kind": type(thing).__name__}

    def find(self, held: Any) -> Any:
        """The object of a number."""
        return self.held[held]

    def do(self, message: dict[str, Any]) -> Any:
        """One request: get, set, call, item, iter, len, value, or hold."""
        thing, what = self.held[message["of"]], message["do"]
        inputs: Any = unpack(message.get("inputs"), self.find)
        if what == "get":
            return getattr(thing, message["name"])
        if what == "set":
            return setattr(thing, message["name"], inputs[0])
        if what == "call":
            return thing(*inputs, **unpack(message["options"], self.find))
        if what == "hold":
            return Kept(inputs[0])
        if what == "value":
            return thing
        if what == "item":
            return thing[inputs[0]]
        if what == "iter":
            return list(thing)
        return len(thing)


def told(error: BaseException, file: str) -> dict[str, Any]:
    """An error as an answer: its classes, its message, and the line of the submission that it came from."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
    try:
        text = str(error)[:500]
    except Exception:
        text = "an error without a message"
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return {"error": kinds, "message": text, "line": lines[-1] if lines else None}


def main() -> None:
    """Read the setting, load the submission, then answer line by line until the grader hangs up."""
    channel_in, channel_out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    output = _Output()
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), output, output
    setting = from_line(channel_in.readline(MOST_BYTES))
    file, folder = setting["file"], setting["folder"]

    def answer(reply: dict[str, Any]) -> None:
        channel_out.write(to_line({**reply, "printed": output.take()}))
        channel_out.flush()

    set_limits(setting["megabytes"], setting["seconds"])
    for name in BY_THEMSELVES:
        stand_in(name)
    for name in setting["loads"]:
        importlib.import_module(name)
    minipeft = sys.modules.get("minipeft") if "minipeft" not in setting["closed"] else None
    package = os.path.dirname(sys.modules["minipeft"].__file__ or "")
    refused = close_parts(tuple(setting["closed"]), setting["message"])
    gc.collect()  # what was taken away is in no list of objects either
    refused.append(os.path.join(package, "labs"))
    os.chdir(folder)
    watch([*readable_places(), package, folder], refused)
    answer({"ok": None})
    channel_in.readline(MOST_BYTES)  # from now on it is the submission's time
    try:
        child = Child(load_module(file, setting["name"]), minipeft)
        gc.collect()
    except BaseException as error:
        answer(told(error, file))
        return
    answer({"ok": None})
    while line := channel_in.readline(MOST_BYTES):
        try:
            reply = {"ok": pack(child.do(from_line(line)), child.hold)}
            answer(reply)
        except WireError as error:
            answer({"error": ["WireError"], "message": str(error), "line": None})
        except BaseException as error:
            answer(told(error, file))


if __name__ == "__main__":
    main()

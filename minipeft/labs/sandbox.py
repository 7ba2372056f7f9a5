"""A submission's process, seen from the grader: started, asked, timed and ended here; whatever it does, this side goes on.

The tests hold `Remote` objects. What they do to them is done over there; the plain values that come back are judged here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minipeft.errors import UserError
from minipeft.labs.confine import confinement, environment
from minipeft.labs.native import BELOW
from minipeft.labs.spec import Lab
from minipeft.labs.wire import FORM, MOST_BYTES, WireError, from_line, pack, plain, to_line, unpack

CLOSED = "{} is what this lab asks you to write, so it is closed while the lab is checked: " + BELOW
GRACE = 60.0  # seconds for Python, NumPy and what the lab loads, on a busy machine


class SubmissionError(Exception):
    """An error that the submission raised: its classes' names, message, and line.

    `told` is the sentence for the student.
    """

    def __init__(self, kinds: list[str], message: str, line: int | None, name: str) -> None:
        self.kinds = kinds
        where = f" ({name}.py, line {line})" if line else ""
        self.told = message if kinds[0] == "NotImplementedError" else f"{kinds[0]}: {message}{where}"
        if kinds[0] in ("SystemExit", "KeyboardInterrupt"):
            self.told = f"your code ended the program with {kinds[0]}{where}"
        if kinds[0] == "MemoryError":
            self.told = f"your code asked for more memory than the lab allows{where}"
        super().__init__(self.told)


class SessionEnded(Exception):
    """The process is no more: it ended itself, or its time was up. `told` is the sentence for the student."""

    def __init__(self, why: str) -> None:
        self.told = why
        super().__init__(why)


class Remote:
    """An object of the submission's process. Calls, attributes, items and iteration happen there."""

    def __init__(self, session: Session, number: int, kind: str) -> None:
        vars(self).update(_session=session, _number=number, remote_kind=kind)

    def __getattr__(self, name: str) -> Any:
        return self._session.ask(self._number, "get", name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._session.ask(self._number, "set", (value,), name=name)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Call it over there."""
        return self._session.ask(self._number, "call", inputs, options)

    def __getitem__(self, index: Any) -> Any:
        return self._session.ask(self._number, "item", (index,))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._session.ask(self._number, "iter"))

    def __len__(self) -> int:
        try:
            return int(self._session.ask(self._number, "len"))
        except SubmissionError as error:
            raise TypeError(error.told) from None  # what `list` expects of a generator

    def __add__(self, other: Any) -> Any:
        return self._session.ask(self._number, "get", name="__add__")(other)

    def __mul__(self, other: Any) -> Any:
        return self._session.ask(self._number, "get", name="__mul__")(other)

    def __repr__(self) -> str:
        return f"a {self.remote_kind}"


class Session:
    """One process with one copy of a submission.

    Args:
        lab: the lab; its limits and closed parts.
        file: the submission's module.
        seconds: the time that it has, from its first line on.

    Raises:
        SubmissionError: the module cannot be read or imported, or its answers are not of the agreed form.
        SessionEnded: the process ended while it was.
        UserError: this machine cannot start the process, or not with what the lab loads.
    """

    def __init__(self, lab: Lab, file: Path, seconds: float) -> None:
        self.name, self.printed, self.ended = lab.name, "", ""
        command, user = confinement(lab.folder.parent.resolve())  # where the hidden tests of all labs lie
        self._folder = tempfile.TemporaryDirectory(prefix="minipeft-lab-")
        folder = Path(self._folder.name).resolve()
        work, scratch = folder / "work", folder / "scratch"
        copy = work / file.name
        try:
            folder.chmod(0o755)  # for the user that it runs as
            work.mkdir()
            scratch.mkdir()
            scratch.chmod(0o777)
            _copy(file, copy, self.name)
            if any(name.startswith("matplotlib") for name in lab.loads):
                _give_fonts(scratch)
            self._process = subprocess.Popen(
                [*command, sys.executable, "-P", "-m", "minipeft.labs.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={**environment(), "MPLCONFIGDIR": str(scratch)},
                start_new_session=os.name == "posix",
                **user,
            )
        except OSError as error:
            self._folder.cleanup()
            raise UserError(f"This machine cannot start the process of a submission: {error}.") from None
        except BaseException:
            self._folder.cleanup()
            raise
        self._answers: queue.Queue[bytes] = queue.Queue(maxsize=4)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._watchdog = self._kill_after(GRACE)
        setting = {
            "file": str(copy),
            "folder": str(work),
            "name": lab.name,
            "closed": lab.closed,
            "loads": lab.loads,
            "message": CLOSED,
            "megabytes": lab.megabytes,
            "seconds": seconds + GRACE,
        }
        self._deadline = time.monotonic() + GRACE
        try:
            self._start(setting)
            self.started = time.monotonic()
            self._deadline = self.started + seconds
            self._watchdog.cancel()
            self._watchdog = self._kill_after(seconds + 1)  # also when it stops reading what it is asked
            self._exchange({"do": "load"})
        except (SubmissionError, SessionEnded, UserError, KeyboardInterrupt, SystemExit):
            self.close()
            raise
        except Exception as error:  # whatever else it makes of the channel is its own doing
            self.close()
            raise SubmissionError([type(error).__name__], FORM, None, self.name) from None

    def _start(self, setting: dict[str, Any]) -> None:
        try:
            self._exchange(setting)
        except (SubmissionError, SessionEnded):  # nothing of the submission has run
            raise UserError(
                f"Python, minipeft and what {self.name} loads did not start within {GRACE:.0f} s: is something missing, "
                "or is the machine too busy?"
            ) from None

    def _kill_after(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self._kill)
        timer.start()
        return timer

    def root(self, number: int) -> Remote:
        """0: the submission's module; 1: minipeft in its process."""
        return Remote(self, number, "module")

    def ask(
        self, number: int, do: str, inputs: tuple[Any, ...] = (), options: dict[str, Any] | None = None, name: str = ""
    ) -> Any:
        """Have something done over there. Raises SubmissionError or SessionEnded."""
        message = {"of": number, "do": do, "name": name}
        message["inputs"], message["options"] = pack(inputs, self._number_of), pack(options or {}, self._number_of)
        return self._exchange(message)

    def hold(self, thing: Any) -> Remote:
        """Keep a value over there, and give what stands for it."""
        held = self.ask(0, "hold", (thing,))
        if not isinstance(held, Remote):
            raise WireError(FORM)
        return held

    def value(self, thing: Remote) -> Any:
        """What a kept value is by now."""
        return self.ask(self._number_of(thing), "value")

    def _number_of(self, thing: Any) -> int:
        if not isinstance(thing, Remote):
            raise TypeError(f"a {type(thing).__name__} of the test cannot be sent to a submission")
        return int(vars(thing)["_number"])

    def _remote(self, held: Any) -> Remote:
        return Remote(self, int(held["id"]), plain(held["kind"], 80))

    def _exchange(self, message: dict[str, Any]) -> Any:
        if self.ended:
            raise SessionEnded(self.ended)
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(to_line(message))
            self._process.stdin.flush()
            line = self._answers.get(timeout=max(0.0, self._deadline - time.monotonic()))
        except queue.Empty:
            self._end("your code did not finish in the time that the task has; is there a loop without an end?")
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            self._end("your code ended the program (a crash, os._exit, too much time, or too long an answer)")
        try:
            answer = from_line(line)
            self.printed += plain(answer.get("printed", ""), 4000)
            if "error" in answer:
                kinds = [plain(kind, 80) for kind in answer["error"]] or ["Error"]
                line_number = answer["line"] if isinstance(answer.get("line"), int) else None
                raise SubmissionError(kinds, plain(answer.get("message"), 500), line_number, self.name)
            return unpack(answer["ok"], self._remote)
        except WireError as error:
            raise SubmissionError(["WireError"], str(error)[:500], None, self.name) from None
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError, RecursionError):
            raise SubmissionError(["WireError"], FORM, None, self.name) from None

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            while line := self._process.stdout.readline(MOST_BYTES):
                self._answers.put(line)
        self._answers.put(b"")

    def _end(self, why: str) -> None:
        self.ended = why
        self.close()
        raise SessionEnded(why)

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def close(self) -> None:
        """End the process and everything that it has started, and remove its folder."""
        self._watchdog.cancel()
        self._kill()
        self._process.wait()
        while self._listener.is_alive():  # it may wait for room in the queue
            with contextlib.suppress(queue.Empty):
                self._answers.get(timeout=0.01)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not sent yet
                if pipe is not None:
                    pipe.close()
        with contextlib.suppress(OSError):
            self._folder.cleanup()


def _copy(file: Path, copy: Path, name: str) -> None:
    """Copy a submission. Raises SubmissionError when it cannot be read."""
    try:
        content = file.read_bytes()
    except OSError:
        raise SubmissionError(["OSError"], f"{file.name} cannot be read", None, name) from None
    copy.write_bytes(content)


def _give_fonts(place: Path) -> None:
    """matplotlib's list of fonts: making it anew in every process would take seconds."""
    from matplotlib import font_manager, get_cachedir

    assert font_manager.fontManager.ttflist  # it is made, where there was none
    with contextlib.suppress(OSError):
        for path in Path(get_cachedir()).glob("fontlist-*.json"):
            shutil.copyfile(path, place / path.name)

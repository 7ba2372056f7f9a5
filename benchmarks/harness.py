"""What all benchmarks share: processes that alternate on a quiet machine, and medians with intervals."""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
QUIET = 0.05  # of all processors: the most that others may use for the machine to be called quiet


class PeerFailed(Exception):
    """A benchmark's process ended with an error; the message has the end of what it said."""


def watched(wait: float, function: Callable[[], T]) -> tuple[T, bool]:
    """Wait up to `wait` seconds for a quiet machine, call a function that runs a process, and say whether it stayed quiet.

    A busy machine does not slow all sides alike: the threads of torch's OpenMP wait for each other at every operation, and
    lose far more than ours when one of them has lost its processor. So what was timed then must not be quoted.
    """
    end = time.monotonic() + wait
    while not (quiet := _quiet_during(lambda: time.sleep(0.3))[1]) and time.monotonic() < end:
        pass
    result, stayed = _quiet_during(function)
    return result, quiet and stayed


def _quiet_during(function: Callable[[], T]) -> tuple[T, bool]:
    others, total = _processor_seconds()
    result = function()
    others_after, total_after = _processor_seconds()
    return result, others_after - others <= QUIET * (total_after - total)


def _processor_seconds() -> tuple[float, float]:
    """The processor time that others than our child processes have used so far, and all there was; 0, 0 if unknown."""
    try:
        import resource

        line = Path("/proc/stat").read_text().split("\n", 1)[0]
    except (ImportError, OSError):
        return 0.0, 0.0
    ticks = [int(number) for number in line.split()[1:9]]  # user nice system idle iowait irq softirq steal
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = sum(ticks) / os.sysconf("SC_CLK_TCK")
    idle = (ticks[3] + ticks[4]) / os.sysconf("SC_CLK_TCK")
    return total - idle - children.ru_utime - children.ru_stime, total


def run_json(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run `python -m module arguments` and read the JSON in the last line of its output. Raises PeerFailed."""
    done = run_process([sys.executable, "-m", module, *arguments])
    try:
        result: dict[str, Any] = json.loads(done.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise PeerFailed(f"{module} {' '.join(arguments)} printed no result: {done[-300:]!r}") from None
    return result


def run_process(command: Sequence[str]) -> str:
    """Run a command from the root of the repository and return what it prints. Raises PeerFailed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise PeerFailed(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def median_interval(values: Sequence[float], resamples: int = 4000) -> tuple[float, float, float]:
    """The median, and the 95 % percentile-bootstrap interval of it: (median, low, high)."""
    array = np.asarray(values, dtype=float)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(array, (resamples, len(array))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(statistics.median(values)), float(low), float(high)


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a CSV file: what was measured is kept when the run is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def worth_quoting(rows: list[dict[str, str]], keep_busy: bool) -> list[dict[str, str]]:
    """The rows of quiet times, or all of them with `keep_busy`.

    Raises:
        SystemExit: no row was timed in quiet.
    """
    kept = [row for row in rows if keep_busy or row["quiet"] == "1"]
    if not kept:
        raise SystemExit(
            "The machine was never quiet, so there is nothing to quote; --keep-busy shows the figures all the same."
        )
    return kept


def add_common_options(parser: argparse.ArgumentParser, folder: str, rounds: int) -> None:
    """The options that all benchmarks have."""
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default: {rounds}")
    parser.add_argument(
        "--backend",
        default="numpy",
        help="of ours: numpy (the default), numba, or cupy, which puts torch on CUDA as well",
    )
    parser.add_argument("--wait", type=float, default=60.0, help="seconds to wait for a quiet machine before a process")
    parser.add_argument("--keep-busy", action="store_true", help="also summarise what was timed on a busy machine")
    parser.add_argument("--out", type=Path, default=Path(folder), help=f"folder for the results (default: {folder})")


def fresh(path: Path) -> Path:
    """The path, with the file of an earlier run removed."""
    path.unlink(missing_ok=True)
    return path


def say(text: str) -> None:
    """Print at once: a benchmark takes long."""
    print(text, flush=True)

"""One side of one cell, in a process of its own: `python -m benchmarks.worker ours a lora:8` prints a line of JSON.

torch and NumPy are never timed in one process: their thread pools, which spin while they wait, would collide.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()  # before the first import: import time is a result

import argparse  # noqa: E402
import contextlib  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

SIDES = {
    "ours": "benchmarks.ours",
    "torch": "benchmarks.torch_peer",
    "peft": "benchmarks.torch_peer",
    "autograd": "benchmarks.others",
    "mygrad": "benchmarks.others",
}


def run(
    side: str, shape_name: str, method: str, backend: str, seconds: float, least: int, count: bool
) -> dict[str, Any]:
    """Warm up, then time steps for `seconds`, at least `least` of them."""
    from benchmarks.cases import Unsupported, parse_shape

    shape = parse_shape(shape_name)
    try:
        module = importlib.import_module(SIDES[side])
        module.import_for(shape, side)
    except ImportError as error:
        if side == "ours":
            raise
        return {"skipped": f"{side}: {error}"}
    import_s = time.perf_counter() - BEGAN
    try:
        on_gpu = {"on_gpu": True} if backend == "cupy" and side in ("torch", "peft") else {}
        with module.Step(shape, method, backend if side == "ours" else side, **on_gpu) as step:
            wait = getattr(step, "wait", lambda: None)  # a GPU computes while we go on: each step is timed to its end
            first = float(step())
            for _ in range(2 if backend != "cupy" else 10):
                step()
            wait()
            times: list[float] = []
            while len(times) < least or sum(times) < seconds:
                began = time.perf_counter()
                loss = step()
                wait()
                times.append(time.perf_counter() - began)
            device_mb = step.device_mb() if backend == "cupy" and hasattr(step, "device_mb") else 0.0
            peak = device_mb or peak_mb() + copies_mb()
            return {
                "step_ms": 1000 * statistics.median(times),
                "steps": len(times),
                "peak_mb": peak,
                "import_s": import_s,
                "first_loss": first,
                "last_loss": float(loss),
                **(step.count() if count else {}),
            }
    except Unsupported as error:
        return {"skipped": str(error)}


def peak_mb() -> float:
    """The most memory that this process had in RAM at once, in 10⁶ bytes.

    On Linux from /proc: `getrusage` there starts from the memory of the process that this one was started by.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def copies_mb() -> float:
    """What the copies of this process (the other workers) have for themselves, in 10⁶ bytes.

    They keep what they have freed for the next step, so that what they have at the end is the most they had.
    """
    total = 0
    with contextlib.suppress(OSError):
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return total * 1024 / 1e6


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("shape", help='a, b, smollm2 or mlp, with changes after slashes: "b/batch=8/layers=2"')
    parser.add_argument("method", help="full, topk:1, topk:1:cached, adapter:16, lora:8, intrinsic:1000, ...")
    parser.add_argument("--backend", default="numpy", help="of ours")
    parser.add_argument("--seconds", type=float, default=3.0, help="time steps for so long")
    parser.add_argument("--least", type=int, default=5, help="and at least so many")
    parser.add_argument("--count", action="store_true", help="also count operations and parameters, after the timing")
    given = parser.parse_args()
    result = run(given.side, given.shape, given.method, given.backend, given.seconds, given.least, given.count)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

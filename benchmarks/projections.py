"""Time θ_d M and M g, and weigh M, for each form of M and several sizes, each in a process of its own.

Outside of training one process does all the work; several workers of a training share Fastfood's. The memory is that of M
itself, counted from its arrays, and the peak of the process while it is drawn and used, imports included.

Example: python -m benchmarks.projections --D 1060000,10700000,22700000 --d 1000 --out runs/bench-projections
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import add_common_options, add_row, fresh, read_rows, run_json, say, watched, worth_quoting

FORMS = "dense,sparse,fastfood"
DENSE_LIMIT = 3e9  # bytes of M beyond which the dense form is left out


def main(arguments: Sequence[str] | None = None) -> Path:
    """The command line; returns the folder of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", default=FORMS, help=f"default: {FORMS}")
    parser.add_argument("--D", default="1060000,10700000,22700000", help="numbers of parameters")
    parser.add_argument("--d", default="1000", help="dimensions of the subspace")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # form:d:D, measured in this process and printed as JSON
    add_common_options(parser, "runs/bench-projections", 3)
    given = parser.parse_args(arguments)
    if given.one:
        form, d, D = given.one.split(":")
        print(json.dumps(measure(form, int(d), int(D), given.backend)))
        return Path(given.out)
    path = fresh(given.out / "projections.csv")
    for turn in range(given.rounds):
        for form in given.forms.split(","):
            for D in map(int, given.D.split(",")):
                for d in map(int, given.d.split(",")):
                    if form == "dense" and 4 * d * D > DENSE_LIMIT:
                        continue
                    command = ["--one", f"{form}:{d}:{D}", "--backend", given.backend]
                    result, quiet = watched(given.wait, lambda c=command: run_json("benchmarks.projections", c))
                    add_row(path, {"form": form, "D": D, "d": d, "round": turn, "quiet": int(quiet)} | result)
                    say(f"{form} D={D:,} d={d}: {result['forward_ms']:.1f} / {result['backward_ms']:.1f} ms")
    table = markdown(worth_quoting(read_rows(path), given.keep_busy))
    (given.out / "projections.md").write_text(table, encoding="utf-8")
    say(f"\n{table}\nWritten to {given.out}: projections.csv, projections.md")
    return Path(given.out)


def measure(form: str, d: int, D: int, backend: str) -> dict[str, float]:
    """Medians over ten calls, and memory in 10⁶ bytes."""
    from benchmarks.worker import peak_mb
    from minipeft.backend import active, random, set_backend
    from minipeft.peft.projection import PROJECTIONS

    set_backend(backend)
    began = time.perf_counter()
    M = PROJECTIONS[form](d, D, seed=0)
    drawn = time.perf_counter() - began
    rng = random.generator("benchmark")
    theta_d, g = (active().asarray(rng.standard_normal(size, dtype="float32")) for size in (d, D))
    return {
        "draw_s": drawn,
        "forward_ms": timed(lambda: M.forward(theta_d)),
        "backward_ms": timed(lambda: M.backward(g)),
        "matrix_mb": weight_of([value for name, value in vars(M).items() if not name.startswith("shared")]) / 1e6,
        "peak_mb": peak_mb(),
    }


def weight_of(value: Any) -> int:
    """The bytes of the arrays in lists and tuples; the meeting place of several workers is not M's."""
    if isinstance(value, list | tuple):
        return sum(map(weight_of, value))
    return getattr(value, "nbytes", 0)


def timed(call: Any, times: int = 10) -> float:
    """The median of some calls in milliseconds, after one that does not count."""
    call()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return 1000 * median(seconds)


def markdown(rows: list[dict[str, str]]) -> str:
    """The medians over the rounds as a table."""
    lines = [
        "| M | D | d | forward, ms | backward, ms | M, MB | peak, MB | drawn in, s |",
        "|---|---:" + "|---:" * 6 + "|",
    ]
    for key in dict.fromkeys((row["form"], row["D"], row["d"]) for row in rows):
        group = [row for row in rows if (row["form"], row["D"], row["d"]) == key]
        forward, backward, weight, peak, drawn = (
            median(float(row[name]) for row in group)
            for name in ("forward_ms", "backward_ms", "matrix_mb", "peak_mb", "draw_s")
        )
        form, D, d = key[0], int(key[1]), int(key[2])
        lines.append(
            f"| {form} | {D:,} | {d:,} | {forward:.1f} | {backward:.1f} | {weight:.0f} | {peak:.0f} | {drawn:.1f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()

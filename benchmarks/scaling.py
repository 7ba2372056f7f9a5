"""How the time and the memory of our training step grow with the batch, the sequence, the depth and the width.

One of them at a time is changed around shape b (MiniLM: batch 16, seq 64, 6 layers, d 384; ff = 4d and heads of 32), beside
the operations of the step's matrix products, counted from their shapes by `minipeft.cost.count_flops`. Each point is the
median of --rounds processes, whose points are visited in turn.

Example: python -m benchmarks.scaling --methods full,lora:8 --rounds 3 --out runs/bench-scaling
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import parse_shape
from benchmarks.harness import add_common_options, add_row, fresh, read_rows, run_json, say, watched, worth_quoting

VALUES = {"batch": "4,8,16,32,64", "seq": "16,32,64,128,256", "layers": "1,2,4,6,12", "d": "96,192,384,768"}
NUMBERS = ("step_ms", "peak_mb", "gflop", "activation_mb", "trained")


def main(arguments: Sequence[str] | None = None) -> Path:
    """The command line; returns the folder of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="b", help="the middle (default: b)")
    parser.add_argument("--methods", default="full,lora:8", help="default: full,lora:8")
    for name, values in VALUES.items():
        parser.add_argument(f"--{name}", default=values, help=f"default: {values}")
    parser.add_argument("--seconds", type=float, default=2.0, help="of steps to time in each process (default: 2)")
    parser.add_argument("--least", type=int, default=3, help="steps to time in each process at least (default: 3)")
    add_common_options(parser, "runs/bench-scaling", 3)
    given = parser.parse_args(arguments)
    path = fresh(given.out / "scaling.csv")
    options = ["--backend", given.backend, "--seconds", str(given.seconds), "--least", str(given.least), "--count"]
    for turn in range(given.rounds):
        for changed in VALUES:
            for value in map(int, getattr(given, changed).split(",")):
                shape = changed_shape(given.shape, changed, value)
                for method in given.methods.split(","):
                    command = ["ours", shape, method, *options]
                    result, quiet = watched(given.wait, lambda command=command: run_json("benchmarks.worker", command))
                    if reason := result.get("skipped"):
                        raise SystemExit(f"{shape} {method}: {reason}")
                    place = {"method": method, "changed": changed, "value": value, "round": turn, "quiet": int(quiet)}
                    add_row(path, place | {name: result[name] for name in NUMBERS})
                    noise = "" if quiet else " (the machine was busy)"
                    say(f"{method} {changed}={value} round {turn + 1}: {result['step_ms']:.1f} ms{noise}")
    points = summarise(worth_quoting(read_rows(path), given.keep_busy))
    table = markdown(points)
    (given.out / "scaling.md").write_text(table, encoding="utf-8")
    from benchmarks.figures import scaling_figure

    scaling_figure(points, given.out / "scaling.png")
    say(f"\n{table}\nWritten to {given.out}: scaling.csv, scaling.md, scaling.png")
    return Path(given.out)


def changed_shape(base: str, changed: str, value: int) -> str:
    """The base with one number changed, and with what goes along with it."""
    shape = f"{base}/{changed}={value}"
    if changed == "d":
        head = parse_shape(base).d // parse_shape(base).heads
        if value % head:
            raise SystemExit(f"--d {value}: widths are multiples of a head's {head}.")
        shape += f"/d_ff={4 * value}/heads={value // head}"
    return shape


def summarise(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """One entry a point: medians over the rounds."""
    groups: dict[tuple[str, str, int], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["changed"], int(row["value"])), []).append(row)
    return [
        {"method": method, "changed": changed, "value": value}
        | {name: median(float(row[name]) for row in group) for name in NUMBERS}
        for (method, changed, value), group in groups.items()
    ]


def markdown(points: list[dict[str, Any]]) -> str:
    """The points as a table."""
    lines = [
        "| method | changed | value | step, ms | GFLOP a step | GFLOP/s | peak, MB | tape, MB | trained |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for p in sorted(points, key=lambda p: (p["method"], list(VALUES).index(p["changed"]), p["value"])):
        rate = p["gflop"] / p["step_ms"] * 1000
        numbers = f"{p['step_ms']:.1f} | {p['gflop']:.1f} | {rate:.0f} | {p['peak_mb']:.0f} | {p['activation_mb']:.0f}"
        lines.append(f"| {p['method']} | {p['changed']} | {p['value']} | {numbers} | {p['trained']:,.0f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()

"""Time one training step of ours beside the peers', in processes that alternate: ours, peers, ours; and again.

The ratio of a round is ours / peer (below 1: ours is faster), with the geometric mean of the two runs of ours, so that a
slow drift of the machine cancels. The control is the ratio of these two runs: it shows how much is noise. Rounds in which
others used more than 5 % of the processors are in steps.csv, with quiet=0, and left out of the medians.

Example: python -m benchmarks.steps --shape a,b --methods full,lora:8 --rounds 7 --out runs/bench-steps
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import SHAPES, parse_shape, peers_of, threads
from benchmarks.harness import (
    add_common_options,
    add_row,
    fresh,
    median_interval,
    read_rows,
    run_json,
    say,
    watched,
    worth_quoting,
)

METHODS = "full,lora:8,adapter:16,topk:1,topk:1:cached,intrinsic:1000"
PEERS = ("torch", "peft", "autograd", "mygrad")
NONE = "none"


def main(arguments: Sequence[str] | None = None) -> Path:
    """The command line; returns the folder of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="a,b,smollm2", help=f"of {', '.join(SHAPES)}; a/layers=1/d=32 changes one")
    parser.add_argument("--methods", default=METHODS, help=f"default: {METHODS}")
    parser.add_argument("--peers", default=",".join(PEERS), help="default: all that have the part")
    parser.add_argument("--seconds", type=float, default=3.0, help="of steps to time in each process (default: 3)")
    parser.add_argument("--least", type=int, default=5, help="steps to time in each process at least (default: 5)")
    add_common_options(parser, "runs/bench-steps", 7)
    given = parser.parse_args(arguments)
    path = fresh(given.out / "steps.csv")
    for shape in given.shape.split(","):
        for method in given.methods.split(",") if parse_shape(shape).kind != "mlp" else ["full"]:
            time_cell(shape.strip(), method.strip(), given, path)
    if not path.exists():
        raise SystemExit("Nothing was timed: every cell was left out, for the reasons above.")
    rows = read_rows(path)
    cells = summarise(worth_quoting(rows, given.keep_busy))
    table = markdown(cells, len(rows) - sum(cell["rounds"] for cell in cells))
    (given.out / "steps.md").write_text(table, encoding="utf-8")
    draw(cells, given.out / "steps.png")
    say(f"\n{table}\nWritten to {given.out}: steps.csv, steps.md, steps.png")
    return Path(given.out)


def time_cell(shape: str, method: str, given: argparse.Namespace, path: Path) -> None:
    """All rounds of a shape and a method, a row a round and peer. A side that cannot do it is left out, with a word."""
    peers = [peer for peer in peers_of(parse_shape(shape), method) if peer in given.peers.split(",")]
    for turn in range(given.rounds):
        quiet = True
        results: dict[str, dict[str, Any]] = {}
        for side in ("ours", *peers, "again"):
            options = ["--backend", given.backend, "--seconds", str(given.seconds), "--least", str(given.least)]
            name = "ours" if side == "again" else side
            command = [name, shape, method, *options]
            results[side], stayed = watched(given.wait, lambda command=command: run_json("benchmarks.worker", command))
            quiet &= stayed
            if reason := results[side].get("skipped"):
                say(f"{shape} {method}: {side} is left out. {reason}")
                if side in ("ours", "again"):
                    return
        peers = [peer for peer in peers if "skipped" not in results[peer]]
        for peer in peers or [NONE]:
            row = _row(shape, method, peer, turn, given.backend, quiet, results)
            add_row(path, row)
            noise = "" if quiet else " (the machine was busy)"
            ratio = f", {peer} {row['peer_ms']:.1f} ms, ratio {row['ratio']:.3f}" if peer != NONE else ""
            say(f"{shape} {method} round {turn + 1}: ours {row['ours_ms']:.1f} ms{ratio}{noise}")


def _row(
    shape: str, method: str, peer: str, turn: int, backend: str, quiet: bool, results: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    ours, again, other = results["ours"], results["again"], results.get(peer, {})
    ours_ms = math.sqrt(ours["step_ms"] * again["step_ms"])
    return {
        "shape": shape,
        "method": method,
        "peer": peer,
        "round": turn,
        "backend": backend,
        "ours_ms": ours_ms,
        "peer_ms": other.get("step_ms", math.nan),
        "ratio": ours_ms / other["step_ms"] if other else math.nan,
        "control": again["step_ms"] / ours["step_ms"],
        "ours_mb": max(ours["peak_mb"], again["peak_mb"]),
        "peer_mb": other.get("peak_mb", math.nan),
        "ours_import_s": min(ours["import_s"], again["import_s"]),
        "peer_import_s": other.get("import_s", math.nan),
        "ours_steps": ours["steps"] + again["steps"],
        "peer_steps": other.get("steps", 0),
        "quiet": int(quiet),
    }


def summarise(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """One entry a cell (shape, method, peer): medians over the rounds, and intervals of the two ratios."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["shape"], row["method"], row["peer"]), []).append(row)
    cells = []
    for (shape, method, peer), group in groups.items():
        numbers = [name for name in group[0] if name.endswith(("_ms", "_mb", "_s"))]
        cell: dict[str, Any] = {"shape": shape, "method": method, "peer": peer, "rounds": len(group)}
        cell |= {name: median(float(row[name]) for row in group) for name in numbers}
        for name in ("ratio", "control"):
            cell[name] = median_interval([float(row[name]) for row in group])
        cells.append(cell | {"quiet": sum(int(row["quiet"]) for row in group), "backend": group[0]["backend"]})
    return cells


def markdown(cells: list[dict[str, Any]], left_out: int) -> str:
    """The cells as a table; `left_out` rows were timed on a busy machine and are not in it."""
    lines = [
        "| shape | method | peer | ours, ms | peer, ms | ours / peer | control: ours / ours "
        "| ours, MB | peer, MB | import, s: ours | peer | rounds (quiet) |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for c in cells:
        alone = c["peer"] == NONE
        columns = [
            c["shape"],
            c["method"],
            "not written" if alone else c["peer"],
            f"{c['ours_ms']:.1f}",
            "" if alone else f"{c['peer_ms']:.1f}",
            "" if alone else f"**{c['ratio'][0]:.2f}** ({c['ratio'][1]:.2f}-{c['ratio'][2]:.2f})",
            f"{c['control'][0]:.2f} ({c['control'][1]:.2f}-{c['control'][2]:.2f})",
            f"{c['ours_mb']:.0f}",
            "" if alone else f"{c['peer_mb']:.0f}",
            f"{c['ours_import_s']:.2f}",
            "" if alone else f"{c['peer_import_s']:.2f}",
            f"{c['rounds']} ({c['quiet']})",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    about = [f"{s}: {SHAPES[s].about}." for s in dict.fromkeys(c["shape"] for c in cells) if s in SHAPES]
    on_gpu = any(c["backend"] == "cupy" for c in cells)
    memory = (
        "what each side's pool holds on the GPU"
        if on_gpu
        else "the peak of the process's resident set, imports included"
    )
    backends = ", ".join(dict.fromkeys(c["backend"] for c in cells))
    lines += [
        "",
        f"Medians over the rounds; in brackets the 95 % bootstrap interval of the median. {' '.join(about)} "
        f"{threads()} threads on {platform.machine()}, Python {platform.python_version()}; backend of ours: {backends}. "
        f"A step is forward, backward, clipping and AdamW; memory is {memory}. "
        f"{left_out} rows that were timed on a busy machine are left out. The loss of a causal shape is over "
        "every position; heads are trained with every method.",
        "",
    ]
    return "\n".join(lines)


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    """The ratios with their intervals, a panel a shape."""
    from benchmarks.figures import ratio_figure

    ratio_figure([cell for cell in cells if cell["peer"] != NONE], path)


if __name__ == "__main__":
    main()

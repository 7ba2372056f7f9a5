"""Time the whole job of `minipeft compare` beside the same job in torch + transformers + peft, from process start to end.

Imports, loading, training and testing are in both times; ours also measures its costs and draws its figures and report.
The assets are fetched before. Each round runs ours, the peer, and the next round begins with the other one.

Example: python -m benchmarks.compare_job --rounds 3 --train-size 1000 --out runs/bench-compare
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    add_common_options,
    add_row,
    fresh,
    median_interval,
    read_rows,
    run_process,
    say,
    watched,
    worth_quoting,
)

METHODS = "full,topk:1,topk:2,adapter:16,lora:1,lora:8"


def main(arguments: Sequence[str] | None = None) -> Path:
    """The command line; returns the folder of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=METHODS, help=f"without intrinsic; default: {METHODS}")
    parser.add_argument("--task", default="sarcasm", help="default: sarcasm")
    parser.add_argument("--train-size", type=int, default=1000, help="default: 1000")
    parser.add_argument("--test-size", type=int, default=1000, help="default: 1000")
    parser.add_argument("--epochs", type=int, default=3, help="default: 3")
    add_common_options(parser, "runs/bench-compare", 3)
    given = parser.parse_args(arguments)
    run_process([sys.executable, "-m", "minipeft", "fetch", "minilm", given.task])
    path = fresh(given.out / "compare_job.csv")
    for turn in range(given.rounds):
        seconds, scores, quiet = {}, {}, True
        for side in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
            (seconds[side], scores[side]), stayed = watched(given.wait, lambda side=side: timed(SIDES[side], given))
            quiet &= stayed
            say(f"round {turn + 1}: {side} {seconds[side]:.1f} s{'' if stayed else ' (the machine was busy)'}")
        row = {"round": turn, "ours_s": seconds["ours"], "peer_s": seconds["peer"], "quiet": int(quiet)}
        for name, score in scores["ours"].items():
            row |= {f"ours_accuracy_{name}": score, f"peer_accuracy_{name}": scores["peer"][name]}
        add_row(path, row)
    table = markdown(worth_quoting(read_rows(path), given.keep_busy))
    (given.out / "compare_job.md").write_text(table, encoding="utf-8")
    say(f"\n{table}\nWritten to {given.out}: compare_job.csv, compare_job.md")
    return Path(given.out)


def timed(job: Callable[[argparse.Namespace], dict[str, float]], given: argparse.Namespace) -> tuple[float, Any]:
    """The seconds that a job takes, and its accuracies."""
    began = time.perf_counter()
    scores = job(given)
    return time.perf_counter() - began, scores


def _job(given: argparse.Namespace) -> list[str]:
    sizes = ["--train-size", str(given.train_size), "--test-size", str(given.test_size)]
    return ["--methods", given.methods, "--task", given.task, *sizes, "--epochs", str(given.epochs)]


def run_ours(given: argparse.Namespace) -> dict[str, float]:
    """`minipeft compare`; the accuracies, by method."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "minipeft", "compare", *_job(given), "--backend", given.backend]
        run_process([*command, "--out", str(out)])
        with (out / "results.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    return {f"{r['method']}:{r['setting']}".rstrip(":"): float(r["accuracy"]) for r in rows}


def run_peer(given: argparse.Namespace) -> dict[str, float]:
    """The same job in torch; the accuracies, by method."""
    scores: dict[str, float] = json.loads(
        run_process([sys.executable, "-m", "benchmarks.peer_job", *_job(given)]).splitlines()[-1]
    )
    return scores


SIDES = {"ours": run_ours, "peer": run_peer}


def markdown(rows: list[dict[str, str]]) -> str:
    """Times, their ratio in each round, and the accuracies side by side."""
    ours, peer = ([float(row[f"{side}_s"]) for row in rows] for side in SIDES)
    ratio = median_interval([a / b for a, b in zip(ours, peer, strict=True)])
    cells = " | ".join(f"{m:.1f} ({low:.1f}-{high:.1f})" for m, low, high in map(median_interval, (ours, peer)))
    lines = [
        "| | minipeft | torch + transformers + peft | ours / peer |",
        "|---|---:|---:|---:|",
        f"| whole job, s | {cells} | **{ratio[0]:.2f}** ({ratio[1]:.2f}-{ratio[2]:.2f}) |",
    ]
    for name in (column.removeprefix("ours_accuracy_") for column in rows[0] if column.startswith("ours_accuracy_")):
        a, b = (100 * float(rows[0][f"{side}_accuracy_{name}"]) for side in SIDES)
        lines.append(f"| accuracy of {name}, % | {a:.1f} | {b:.1f} | |")
    quiet = sum(int(row["quiet"]) for row in rows)
    lines += [
        "",
        f"Medians of {len(rows)} rounds, {quiet} of them on a quiet machine; in brackets the 95 % bootstrap interval. The "
        "accuracies are of one seed, and the heads start from different random draws: a point or two is noise.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Time a short pre-training of ours beside the same one in torch + transformers, and compare their losses step by step.

Both sides learn the same tokenizer, start from the same weights and go through the same batches, with AdamW, a warm-up of
5 %, a cosine and clipping: their losses differ by rounding alone. The sizes are those that nanoGPT's README proposes for a
CPU (4 layers, 4 heads, d 128, windows of 64, batches of 12), on byte pairs. A round runs ours and the peer, the next one
begins with the other.

Example: python -m benchmarks.pretrain_job --rounds 3 --epochs 1 --out runs/bench-pretrain
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

SIDES = ("ours", "peer")


def main(arguments: Sequence[str] | None = None) -> Path:
    """The command line; returns the folder of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", default="gpt2", help="gpt2 (the default) or llama")
    parser.add_argument("--corpus", default="shakespeare", help="default: shakespeare")
    parser.add_argument("--epochs", type=int, default=1, help="default: 1")
    add_common_options(parser, "runs/bench-pretrain", 3)
    given = parser.parse_args(arguments)
    path = fresh(given.out / "pretrain_job.csv")
    for turn in range(given.rounds):
        found, quiet = {}, True
        for side in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
            job = [side, json.dumps(settings(given))]
            found[side], stayed = watched(given.wait, lambda job=job: run_json("benchmarks.pretrain_side", job))
            quiet &= stayed
            say(
                f"round {turn + 1}: {side} {found[side]['seconds']:.1f} s, held-out loss {found[side]['held_out_loss']:.4f}"
            )
        gap = max(abs(a - b) for a, b in zip(found["ours"]["losses"], found["peer"]["losses"], strict=True))
        row: dict[str, Any] = {
            "round": turn,
            "quiet": int(quiet),
            "steps": len(found["ours"]["losses"]),
            "largest_gap": gap,
        }
        for side, one in found.items():
            row |= {f"{side}_{name}": one[name] for name in ("seconds", "step_ms", "held_out_loss")}
        add_row(path, row)
    table = markdown(worth_quoting(read_rows(path), given.keep_busy))
    (given.out / "pretrain_job.md").write_text(table, encoding="utf-8")
    say(f"\n{table}\nWritten to {given.out}: pretrain_job.csv, pretrain_job.md")
    return Path(given.out)


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """The fields of `PretrainSettings` that both sides share."""
    size = {"vocab_size": 1024, "d_model": 128, "layers": 4, "heads": 4, "context": 64, "batch_size": 12, "lr": 1e-3}
    return {"corpus": given.corpus, "style": given.style, "epochs": given.epochs, "backend": given.backend, **size}


def markdown(rows: list[dict[str, str]]) -> str:
    """Times, their ratio, and the losses."""
    lines = ["| | minipeft | torch + transformers | ours / peer |", "|---|---:|---:|---:|"]
    for name, unit in (("seconds", "training, s"), ("step_ms", "step, ms")):
        ours, peer = ([float(row[f"{side}_{name}"]) for row in rows] for side in SIDES)
        ratio = median_interval([a / b for a, b in zip(ours, peer, strict=True)])
        cells = " | ".join(f"{m:.1f} ({low:.1f}-{high:.1f})" for m, low, high in map(median_interval, (ours, peer)))
        lines.append(f"| {unit} | {cells} | **{ratio[0]:.2f}** ({ratio[1]:.2f}-{ratio[2]:.2f}) |")
    losses = " | ".join(f"{float(rows[0][f'{side}_held_out_loss']):.4f}" for side in SIDES)
    lines += [
        f"| held-out loss, nats a token | {losses} | |",
        "",
        f"Medians of {len(rows)} rounds of {rows[0]['steps']} steps; in brackets the 95 % bootstrap interval. The losses "
        f"of a step differ by {float(rows[0]['largest_gap']):.1e} at most.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

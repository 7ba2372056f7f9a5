"""Studies of small models pre-train them first: Llamas of a known text, in OUT/models, as a job of the study."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from minipeft.errors import UserError
from minipeft.experiments.cell import OnStep
from minipeft.experiments.pretrain import PretrainSettings, pretrain
from minipeft.experiments.studies.bases import MADE, SHAPES
from minipeft.experiments.studies.frame import Job, Lab, Row


def pretrained(lab: Lab, shape: str, keep: int = 0) -> Generator[Job, Row, Row]:
    """One job: pre-train a Llama of that shape on the plan's text; returns its row.

    The plan's choices have `corpus`, `vocab_size`, `context` (tokens) and `pretrain_epochs`. `keep` earlier steps are kept,
    as by `pretrain`. The row has the model's name, its `parameters`, all `steps`, those `kept`, and the held-out loss.
    """
    choices, folder = lab.plan.choices, lab.out / "models" / shape
    d_model, layers, heads = SHAPES[shape]
    settings = PretrainSettings(
        corpus=choices["corpus"],
        vocab_size=choices["vocab_size"],
        d_model=d_model,
        layers=layers,
        heads=heads,
        context=choices["context"],
        epochs=choices["pretrain_epochs"],
        backend=lab.settings.backend,
        workers=lab.settings.workers,
    )

    def run(on_step: OnStep | None) -> Row:
        tell: Any = None if on_step is None else lambda now: on_step(now.step, now.steps, now.loss)
        found = pretrain(settings, folder, tell, keep=keep)
        kept = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("kept/step-*"))
        names = ("parameters", "steps", "held_out_loss", "bits_per_byte")
        return {"model": MADE + shape, "kept": kept, **{name: found[name] for name in names}}

    row = yield Job(f"pre-training {shape}", run)
    if not (folder / "model" / "config.json").exists():
        raise UserError(
            f"The study has pre-trained {shape}, and {folder} is gone: put it back, or choose another --out."
        )
    return row

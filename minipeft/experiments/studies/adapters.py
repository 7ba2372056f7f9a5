"""Adapters: how wide they must be, and which of them matter (arXiv 1902.00751, section 3.6).

An ablation trains adapters in all blocks, then switches off those of the blocks i..j, without training again.
"""

from __future__ import annotations

from minipeft.errors import UserError
from minipeft.experiments.cell import Cell, Settings
from minipeft.experiments.methods import MethodSpec
from minipeft.experiments.problems import tokenizer_of
from minipeft.experiments.studies.frame import Job, Jobs, Lab, Plan, Row, Study, tuned
from minipeft.nn import Module
from minipeft.peft.adapter import AdapterBlock
from minipeft.training import evaluate


def jobs(lab: Lab) -> Jobs:
    """The ablations, then the widths; each width with the best of a few learning rates."""
    choices, specs = lab.plan.choices, {}
    for width in dict.fromkeys([choices["ablated"], *choices["widths"]]):
        specs[width] = yield from tuned(lab, f"adapter:{width}", choices["rates"])
    for seed in lab.seeds:
        yield ablation(lab, specs[choices["ablated"]], seed)
    for seed in lab.seeds:
        for width in choices["widths"]:
            yield lab.job(specs[width], seed)


def ablation(lab: Lab, spec: MethodSpec, seed: int) -> Job:
    """Accuracies with the adapters of the blocks first..last off: `spans` has [first, last, accuracy] for each pair."""

    def switched_off(cell: Cell) -> Row:
        pad_id, spans = tokenizer_of(cell.model).pad_id, []
        for first in range(lab.layers):
            for last in range(first, lab.layers):
                switch_off(cell.model.model, range(first, last + 1))
                score = evaluate(cell.model, lab.test, pad_id, workers=lab.settings.workers)
                spans.append([first, last, round(score.accuracy, 6)])
        return {"spans": spans}

    tags = {"ablated": int(spec.setting), "spans": None}
    return lab.job(spec, seed, f"ablation of {spec.name}", tags, switched_off)


def switch_off(model: Module, blocks: range) -> None:
    """Let the adapters of these blocks do nothing, and all others work."""
    for number, block in enumerate(vars(model)["blocks"]):
        if not isinstance(block, AdapterBlock):
            raise UserError(f"Block {number} has no adapter to switch off.")
        block.enabled = number not in blocks


STUDY = Study(
    "adapters",
    "How wide must an adapter be, and which adapters matter?",
    full=Plan(Settings(), 3, {"ablated": 64, "widths": [1, 2, 4, 8, 16, 32, 64, 128], "rates": [1e-3, 3e-3, 1e-2]}),
    quick=Plan(
        Settings("glassllm", train_size=200, test_size=200, epochs=2),
        1,
        {"ablated": 16, "widths": [1, 4, 16, 64], "rates": [3e-3, 1e-2]},
    ),
    jobs=jobs,
)

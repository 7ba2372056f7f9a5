"""Learning rates: which is best for each method, and is LoRA's best about ten times full fine-tuning's?

Judged on validation rows, as every choice of a learning rate should be.
"""

from __future__ import annotations

from minipeft.experiments.cell import Settings
from minipeft.experiments.methods import parse_method
from minipeft.experiments.studies.frame import Jobs, Lab, Plan, Study


def jobs(lab: Lab) -> Jobs:
    """Every method at every rate."""
    data = (lab.train, lab.validation)
    for seed in lab.seeds:
        for lr in lab.plan.choices["rates"]:
            for method in lab.plan.choices["methods"]:
                yield lab.job(parse_method(method, lr), seed, f"{method} at {lr:g}", data=data)


RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
STUDY = Study(
    "rates",
    "Is LoRA's best learning rate about ten times that of full fine-tuning?",
    full=Plan(Settings(), 3, {"rates": RATES, "methods": ["full", "lora:8", "adapter:16", "topk:2"]}),
    quick=Plan(
        Settings("glassllm", train_size=200, test_size=200, epochs=2),
        1,
        {"rates": [1e-4, 1e-3, 1e-2, 3e-2], "methods": ["full", "lora:8", "adapter:16", "topk:2"]},
    ),
    jobs=jobs,
    judged="validation",
)

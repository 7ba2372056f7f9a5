"""Data size: which method is best with 100 rows, and which with 10,000 (arXiv 2106.09685, table 16)?

Every method has the same steps: `steps` of them, or one pass over the rows where that is more.
"""

from __future__ import annotations

import math

from minipeft.experiments.cell import Settings
from minipeft.experiments.studies.frame import Jobs, Lab, Plan, Study


def passes(rows: int, batch_size: int, steps: int) -> int:
    """The epochs that make at least so many steps."""
    return math.ceil(steps / math.ceil(rows / batch_size))


def jobs(lab: Lab) -> Jobs:
    """Every method at every size, the small ones first; a smaller set is the beginning of a larger one."""
    choices, batch = lab.plan.choices, lab.settings.batch_size
    for size in choices["sizes"]:
        data = (lab.rows("train", size), lab.test)
        tags = {"rows": size}
        epochs = passes(size, batch, choices["steps"])
        for seed in lab.seeds:
            for method in choices["methods"]:
                name = f"{method} on {size} rows"
                yield lab.job(method, seed, name, tags, data=data, train_size=size, epochs=epochs)


METHODS = ["full", "lora:8", "adapter:16", "topk:2"]
STUDY = Study(
    "data-size",
    "Does LoRA keep up with full fine-tuning on few rows, and on many?",
    full=Plan(Settings(), 3, {"sizes": [100, 300, 1000, 3000, 10000], "steps": 90, "methods": METHODS}),
    quick=Plan(Settings("glassllm", test_size=200), 1, {"sizes": [30, 100, 300], "steps": 10, "methods": METHODS}),
    jobs=jobs,
)

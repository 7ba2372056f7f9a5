"""Data size: which method is best with 100 rows, and which with 10,000 (arXiv 2106.09685, table 16)?

Every method has the same steps: `steps` of them, or one pass over the rows where that is more. Its learning rate is the
best of a few around its family's own, on as many rows as the plan's settings say.
"""

from __future__ import annotations

import math

from minipeft.experiments.cell import Settings
from minipeft.experiments.methods import parse_method
from minipeft.experiments.studies.frame import Jobs, Lab, Plan, Study, tuned


def passes(rows: int, batch_size: int, steps: int) -> int:
    """The epochs that make at least so many steps."""
    return math.ceil(steps / math.ceil(rows / batch_size))


def jobs(lab: Lab) -> Jobs:
    """Every method at every size, the small ones first; a smaller set is the beginning of a larger one."""
    choices, batch = lab.plan.choices, lab.settings.batch_size
    rows = {size: lab.rows("train", size) for size in choices["sizes"]}
    specs = {}
    for method in choices["methods"]:
        own = parse_method(method).lr
        specs[method] = yield from tuned(lab, method, [float(f"{own * factor:.2g}") for factor in choices["factors"]])
    for size in choices["sizes"]:
        epochs = passes(size, batch, choices["steps"])
        tags = {"rows": size, "epochs": epochs, "steps": epochs * math.ceil(size / batch)}
        data = (rows[size], lab.test)
        for seed in lab.seeds:
            for method, spec in specs.items():
                name = f"{method} on {size} rows"
                yield lab.job(spec, seed, name, tags, data=data, train_size=size, epochs=epochs)


METHODS = ["full", "lora:8", "adapter:16", "topk:2"]
STUDY = Study(
    "data-size",
    "Does LoRA keep up with full fine-tuning on few rows, and on many?",
    full=Plan(
        Settings(), 3, {"sizes": [100, 300, 1000, 10000], "steps": 90, "methods": METHODS, "factors": [0.3, 1, 3, 10]}
    ),
    quick=Plan(
        Settings("glassllm", train_size=100, test_size=200),
        1,
        {"sizes": [30, 100, 300], "steps": 10, "methods": METHODS, "factors": [1, 3]},
    ),
    jobs=jobs,
)

"""Intrinsic dimension as pre-training goes on, and as models grow (arXiv 2012.13255, sections 5.2 and 5.3).

Small Llamas of several sizes are pre-trained on the spot; of one of them, states along the way are kept. Each of these, and
each size with random weights, is held to 90 % of its own full fine-tuning and of the best model's, see `dimension.py`.
"""

from __future__ import annotations

from minipeft.experiments.cell import Settings
from minipeft.experiments.studies.bases import MADE, RANDOM, shape_of
from minipeft.experiments.studies.dimension import BARS, dimensions
from minipeft.experiments.studies.frame import Jobs, Lab, Plan, Study
from minipeft.experiments.studies.pretraining import pretrained


def jobs(lab: Lab) -> Jobs:
    """Pre-training; then the plan's model from its first state to its last, and the other sizes, before and after."""
    line, models = shape_of(lab.plan.settings.model), []
    for shape in lab.plan.choices["sizes"]:
        made = yield from pretrained(lab, shape, lab.plan.choices["keep"] if shape == line else 0)
        name = MADE + shape
        models += [RANDOM + name, *(f"{name}@{step}" for step in made["kept"]), name]
    yield from dimensions(lab, models)


DID = [["fastfood", False]]
STUDY = Study(
    "growth",
    "Does the intrinsic dimension fall as pre-training goes on, and as models grow?",
    full=Plan(
        Settings("made:tiny", "tweets", train_size=700, test_size=350),
        3,
        {
            "sizes": ["mini", "tiny", "small"],
            "corpus": "tweets",
            "vocab_size": 2048,
            "context": 64,
            "pretrain_epochs": 1,
            "keep": 3,
            "variants": DID,
            "random_variants": DID,
            "grid": [10, 30, 100, 300, 1000, 3000, 10000],  # 7: three trainings find one
            "share": 0.9,
            "bars": BARS,
            "rates": [3e-3, 1e-2, 3e-2],
            "random_rates": [3e-3, 1e-2, 3e-2],
            "full_rates": [5e-4, 2e-3],
            "head_rates": [1e-2, 3e-2],
        },
    ),
    quick=Plan(
        Settings("made:mini", "tweets", train_size=200, test_size=200, epochs=2),
        1,
        {
            "sizes": ["micro", "mini"],
            "corpus": "tweets",
            "vocab_size": 1024,
            "context": 64,
            "pretrain_epochs": 1,
            "keep": 2,
            "variants": DID,
            "random_variants": DID,
            "grid": [10, 100, 1000],
            "share": 0.9,
            "bars": BARS,
            "rates": [1e-2],
            "random_rates": [1e-2],
            "full_rates": [1e-3],
            "head_rates": [1e-2],
        },
    ),
    jobs=jobs,
    judged="validation",
)

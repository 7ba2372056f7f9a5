"""Intrinsic dimension: the smallest d on a grid that reaches 90 % of full fine-tuning's accuracy (arXiv 2012.13255).

How it is searched for, and at which bars, is in `dimension.py`. Any models can be compared: those of the disk, their shapes
with random weights, and the states of a model along its pre-training (`minipeft pretrain --keep`).
"""

from __future__ import annotations

from minipeft.experiments.cell import Settings
from minipeft.experiments.studies.dimension import BARS, dimensions
from minipeft.experiments.studies.frame import Jobs, Lab, Plan, Study


def jobs(lab: Lab) -> Jobs:
    """All models of the plan."""
    yield from dimensions(lab, lab.plan.choices["models"])


VARIANTS = [["fastfood", False], ["fastfood", True], ["sparse", False], ["sparse", True]]
GRID = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000]
STUDY = Study(
    "d90",
    "How few dimensions reach 90 % of full fine-tuning, and does pre-training make them fewer?",
    full=Plan(
        Settings(test_size=500),
        3,
        {
            "models": ["minilm", "random:minilm"],
            "variants": VARIANTS,
            "random_variants": VARIANTS[:1],  # a search of MiniLM's size takes some 5 minutes
            "grid": GRID,
            "share": 0.9,
            "bars": BARS,
            "rates": [3e-3, 1e-2],
            "random_rates": [3e-3, 1e-3],
            "full_rates": [6e-5, 2e-4, 6e-4],
            "head_rates": [5e-3, 2e-2],
        },
    ),
    quick=Plan(
        Settings("glassllm", train_size=200, test_size=200, epochs=3),
        1,
        {
            "models": ["glassllm", "random:glassllm"],
            "variants": VARIANTS[:2],
            "random_variants": VARIANTS[:1],
            "grid": GRID[:-2],
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

"""Top-K: what each further block that is trained buys, and what it costs (accuracy, time, memory for K = 0..L)."""

from __future__ import annotations

from minipeft.experiments.cell import Settings
from minipeft.experiments.studies.frame import Jobs, Lab, Plan, Study, tuned


def jobs(lab: Lab) -> Jobs:
    """K from 0 (the head alone) to the number of blocks, and full fine-tuning, which trains the embeddings too.

    What is trained decides which learning rate is good: each gets its own from the same few.
    """
    specs = []
    for method in (*(f"topk:{k}" for k in range(lab.layers + 1)), "full"):
        specs.append((yield from tuned(lab, method, lab.plan.choices["rates"])))
    for seed in lab.seeds:
        for spec in specs:
            yield lab.job(spec, seed)


STUDY = Study(
    "topk",
    "How much of full fine-tuning do the top K blocks buy, and at what cost?",
    full=Plan(Settings(), 3, {"rates": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]}),
    quick=Plan(Settings("glassllm", train_size=200, test_size=200, epochs=2), 1, {"rates": [1e-3, 1e-2]}),
    jobs=jobs,
)

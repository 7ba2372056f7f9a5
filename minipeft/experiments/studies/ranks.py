"""LoRA: how many ranks, on which matrices (arXiv 2106.09685, tables 5 and 6)?

A budget is that of rank r on one d × d matrix of each block: two matrices share it at r/2, four at r/4. For all linear
layers the rank is the one that comes nearest. Each rank on each choice of matrices has a learning rate of its own: with
α = 2r and Adam, a step of ΔW grows with the rank.
"""

from __future__ import annotations

from minipeft.experiments.cell import Settings
from minipeft.experiments.studies.frame import Jobs, Lab, Plan, Study, tuned

TARGETS = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "qk": "q_proj+k_proj",
    "qv": "q_proj+v_proj",
    "qkvo": "q_proj+k_proj+v_proj+o_proj",
    "all": "all-linear",
}
SHARES = {
    "q": 1,
    "k": 1,
    "v": 1,
    "o": 1,
    "qk": 2,
    "qv": 2,
    "qkvo": 4,
    "all": 8,
}  # all: MiniLM's 6912 r against 768 r, ~ 8


def at_budget(budget: int) -> list[tuple[str, int]]:
    """Each choice of matrices, and the rank that spends the budget on it."""
    return [(name, max(1, budget // share)) for name, share in SHARES.items()]


def jobs(lab: Lab) -> Jobs:
    """Table 5 (the budget on each choice of matrices), then table 6 (ranks on some of them); cells in common run once."""
    choices, specs = lab.plan.choices, {}
    for name, r in at_budget(choices["budget"]) + [(name, r) for name in choices["targets"] for r in choices["ranks"]]:
        if (name, r) not in specs:
            specs[name, r] = yield from tuned(lab, f"lora:{r}:{TARGETS[name]}", choices["rates"])
    for seed in lab.seeds:
        for (name, r), spec in specs.items():
            yield lab.job(spec, seed, f"lora:{r} on {name}", {"targets": name, "rank": r})


STUDY = Study(
    "ranks",
    "Is rank 1 enough, and which matrices should LoRA be put on?",
    full=Plan(
        Settings(),
        3,
        {
            "budget": 8,
            "targets": ["q", "qv", "qkvo"],
            "ranks": [1, 2, 4, 8, 64],
            "rates": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
        },
    ),
    quick=Plan(
        Settings("glassllm", train_size=200, test_size=200, epochs=2),
        1,
        {"budget": 8, "targets": ["qv"], "ranks": [1, 2, 4, 8, 64], "rates": [3e-3]},
    ),
    jobs=jobs,
)

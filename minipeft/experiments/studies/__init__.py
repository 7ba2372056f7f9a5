"""The studies of the papers' claims, one file each."""

from minipeft.experiments.studies import adapters, d90, data_size, forgetting, growth, ranks, rates, subspaces, topk
from minipeft.experiments.studies.frame import Lab, Plan, Study, StudyProgress, run_study

STUDIES: dict[str, Study] = {
    s.STUDY.name: s.STUDY for s in (d90, growth, ranks, data_size, rates, subspaces, adapters, topk, forgetting)
}

__all__ = ["STUDIES", "Lab", "Plan", "Study", "StudyProgress", "run_study"]

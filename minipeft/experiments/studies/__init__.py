"""The studies of the papers' claims, one file each."""

from minipeft.experiments.studies import adapters, data_size, ranks, rates, topk
from minipeft.experiments.studies.frame import Lab, Plan, Study, StudyProgress, run_study

STUDIES: dict[str, Study] = {s.STUDY.name: s.STUDY for s in (topk, adapters, rates, ranks, data_size)}

__all__ = ["STUDIES", "Lab", "Plan", "Study", "StudyProgress", "run_study"]

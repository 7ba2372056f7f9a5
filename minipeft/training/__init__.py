"""Layer 4: the training loop, its checkpoints, and evaluation."""

from minipeft.training.evaluate import Score, evaluate
from minipeft.training.trainer import Trainer, TrainingConfig, TrainingResult

__all__ = ["Score", "Trainer", "TrainingConfig", "TrainingResult", "evaluate"]

"""Layer 4: the training loop, its checkpoints, and evaluation."""

from minipeft.training.evaluate import Score, TokenScore, evaluate, evaluate_tokens
from minipeft.training.trainer import Trainer, TrainingConfig, TrainingResult

__all__ = ["Score", "TokenScore", "Trainer", "TrainingConfig", "TrainingResult", "evaluate", "evaluate_tokens"]

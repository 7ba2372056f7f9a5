"""Layer 4: what training costs, measured in memory and counted in multiply-adds."""

from minipeft.cost.flops import count_flops
from minipeft.cost.gradients import gradient_norms
from minipeft.cost.memory import StepCost, activation_bytes, measure_step

__all__ = ["StepCost", "activation_bytes", "count_flops", "gradient_norms", "measure_step"]

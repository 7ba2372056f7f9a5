"""Layer 1: reverse-mode automatic differentiation on a tape."""

from minipeft.autograd import functional
from minipeft.autograd.gradcheck import gradcheck
from minipeft.autograd.ops import concatenate, maximum, stack, where
from minipeft.autograd.tensor import Tensor, no_grad

__all__ = ["Tensor", "concatenate", "functional", "gradcheck", "maximum", "no_grad", "stack", "where"]

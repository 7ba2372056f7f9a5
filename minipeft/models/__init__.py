"""Layer 3: model families that read and write Hugging Face folders."""

from minipeft.models.bert import Bert
from minipeft.models.hub import load_model

__all__ = ["Bert", "load_model"]

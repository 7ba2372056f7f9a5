"""Layer 3: model families that read and write Hugging Face folders."""

from minipeft.models.bert import Bert
from minipeft.models.gpt2 import GPT2
from minipeft.models.hub import load_model, load_tokenizer
from minipeft.models.llama import Llama
from minipeft.models.pretrained import Pretrained
from minipeft.models.sampling import Sampling
from minipeft.models.writing import Continuation, generate

__all__ = [
    "GPT2",
    "Bert",
    "Continuation",
    "Llama",
    "Pretrained",
    "Sampling",
    "generate",
    "load_model",
    "load_tokenizer",
]

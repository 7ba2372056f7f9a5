"""Layer 2: modules, layers, and the transformer."""

from minipeft.nn.layers import Dropout, Embedding, LayerNorm, Linear
from minipeft.nn.module import Module, Parameter
from minipeft.nn.transformer import Block, ClassificationHead, Embeddings, Transformer, TransformerConfig

__all__ = [
    "Block",
    "ClassificationHead",
    "Dropout",
    "Embedding",
    "Embeddings",
    "LayerNorm",
    "Linear",
    "Module",
    "Parameter",
    "Transformer",
    "TransformerConfig",
]

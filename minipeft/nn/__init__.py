"""Layer 2: modules, layers, and the transformer."""

from minipeft.nn.cache import KVCache
from minipeft.nn.heads import ClassificationHead, LanguageHead, LastTokenHead
from minipeft.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm
from minipeft.nn.module import Module, Parameter, evaluating
from minipeft.nn.transformer import Block, Embeddings, Transformer, TransformerConfig

__all__ = [
    "Block",
    "ClassificationHead",
    "Dropout",
    "Embedding",
    "Embeddings",
    "KVCache",
    "LanguageHead",
    "LastTokenHead",
    "LayerNorm",
    "Linear",
    "Module",
    "Parameter",
    "RMSNorm",
    "Transformer",
    "TransformerConfig",
    "evaluating",
]

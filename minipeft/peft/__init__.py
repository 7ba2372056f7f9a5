"""Layer 3: parameter-efficient fine-tuning, one file a method."""

from minipeft.peft.adapter import AdapterConfig
from minipeft.peft.full import FullConfig
from minipeft.peft.head import HeadConfig
from minipeft.peft.intrinsic import IntrinsicConfig
from minipeft.peft.lora import LoraConfig
from minipeft.peft.method import Method, PeftConfig
from minipeft.peft.model import PeftModel, get_peft_model
from minipeft.peft.topk import TopKConfig

__all__ = [
    "AdapterConfig",
    "FullConfig",
    "HeadConfig",
    "IntrinsicConfig",
    "LoraConfig",
    "Method",
    "PeftConfig",
    "PeftModel",
    "TopKConfig",
    "get_peft_model",
]

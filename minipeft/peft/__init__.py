"""Layer 3: parameter-efficient fine-tuning, one file a method."""

from minipeft.peft.adapter import AdapterConfig
from minipeft.peft.bitfit import BitFitConfig
from minipeft.peft.dora import DoraConfig
from minipeft.peft.full import FullConfig
from minipeft.peft.head import HeadConfig
from minipeft.peft.ia3 import IA3Config
from minipeft.peft.intrinsic import IntrinsicConfig
from minipeft.peft.lora import LoraConfig
from minipeft.peft.loraplus import LoraPlusConfig
from minipeft.peft.method import Method, PeftConfig
from minipeft.peft.model import PeftModel, get_peft_model
from minipeft.peft.pissa import PissaConfig
from minipeft.peft.prefix import PrefixTuningConfig
from minipeft.peft.prompt import PromptTuningConfig
from minipeft.peft.topk import TopKConfig
from minipeft.peft.vera import VeraConfig

__all__ = [
    "AdapterConfig",
    "BitFitConfig",
    "DoraConfig",
    "FullConfig",
    "HeadConfig",
    "IA3Config",
    "IntrinsicConfig",
    "LoraConfig",
    "LoraPlusConfig",
    "Method",
    "PeftConfig",
    "PeftModel",
    "PissaConfig",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "TopKConfig",
    "VeraConfig",
    "get_peft_model",
]

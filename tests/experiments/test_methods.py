"""Methods as the command line writes them."""

import pytest

from minipeft.errors import UserError
from minipeft.experiments.methods import FAMILIES, parse_method, parse_methods
from minipeft.peft import (
    AdapterConfig,
    BitFitConfig,
    DoraConfig,
    FullConfig,
    HeadConfig,
    IA3Config,
    IntrinsicConfig,
    LoraConfig,
    LoraPlusConfig,
    PissaConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TopKConfig,
    VeraConfig,
)


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("full", FullConfig()),
        ("head", HeadConfig()),
        ("topk:2", TopKConfig(2)),
        ("adapter:16", AdapterConfig(16)),
        ("adapter:16:parallel", AdapterConfig(16, placement="parallel")),
        ("lora:8", LoraConfig(8, lora_alpha=16)),
        ("lora:4:q_proj+k_proj", LoraConfig(4, lora_alpha=8, target_modules=("q_proj", "k_proj"))),
        ("lora:4:all-linear", LoraConfig(4, lora_alpha=8, target_modules="all-linear")),
        ("bitfit", BitFitConfig()),
        ("ia3", IA3Config()),
        ("prompt:20", PromptTuningConfig(20)),
        ("prefix:5", PrefixTuningConfig(5)),
        ("dora:4", DoraConfig(4, lora_alpha=8)),
        ("pissa:4:all-linear", PissaConfig(4, lora_alpha=8, target_modules="all-linear")),
        ("loraplus:8:q_proj", LoraPlusConfig(8, lora_alpha=16, target_modules=("q_proj",))),
        ("vera:256", VeraConfig(256)),
        ("intrinsic:500", IntrinsicConfig(500)),
        ("intrinsic:500:sparse:said", IntrinsicConfig(500, projection="sparse", structure_aware=True)),
    ],
)
def test_a_method_becomes_its_config(text, config):
    spec = parse_method(text)
    assert spec.config == config
    assert spec.name == text
    assert spec.lr == FAMILIES[spec.family].lr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loar:8", "Did you mean 'lora'"),
        ("lora", "r, the rank"),
        ("lora:x", "'x'"),
        ("vera:0", "rank of VeRA"),
        ("prompt:0", "1 row or more"),
        ("lora:0", "rank of LoRA is 1 or more"),
        ("lora:-1", "rank of LoRA is 1 or more"),
        ("adapter:16:middle", "does not know the word 'middle'"),
        ("adapter:0", "width of 1 or more"),
        ("intrinsic:0", "1 dimension or more"),
        ("intrinsic:10:wavy", "does not know the word 'wavy'"),
        ("full:3", "does not know the word '3'"),
        ("", "No methods given"),
        ("full,full", "named twice"),
    ],
)
def test_a_wrong_method_is_an_error_that_says_what_is_wrong(text, says):
    with pytest.raises(UserError, match=says):
        parse_methods(text)


def test_a_learning_rate_can_be_given_by_family():
    specs = parse_methods("lora:1,lora:8,full", {"lora": 0.5})
    assert [spec.lr for spec in specs] == [0.5, 0.5, FAMILIES["full"].lr]

"""Counting a config and counting the live model agree, for every method and family; and nothing is allocated for it."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from families import CONFIGS, LABELS, METHODS, VOCAB, build, fits, pairs

from minipeft.autograd import functional
from minipeft.backend import active
from minipeft.backend.shape_backend import shapes_only
from minipeft.backend.storage import read_tensors
from minipeft.cost import activation_bytes, count_flops
from minipeft.cost.count import count, count_each
from minipeft.cost.presets import PRESETS, computes, read_architecture
from minipeft.cost.presets import build as build_preset
from minipeft.errors import UserError
from minipeft.optim import AdamW
from minipeft.peft import (
    BitFitConfig,
    DoraConfig,
    FullConfig,
    IntrinsicConfig,
    LoraConfig,
    PeftConfig,
    PromptTuningConfig,
    get_peft_model,
)
from minipeft.peft.io import saved_bytes
from minipeft.peft.method import OwnWeights

BATCH, LENGTH = 3, 7
IDS = np.tile(np.arange(LENGTH) % VOCAB, (BATCH, 1))


def possible(family: str, task: str, method: str) -> bool:
    return fits(family, method) and (task == "classification" or method != "head")  # a language model has no head


CASES = [(f, t, m) for f, t in pairs() for m in METHODS if possible(f, t, m)]


@pytest.mark.parametrize(("family", "task", "method"), CASES)
def test_counting_the_config_and_counting_the_live_model_agree(family: str, task: str, method: str, tmp_path) -> None:
    counted = count(CONFIGS[family], METHODS[method], BATCH, LENGTH, task, LABELS)
    m = get_peft_model(build(family, task), METHODS[method])
    assert counted.parameters == m.count_parameters()
    assert counted.trained == {name: p.shape for name, p in m.trainable_parameters().items()}
    assert counted.base == sum(p.numel() for p in build(family, task).parameters())
    m.save_pretrained(tmp_path)
    on_disk, _ = read_tensors(tmp_path / "adapter_model.safetensors")
    assert counted.saved == saved_bytes(m) == sum(array.nbytes for array in on_disk.values())
    with count_flops() as forward:
        logits = m(IDS)
        loss = functional.cross_entropy(logits, IDS if logits.ndim == 3 else IDS[:, 0])
    activations = activation_bytes(loss, m)
    with count_flops() as backward:
        loss.backward()
    assert counted.step is not None
    assert (counted.step.forward_flops, counted.step.backward_flops) == (forward.flops, backward.flops)
    assert counted.step.activations == activations
    optimizer = AdamW(m.parameters())
    assert counted.gradient == sum(p.grad.nbytes for p in m.parameters() if p.grad is not None)
    assert counted.optimizer == optimizer.state_bytes() == 2 * counted.gradient


@pytest.mark.parametrize(
    ("config", "trained", "saved"),
    [
        (LoraConfig(r=4), 3072, 6144),  # q and v: a pair of rank 8 on c_attn, 16 × 48
        (DoraConfig(r=4), 3456, 6720),  # and m: 2 · 16, and all 48 of c_attn
        (LoraConfig(r=4, target_modules="all-linear"), 13824, 18432),
        (LoraConfig(r=4, target_modules=("o_proj", "up_proj")), 5376, 5376),  # alone in their matrices: as trained
    ],
    ids=["q, v", "dora", "all", "o, up"],
)
def test_the_file_of_a_gpt_2_holds_a_pair_for_c_attn(config: LoraConfig, trained: int, saved: int) -> None:
    """LoRA of rank r on q and on v is saved as (A_q | A_v) and a B with zeros: more than what is trained."""
    counted = count(CONFIGS["gpt2"], config, task="causal-lm")
    assert (4 * counted.parameters.method, counted.saved) == (trained, saved)


def test_a_method_that_does_not_fit_costs_its_row_alone() -> None:
    methods = {"lora": LoraConfig(r=2), "too wide": LoraConfig(r=99), "bitfit": BitFitConfig()}
    counts = count_each(CONFIGS["llama"], methods, 1, 5)
    assert counts["lora"] == count(CONFIGS["llama"], LoraConfig(r=2), 1, 5)
    assert isinstance(counts["too wide"], UserError)
    assert "has none" in str(counts["bitfit"])
    with pytest.raises(UserError, match="r=99"):
        count_each(CONFIGS["llama"], {"too wide": LoraConfig(r=99)})
    with pytest.raises(UserError, match="reads at most 12"):
        count_each(CONFIGS["llama"], methods, 1, 13)


@pytest.mark.slow
def test_gpt_3_and_a_step_of_it_take_no_memory() -> None:
    tracemalloc.start()
    try:
        for config in (FullConfig(), LoraConfig(r=4), IntrinsicConfig(1000)):
            counted = count(PRESETS["gpt3-175b"], config, batch=1, length=64)
            assert counted.base == 174_604_259_328
            assert counted.step is not None
            assert counted.step.activations > 1e9
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6


def test_nothing_of_it_is_left_behind() -> None:
    before = active()
    drawn = build("gpt2").state_dict()
    count(CONFIGS["gpt2"], LoraConfig(r=2), BATCH, LENGTH)
    assert active() is before
    again = build("gpt2").state_dict()
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)


def test_full_fine_tuning_costs_three_forward_passes_and_lora_about_two() -> None:
    """PAPERS.md: 2N² + 6NR against 3N² multiply-adds for an N × N layer."""
    full, lora = (count(PRESETS["gpt3-175b"], c, 1, 16).step for c in (FullConfig(), LoraConfig(r=1)))
    assert full is not None
    assert lora is not None
    assert full.backward_flops == 2 * full.forward_flops
    assert (lora.forward_flops + lora.backward_flops) / full.forward_flops == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_parameters_of_the_published_model(name: str, torch) -> None:
    """Counted by transformers on torch's meta device, from the same fields."""
    transformers = pytest.importorskip("transformers")
    config = dict(PRESETS[name])
    kind = str(config.pop("model_type"))
    if kind == "deberta-v2":  # the fields that only its attention and its convolution read
        config |= {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_biased_input": False}
        config |= {"conv_act": "gelu", "max_relative_positions": -1, "max_position_embeddings": 512}
    kinds = {"deberta-v2": "DebertaV2Model", "bert": "BertModel", "roberta": "RobertaModel"}
    kinds |= {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
    model_type = getattr(transformers, kinds[kind])
    with torch.device("meta"):
        theirs = model_type(model_type.config_class(**config))
    expected = sum(p.numel() for p in theirs.parameters())
    with shapes_only():
        model = build_preset(PRESETS[name], "features" if kind not in ("gpt2", "llama") else "causal-lm")
        ours = sum(p.numel() for p in model.parameters())
    d = config.get("hidden_size", 0)
    pooler = (
        d * d + d if kind in ("bert", "roberta") else 0
    )  # transformers' base model has it, ours comes with the head
    assert ours + pooler == expected


def test_a_config_json_and_its_folder_are_architectures(tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIGS["llama"]))
    for place in (path, tmp_path):
        assert read_architecture(str(place)) == CONFIGS["llama"]


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "JSON"), ('{"model_type": "mamba"}', "mamba"), ("[]", "model_type"), ("{}", "model_type")],
)
def test_another_config_is_refused(tmp_path, content: str, says: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=says):
        read_architecture(str(tmp_path))
    with pytest.raises(UserError, match="Did you mean 'gpt3-175b'"):
        read_architecture("gpt3-175")


def test_a_deberta_has_parameters_but_no_step() -> None:
    assert not computes(PRESETS["deberta-xxl"])
    assert count(PRESETS["deberta-xxl"], LoraConfig(r=8)).parameters.method == 2 * 96 * 1536 * 8
    assert "not built here" in count(PRESETS["deberta-xxl"], LoraConfig(r=8)).note
    assert count(PRESETS["bert-base"], LoraConfig(r=8)).note == ""
    with pytest.raises(UserError, match="not built here"):
        count(PRESETS["deberta-xxl"], LoraConfig(r=8), 1, 8)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "said"])  # which has 778 λ to fill there
def test_every_method_is_counted_on_a_deberta_of_512_positions(method: str) -> None:
    """From its own 512 positions, though they are relative and take no table of that length."""
    counted = count_each(PRESETS["deberta-xxl"], {"full": FullConfig(), method: METHODS[method]}, 1, 128)
    assert not isinstance(counted[method], UserError)
    assert counted["full"].parameters.method + counted["full"].parameters.head == 1_566_913_538
    assert counted["full"].saved == 4 * 1_566_913_538
    with pytest.raises(UserError, match="reads at most 512"):
        count(PRESETS["deberta-xxl"], PromptTuningConfig(512))


@pytest.mark.parametrize(
    ("batch", "length", "says"), [(1, 13, "reads at most 12"), (1, 0, "1 row of 1 token"), (-1, 3, "row")]
)
def test_a_step_that_cannot_be_is_an_error(batch: int, length: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        count(CONFIGS["bert"], FullConfig(), batch, length)


def test_a_method_of_ones_own_is_counted_as_well() -> None:
    class OneBlock(PeftConfig):
        def attach(self, model):
            for parameter in model.blocks[0].parameters():
                parameter.requires_grad = True
            return OwnWeights()

    block = sum(p.numel() for p in build("gpt2").blocks[0].parameters())
    assert count(CONFIGS["gpt2"], OneBlock()).parameters.method == block

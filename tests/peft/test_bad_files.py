"""Adapter files that are damaged, or made for another base: an error that names file and field, and nothing is changed."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pytest
from families import CONFIGS, KINDS, LABELS, METHODS, build
from tiny import disturb

from minipeft.backend import storage
from minipeft.errors import UserError
from minipeft.nn import Module
from minipeft.peft import AdapterConfig, DoraConfig, LoraConfig, PeftConfig, PeftModel, TopKConfig, get_peft_model
from minipeft.peft.method import OwnWeights

pytestmark = pytest.mark.numpy_only  # edits files; what they hold is computed elsewhere
LORA = LoraConfig(r=2, lora_alpha=5)
ATTN = {
    "bert": "bert.encoder.layer.1.attention.self.query",
    "gpt2": "transformer.h.1.attn.c_attn",
    "llama": "model.layers.1.self_attn.q_proj",
}
NORM = {
    "bert": "bert.encoder.layer.1.output.LayerNorm",
    "gpt2": "transformer.h.1.ln_1",
    "llama": "model.layers.1.input_layernorm",
}


def save(family, config, folder, base=None):
    m = get_peft_model(base or build(family), config)
    disturb(m)
    m.save_pretrained(folder)


def change(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit(folder, tensors=(), metadata=None):
    """Replace tensors by their name without the prefix (None takes one out), and the metadata."""
    path = folder / "adapter_model.safetensors"
    before, own = storage.read_tensors(path)
    after = {**before, **{f"base_model.model.{name}": array for name, array in dict(tensors).items()}}
    after = {name: array for name, array in after.items() if array is not None}
    storage.write_tensors(path, after, own if metadata is None else metadata)


def refused(model: Module, folder, says) -> None:
    """Loading is a UserError that names the folder; the model is as it was, and free for another method."""
    before = {name: array.tobytes() for name, array in model.state_dict().items()}
    with pytest.raises(UserError, match=says) as error:
        PeftModel.from_pretrained(model, folder)
    assert str(folder) in str(error.value)
    assert {name: array.tobytes() for name, array in model.state_dict().items()} == before
    get_peft_model(model, LoraConfig(r=1))


# ---- fields


@pytest.mark.parametrize(
    ("method", "field", "value", "expected"),
    [
        ("intrinsic", "d", 2.5, "a whole number"),
        ("intrinsic", "d", True, "a whole number"),
        ("intrinsic", "seed", "a", "a whole number"),
        ("intrinsic", "seed", None, "a whole number"),
        ("intrinsic", "seed", -1, "0 or more"),
        ("intrinsic", "scope", 3, "a string or a list of strings"),
        ("intrinsic", "scope", ["q_proj", 3], "a string or a list of strings"),
        ("intrinsic", "structure_aware", 1, "a boolean"),
        ("adapter", "bottleneck", 4.5, "a whole number"),
        ("adapter", "placement", None, "a string"),
        ("topk", "k", "1", "a whole number"),
        ("topk", "k", 1.0, "a whole number"),
        ("prompt", "num_virtual_tokens", 2.5, "a whole number"),
        ("prefix", "num_virtual_tokens", 2.5, "a whole number"),
        ("prefix", "init_std", float("inf"), "a finite number"),
        ("vera", "r", 2.5, "a whole number"),
        ("vera", "projection_prng_key", "x", "a whole number"),
        ("vera", "projection_prng_key", -1, "0 or more"),
        ("vera", "d_initial", float("nan"), "a finite number"),
        ("ia3", "target_modules", None, "a list of strings"),
        ("ia3", "target_modules", "q_proj", "a list of strings"),
        ("bitfit", "target_modules", None, "a string or a list of strings"),
        # as Hugging Face PEFT writes it
        ("lora", "r", 2.5, "a whole number"),
        ("lora", "r", "two", "a whole number"),
        ("lora", "r", 0, "1 or more"),
        ("lora", "lora_alpha", float("nan"), "a finite number"),
        ("lora", "lora_alpha", 10**400, "a finite number"),
        ("lora", "lora_alpha", "5", "a finite number"),
        ("lora", "lora_dropout", None, "a finite number"),
        ("lora", "lora_dropout", 1.5, "a probability"),
        ("lora", "use_rslora", "no", "a boolean"),
        ("lora", "bias", ["all"], "a string"),
        ("lora", "rank_pattern", [3], "an object of whole numbers"),
        ("lora", "rank_pattern", {"query": 2.0}, "an object of whole numbers"),
        ("lora", "alpha_pattern", {"query": "5"}, "an object of finite numbers"),
        ("lora", "modules_to_save", "classifier", "a list of strings"),
        ("lora", "modules_to_save", [3], "a list of strings"),
        ("lora", "target_modules", None, "a string or a list of strings"),
        ("lora", "target_modules", [["query"]], "a string or a list of strings"),
        ("lora", "use_dora", "yes", "not built here"),
        ("lora", "init_lora_weights", ["gaussian"], "not built here"),
        ("lora", "peft_type", ["LORA"], "LORA"),
        ("lora", "peft_type", {}, "LORA"),
        ("lora", "peft_type", None, "LORA"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_field_of_another_kind_is_an_error_that_names_it(method, field, value, expected, tmp_path) -> None:
    save("bert", METHODS[method], tmp_path)
    change(tmp_path, **{field: value})
    refused(build("bert"), tmp_path, rf"\b{field}\b.*adapter_config\.json|adapter_config\.json.*\b{field}\b")
    with pytest.raises(UserError, match=expected):
        PeftModel.from_pretrained(build("bert"), tmp_path)


def test_a_rank_that_overflows_a_float_is_one_that_the_tensors_do_not_have(tmp_path) -> None:
    save("bert", LORA, tmp_path)
    change(tmp_path, r=10**400, use_rslora=True)
    refused(build("bert"), tmp_path, r"lora_A\.weight has shape \(2, 16\), but r=1000")


@pytest.mark.parametrize("content", ["3", '"LORA"', "null", '["LORA"]'])
def test_a_config_that_is_no_object_is_an_error(content, tmp_path) -> None:
    save("bert", LORA, tmp_path)
    (tmp_path / "adapter_config.json").write_text(content)
    refused(build("bert"), tmp_path, "peft_type")


def test_an_int_is_a_float_and_null_is_no_pattern(tmp_path) -> None:
    save("bert", LORA, tmp_path)
    change(tmp_path, lora_alpha=7, lora_dropout=0, rank_pattern=None, alpha_pattern=None)
    again = PeftModel.from_pretrained(build("bert"), tmp_path)
    assert (again.config.lora_alpha, again.config.lora_dropout) == (7, 0)


def test_a_config_of_ones_own_is_checked_by_its_own_annotations(tmp_path) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Own(PeftConfig):
        peft_type: ClassVar[str] = "OWN_FIELDS"
        sizes: tuple[int, ...] = (1, 2)
        anything: Any = None

        def attach(self, model: Module) -> OwnWeights:
            return OwnWeights()

    save("bert", Own(), tmp_path)
    change(tmp_path, anything={"a": [1]})
    assert PeftModel.from_pretrained(build("bert"), tmp_path).config == Own((1, 2), {"a": [1]})
    change(tmp_path, sizes=[1, "2"])
    refused(build("bert"), tmp_path, r"sizes is \[1, '2'\]; a list of whole numbers is expected")


# ---- tensors


@pytest.mark.parametrize("family", ATTN)
@pytest.mark.parametrize(
    ("leaf", "shape"),
    [
        ("lora_A.weight", (2,)),
        ("lora_A.weight", ()),
        ("lora_A.weight", (2, 17)),
        ("lora_A.weight", (3, 16)),
        ("lora_B.weight", (16,)),
        ("lora_B.weight", ()),
        ("lora_B.weight", (49, 2)),
        ("lora_B.weight", (2, 16)),
    ],
    ids=str,
)
def test_a_and_b_have_exactly_the_layers_width(family, leaf, shape, tmp_path) -> None:
    """More rows of B than the layer has would otherwise be cut off in silence."""
    save(family, LORA, tmp_path)
    edit(tmp_path, {f"{ATTN[family]}.{leaf}": np.ones(shape, np.float32)})
    refused(
        build(family), tmp_path, rf"{leaf} has shape \({', '.join(map(str, shape))},?\), but r=\d on this model's 16"
    )


@pytest.mark.parametrize("family", NORM)
@pytest.mark.parametrize("shape", [(), (1,), (17,), (1, 16)], ids=str)
def test_a_norm_has_exactly_the_models_width(family, shape, tmp_path) -> None:
    save(family, LoraConfig(r=2, modules_to_save=("attn_norm", "mlp_norm")), tmp_path)
    edit(tmp_path, {f"{NORM[family]}.weight": np.ones(shape, np.float32)})
    refused(build(family), tmp_path, rf"{NORM[family]}\.weight has shape .* but this model asks for \(16,\)")


@pytest.mark.parametrize(("family", "classifier"), [("bert", "classifier"), ("gpt2", "score"), ("llama", "score")])
def test_a_head_has_exactly_the_models_classes(family, classifier, tmp_path) -> None:
    save(family, LORA, tmp_path)
    edit(tmp_path, {f"{classifier}.weight": np.ones((len(LABELS) + 1, 16), np.float32)})
    refused(build(family), tmp_path, rf"{classifier}\.weight has shape \(4, 16\), but this model asks for \(3, 16\)")


@pytest.mark.parametrize(
    ("family", "targets", "other"),
    [
        ("llama", "all-linear", {"num_key_value_heads": 4}),
        ("llama", ("k_proj",), {"num_key_value_heads": 4}),
        ("llama", ("k_proj",), {"num_key_value_heads": 1}),
        ("llama", ("up_proj",), {"intermediate_size": 48}),
        ("llama", ("down_proj",), {"intermediate_size": 48}),
        ("bert", ("up_proj",), {"intermediate_size": 48}),
        ("bert", ("q_proj",), {"hidden_size": 32}),
        ("gpt2", ("q_proj", "v_proj"), {"n_embd": 32}),
        ("gpt2", ("down_proj",), {"n_inner": 48}),
    ],
)
def test_an_adapter_of_another_base_is_refused_without_a_fingerprint_too(family, targets, other, tmp_path) -> None:
    """PEFT's files have none: the shapes alone tell."""
    base = KINDS[family]({**CONFIGS[family], **other}, "classification", LABELS, 0.0)
    save(family, LoraConfig(r=2, target_modules=targets), tmp_path, base)
    refused(build(family), tmp_path, "another shape")
    path = tmp_path / "adapter_model.safetensors"
    parts = {name: text for name, text in storage.read_tensors(path)[1].items() if name != "base"}
    for metadata in (parts, {"format": "pt"}):
        edit(tmp_path, metadata=metadata)
        refused(build(family), tmp_path, "has shape")


@pytest.mark.parametrize("family", ATTN)
@pytest.mark.parametrize(
    "stray",
    [
        "{attn}.lora_embedding_A",
        "{attn}.lora_B.bias",
        "{attn}.lora_magnitude_vector.weight",
        "{other}.lora_magnitude_vector",
        "{norm}.base_layer.bias",
        "{norm}.original_module.weight",
        "{attn}.base_layer.weight",
        "nothing.weight",
    ],
)
def test_every_tensor_is_read_or_named(family, stray, tmp_path) -> None:
    save(family, LORA, tmp_path)
    other = ATTN[family].replace(".1.", ".2.")
    if "magnitude_vector" in stray:  # of a layer that has no LoRA
        save(family, LoraConfig(r=2, target_modules=("blocks.1.q_proj",)), tmp_path)
    name = stray.format(attn=ATTN[family], other=other, norm=NORM[family])
    edit(tmp_path, {name: np.ones(16, np.float32), "another.lora_A": np.ones(2, np.float32)})
    refused(build(family), tmp_path, rf"no part of this model and its LoRA reads: .*{name}")
    refused(build(family), tmp_path, r"reads: .*another\.lora_A")


def test_a_tensor_that_is_named_twice_or_without_pefts_prefix_is_named(tmp_path) -> None:
    save("bert", LoraConfig(r=2, bias="lora_only"), tmp_path)
    edit(tmp_path, {f"{ATTN['bert']}.bias": np.ones(16, np.float32)})
    refused(build("bert"), tmp_path, rf"reads: .*{ATTN['bert']}")
    save("bert", LORA, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors, metadata = storage.read_tensors(path)
    storage.write_tensors(path, {**tensors, "classifier.bias": np.ones(3, np.float32)}, metadata)
    refused(build("bert"), tmp_path, r"reads: classifier\.bias")


def test_a_tensor_that_is_missing_is_named(tmp_path) -> None:
    for leaf in ("lora_A.weight", "lora_B.weight"):
        save("gpt2", LORA, tmp_path)
        edit(tmp_path, {f"{ATTN['gpt2']}.{leaf}": None})
        refused(build("gpt2"), tmp_path, rf"there is no .*{ATTN['gpt2']}\.{leaf}")
    save("gpt2", DoraConfig(r=2), tmp_path)
    edit(tmp_path, {f"{ATTN['gpt2']}.lora_magnitude_vector": None})
    refused(build("gpt2"), tmp_path, f"use_dora=True does not fit the tensors of {ATTN['gpt2']}")


@pytest.mark.parametrize("shape", [(), (16,), (49,), (48, 1)], ids=str)
def test_doras_lengths_are_one_an_output(shape, tmp_path) -> None:
    save("gpt2", DoraConfig(r=2), tmp_path)
    edit(tmp_path, {f"{ATTN['gpt2']}.lora_magnitude_vector": np.ones(shape, np.float32)})
    refused(build("gpt2"), tmp_path, r"lora_magnitude_vector has shape .* asks for \(48,\)")


# ---- the metadata, which say what is whose in a pair that stands for several layers


@pytest.mark.parametrize(
    "inside",
    [
        "no JSON",
        3,
        {"q_proj": [2, 5]},
        {"blocks.0.q_proj": [2, 5]},
        {},
        {"blocks.1.q_proj": [0, 5], "blocks.1.v_proj": [4, 5]},
        {"blocks.1.q_proj": [2.0, 5], "blocks.1.v_proj": [2, 5]},
        {"blocks.1.q_proj": [True, 5], "blocks.1.v_proj": [3, 5]},
        {"blocks.1.q_proj": [2, float("nan")], "blocks.1.v_proj": [2, 5]},
        {"blocks.1.q_proj": [2], "blocks.1.v_proj": [2, 5]},
        {"blocks.1.q_proj": 2, "blocks.1.v_proj": [2, 5]},
        {"blocks.1.q_proj": [2, 5]},
        {"blocks.1.q_proj": [2, 5], "blocks.1.v_proj": [3, 5]},
    ],
    ids=str,
)
def test_parts_that_cannot_be_are_an_error_that_names_them(inside, tmp_path) -> None:
    save("gpt2", LORA, tmp_path)
    _, metadata = storage.read_tensors(tmp_path / "adapter_model.safetensors")
    text = inside if isinstance(inside, str) else json.dumps({**json.loads(metadata["parts"]), ATTN["gpt2"]: inside})
    edit(tmp_path, metadata={**metadata, "parts": text})
    refused(build("gpt2"), tmp_path, "parts")


def test_an_alpha_of_zero_may_be_raised_in_the_config(tmp_path) -> None:
    """The parts' own α is then 0, and no ratio can be taken to it."""
    save("gpt2", LoraConfig(r=2, lora_alpha=0), tmp_path)
    change(tmp_path, lora_alpha=12)  # of the pair of rank 4
    again = PeftModel.from_pretrained(build("gpt2"), tmp_path)
    assert {layer.scale for layer in again.method.layers.values()} == {3.0}


# ---- the other methods' tensors


@pytest.mark.parametrize("config", [AdapterConfig(4), TopKConfig(1)], ids=str)
def test_a_tensor_of_another_shape_is_named(config, tmp_path) -> None:
    save("bert", config, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors, metadata = storage.read_tensors(path)
    name = min(tensors)
    for array in (np.ones((), np.float32), np.ones(5, np.float32)):
        storage.write_tensors(path, {**tensors, name: array}, metadata)
        refused(build("bert"), tmp_path, f"{name} has shape")

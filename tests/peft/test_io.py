"""Adapter files: what is saved is what was trained; it loads here and in Hugging Face PEFT; nothing is ignored."""

import dataclasses
import json

import numpy as np
import pytest
from families import METHODS, build, fits
from folders import write_model
from tiny import bits, disturb, tiny_model

import minipeft as mp
from minipeft.errors import UserError
from minipeft.peft import (
    AdapterConfig,
    FullConfig,
    HeadConfig,
    IntrinsicConfig,
    LoraConfig,
    PeftModel,
    TopKConfig,
    get_peft_model,
)

IDS = np.array([[2, 5, 9, 13, 3], [2, 7, 8, 3, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
CONFIGS = [
    FullConfig(),
    HeadConfig(),
    TopKConfig(1),
    AdapterConfig(4, placement="parallel"),
    LoraConfig(r=3, lora_alpha=7),
    LoraConfig(r=2, use_rslora=True, target_modules="all-linear"),
    LoraConfig(r=2, target_modules=("blocks.0.q_proj", "down_proj"), init="gaussian"),
    IntrinsicConfig(50),
    IntrinsicConfig(200, projection="sparse", structure_aware=True, seed=3),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("base") / "model")


def load(base, seed=0, num_labels=2):
    mp.seed(seed)
    return mp.load_model(base, num_labels=num_labels, dropout=0.0)


def logits(model):
    with mp.no_grad():
        return model.eval()(IDS, MASK).numpy().copy()


def trained(base, config):
    model = get_peft_model(load(base), config)
    disturb(model)
    return model


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_what_is_saved_comes_back_to_the_bit(base, tmp_path, config):
    model = trained(base, config)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(load(base, seed=9), tmp_path)
    assert np.array_equal(logits(again), logits(model))
    for field in dataclasses.fields(config):  # alpha among them: pitfall "alpha not saved"
        if field.name != "target_modules":
            assert getattr(again.config, field.name) == getattr(config, field.name)


def test_a_merged_model_saves_the_method_and_not_the_merged_weights(base, tmp_path):
    """Pitfall: a saved state that holds merged weights is merged again on load."""
    model = trained(base, LoraConfig(r=2))
    before = logits(model)
    model.merge_adapter()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(load(base, seed=9), tmp_path)
    assert np.array_equal(logits(again), before)
    with pytest.raises(UserError, match="merged"):
        model.state_dict()


def test_the_head_is_saved_and_applied(base, tmp_path):
    """Pitfalls: the head lost; an adapter that was loaded but not applied."""
    model = trained(base, LoraConfig(r=2))
    model.save_pretrained(tmp_path)
    fresh = load(base, seed=9)
    without = logits(fresh)
    again = PeftModel.from_pretrained(fresh, tmp_path)
    assert not np.allclose(logits(again), without)
    assert np.array_equal(again.model.head.classifier.weight.numpy(), model.model.head.classifier.weight.numpy())


def test_another_base_is_refused(base, tmp_path):
    other = write_model(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    trained(base, AdapterConfig(4)).save_pretrained(tmp_path / "kept")
    deeper = mp.models.Bert({**config, "num_hidden_layers": 3}, "classification", ("a", "b"), 0.0)
    with pytest.raises(UserError, match="another shape"):
        PeftModel.from_pretrained(deeper, tmp_path / "kept")


def test_damaged_files_are_errors(base, tmp_path):
    trained(base, IntrinsicConfig(50)).save_pretrained(tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="adapter_model"):
        PeftModel.from_pretrained(load(base), tmp_path)
    weights.write_bytes(whole)
    for broken, says in (("{", "JSON"), ("[]", "peft_type"), (text.replace('"d"', '"dd"'), "dd")):
        config.write_text(broken)
        with pytest.raises(UserError, match=says):
            PeftModel.from_pretrained(load(base), tmp_path)
    config.unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        PeftModel.from_pretrained(load(base), tmp_path)


def own_names(method):
    """PiSSA is saved as LoRA of rank 2r: the same change, in other parameters (test_pissa.py)."""
    return method != "pissa"


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", [name for name in METHODS if own_names(name)])
def test_every_method_comes_back_on_every_family(family, method, tmp_path):
    if not fits(family, method):
        pytest.skip("this family has nothing for it to train")
    m = get_peft_model(build(family), METHODS[method])
    disturb(m)
    m.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build(family), tmp_path)
    assert bits(again) == bits(m)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in m.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("method", [name for name in METHODS if own_names(name)])
def test_a_plain_transformer_keeps_its_own_names(method, tmp_path):
    m = get_peft_model(tiny_model(), METHODS[method])
    disturb(m)
    m.save_pretrained(tmp_path)
    assert bits(PeftModel.from_pretrained(tiny_model(), tmp_path)) == bits(m)


def test_lora_in_pefts_format_is_not_for_a_plain_transformer(tmp_path):
    """Its names are those of a family's files."""
    get_peft_model(build("bert"), LoraConfig(r=2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds LoRA for a BERT"):
        PeftModel.from_pretrained(tiny_model(), tmp_path)
    with pytest.raises(UserError, match="another shape"):
        PeftModel.from_pretrained(build("gpt2"), tmp_path)


def test_another_version_of_an_algorithm_is_refused(base, tmp_path):
    """The same seed would give another projection: θ_d would mean nothing."""
    trained(base, IntrinsicConfig(50)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    for version in (fields["version"] + 1, None):
        path.write_text(json.dumps({**fields, "version": version}))
        with pytest.raises(UserError, match=r"version .* of INTRINSIC"):
            PeftModel.from_pretrained(load(base), tmp_path)


def test_a_field_that_is_missing_is_named(base, tmp_path):
    trained(base, IntrinsicConfig(50, seed=3)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    del fields["seed"]
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"missing: \['seed'\]"):
        PeftModel.from_pretrained(load(base), tmp_path)

"""Adapter files: what is saved is what was trained; it loads here and in Hugging Face PEFT; nothing is ignored."""

import dataclasses
import json

import numpy as np
import pytest
from folders import write_model
from tiny import disturb

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

# of Hugging Face: about its own names
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

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


@pytest.mark.parametrize("config", [c for c in CONFIGS if isinstance(c, LoraConfig)], ids=str)
def test_hugging_face_peft_loads_it(base, tmp_path, config, torch):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = trained(base, config)
    model.save_pretrained(tmp_path / "lora")
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    theirs = peft.PeftModel.from_pretrained(whole, tmp_path / "lora").eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits.numpy()
    np.testing.assert_allclose(logits(model), expected, atol=1e-5)
    assert not np.allclose(expected, logits(load(base)), atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": ["query", "key", "output.dense"]}])
def test_what_hugging_face_peft_saves_loads_here(base, tmp_path, options, torch):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    config = {"target_modules": ["query", "value"], **options}
    save = ["classifier", "pooler"]
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=5, modules_to_save=save, **config)
    theirs = peft.get_peft_model(whole, lora).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        expected = theirs(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits.numpy()
    theirs.save_pretrained(tmp_path)
    if "output.dense" in config["target_modules"]:  # PEFT's name for two layers of a block at once
        with pytest.raises(UserError, match=r"output\.dense"):
            PeftModel.from_pretrained(load(base), tmp_path)
        return
    np.testing.assert_allclose(logits(PeftModel.from_pretrained(load(base), tmp_path)), expected, atol=1e-5)


def test_another_base_is_refused(base, tmp_path):
    other = write_model(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    trained(base, AdapterConfig(4)).save_pretrained(tmp_path / "kept")
    deeper = mp.models.Bert({**config, "num_hidden_layers": 3}, "classification", ("a", "b"), 0.0)
    with pytest.raises(UserError, match="another shape"):
        PeftModel.from_pretrained(deeper, tmp_path / "kept")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "LORRA"}, "Did you mean 'LORA'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"rank_pattern": {"query": 4}}, "rank_pattern"),
        ({"target_modules": ["query", "quary"]}, "'quary'"),
        ({"target_modules": 3}, "target_modules"),
        ({"r": 0}, "rank of LoRA"),
    ],
)
def test_what_is_not_built_here_is_an_error_and_never_ignored(base, tmp_path, change, says):
    trained(base, LoraConfig(r=2)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=says):
        PeftModel.from_pretrained(load(base), tmp_path)


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


def test_trained_biases_cannot_be_saved_as_lora(base, tmp_path):
    with pytest.raises(UserError, match="biases"):
        trained(base, LoraConfig(r=2, bias="lora_only")).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())

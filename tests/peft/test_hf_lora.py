"""LoRA files both ways with Hugging Face PEFT: the same logits to 1e-5, for BERT, GPT-2 and Llama; nothing is ignored."""

from __future__ import annotations

import json

import numpy as np
import pytest
from families import build, pairs
from tiny import disturb

import minipeft as mp
from minipeft.errors import UserError
from minipeft.peft import DoraConfig, LoraConfig, PeftModel, PissaConfig, get_peft_model

pytestmark = [
    pytest.mark.numpy_only,  # compares files with torch's
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),  # of Hugging Face: about its own ways
]
IDS = np.array([[2, 5, 9, 13, 3], [2, 7, 8, 3, 11]])
AUTO = {
    "classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
    "features": "AutoModel",
}
VARIANTS = {
    "plain": LoraConfig(r=3, lora_alpha=7),
    "everywhere": LoraConfig(r=2, lora_alpha=5, target_modules="all-linear"),
    "rslora": LoraConfig(r=4, lora_alpha=5, use_rslora=True, target_modules=("q_proj", "k_proj", "down_proj")),
    "one layer": LoraConfig(r=2, target_modules=("blocks.0.q_proj", "blocks.1.o_proj"), init="gaussian"),
    "patterns": LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=("o_proj", "up_proj"),
        rank_pattern={"blocks.1.o_proj": 4, "up_proj": 3},
        alpha_pattern={"o_proj": 9},
    ),
    "biases of targets": LoraConfig(r=2, bias="lora_only"),
    "all biases": LoraConfig(r=2, bias="all"),
    "norms": LoraConfig(r=2, modules_to_save=("attn_norm", "blocks.2.mlp_norm")),
    "dora": DoraConfig(r=3, lora_alpha=7),
    "dora everywhere": DoraConfig(r=2, target_modules="all-linear", use_rslora=True, bias="lora_only"),
}


def logits(model):
    with mp.no_grad():
        return model.eval()(IDS).numpy().copy()


def trained(family, task, config):
    m = get_peft_model(build(family, task), config)
    disturb(m)
    return m


def transformers_model(folder, task):
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, AUTO[task]).from_pretrained(folder).eval()


def their_logits(model, torch):
    with torch.no_grad():
        out = model(torch.tensor(IDS))
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()


@pytest.fixture
def bases(tmp_path):
    """`bases(family, task)` saves the base as a folder of transformers."""

    def save(family, task):
        build(family, task).save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return save


# ---- ours in PEFT


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("family", "task"), pairs())
def test_ours_in_peft_and_back(family, task, variant, bases, tmp_path, torch):
    peft = pytest.importorskip("peft")
    m = trained(family, task, VARIANTS[variant])
    m.save_pretrained(tmp_path / "lora")
    theirs = peft.PeftModel.from_pretrained(transformers_model(bases(family, task), task), tmp_path / "lora").eval()
    ours = logits(m)
    np.testing.assert_allclose(ours, their_logits(theirs, torch), atol=1e-5)
    assert not np.allclose(ours, logits(build(family, task)), atol=1e-3)
    again = PeftModel.from_pretrained(build(family, task), tmp_path / "lora")
    assert np.array_equal(logits(again), ours)  # to the bit
    assert again.trainable_parameters().keys() == m.trainable_parameters().keys()
    assert type(again.config) is type(m.config)
    assert {n: l.scale for n, l in again.method.layers.items()} == {n: l.scale for n, l in m.method.layers.items()}
    for field in ("lora_dropout", "init", "use_rslora", "bias"):
        assert getattr(again.config, field) == getattr(m.config, field)


@pytest.mark.parametrize(("family", "task"), [("gpt2", "features"), ("bert", "features"), ("llama", "features")])
def test_without_a_head(family, task, bases, tmp_path, torch):
    peft = pytest.importorskip("peft")
    m = trained(family, task, VARIANTS["plain"])
    m.save_pretrained(tmp_path / "lora")
    options = {"add_pooling_layer": False} if family == "bert" else {}
    transformers = pytest.importorskip("transformers")
    whole = transformers.AutoModel.from_pretrained(bases(family, task), **options).eval()
    theirs = peft.PeftModel.from_pretrained(whole, tmp_path / "lora").eval()
    np.testing.assert_allclose(logits(m), their_logits(theirs, torch), atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("family", "task"), pairs())
def test_ours_merged_in_peft_too(family, task, variant, bases, tmp_path, torch):
    """Merged and unloaded on either side: plain models with the same logits; a merged one saves what it merged."""
    peft = pytest.importorskip("peft")
    m = trained(family, task, VARIANTS[variant])
    m.merge_adapter()
    m.save_pretrained(tmp_path / "lora")
    theirs = peft.PeftModel.from_pretrained(transformers_model(bases(family, task), task), tmp_path / "lora")
    merged = theirs.merge_and_unload().eval()
    plain = m.merge_and_unload()
    np.testing.assert_allclose(logits(plain), their_logits(merged, torch), atol=1e-5)
    plain.save_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(
        logits(plain), their_logits(transformers_model(tmp_path / "merged", task), torch), atol=1e-5
    )


# ---- PEFT's in ours

TARGETS = {"bert": ["query", "value"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}
OTHER = {"bert": ["output.dense", "key"], "gpt2": ["c_proj", "c_fc"], "llama": ["mlp.down_proj", "o_proj"]}
LAST = {"bert": ".layer.2.", "gpt2": ".h.2.", "llama": ".layers.2."}


def options(family, name):
    every = {
        "plain": {},
        "rslora": {"use_rslora": True, "target_modules": OTHER[family]},
        "as a regex": {"target_modules": rf".*\.[01]\..*({'|'.join(TARGETS[family])})"},
        "patterns": {
            "target_modules": TARGETS[family] + OTHER[family],
            "rank_pattern": {rf".*\{LAST[family]}.*": 3, TARGETS[family][0]: 4},
            "alpha_pattern": {OTHER[family][0]: 11},
        },
        "biases of targets": {"bias": "lora_only"},
        "all biases": {"bias": "all"},
        "dora": {"use_dora": True, "target_modules": TARGETS[family] + OTHER[family]},
        "norms": {"modules_to_save": {"bert": ["LayerNorm"], "gpt2": ["ln_1", "ln_f"], "llama": ["norm"]}[family]},
    }
    return every[name]


NAMES = ["plain", "rslora", "as a regex", "patterns", "biases of targets", "all biases", "norms", "dora"]


def trained_by_peft(family, task, name, base, torch):
    """PEFT's LoRA on a base of transformers, moved at random."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    kind = {"classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM"}[task]
    settings = {"r": 2, "lora_alpha": 5, "target_modules": TARGETS[family], **options(family, name)}
    theirs = peft.get_peft_model(transformers_model(base, task), peft.LoraConfig(task_type=kind, **settings)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return theirs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("family", "task"), pairs())
def test_what_peft_saves_loads_here(family, task, name, bases, tmp_path, torch):
    peft = pytest.importorskip("peft")
    theirs = trained_by_peft(family, task, name, bases(family, task), torch)
    theirs.save_pretrained(tmp_path / "lora")
    expected = their_logits(theirs, torch)
    m = PeftModel.from_pretrained(build(family, task), tmp_path / "lora")
    np.testing.assert_allclose(logits(m), expected, atol=1e-5)
    m.save_pretrained(tmp_path / "again")  # and once more through ours
    whole = transformers_model(tmp_path / "base", task)
    again = peft.PeftModel.from_pretrained(whole, tmp_path / "again").eval()
    np.testing.assert_allclose(their_logits(again, torch), expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("family", "task"), pairs())
def test_what_peft_saves_merges_here_as_there(family, task, name, bases, tmp_path, torch):
    theirs = trained_by_peft(family, task, name, bases(family, task), torch)
    theirs.save_pretrained(tmp_path / "lora")
    m = PeftModel.from_pretrained(build(family, task), tmp_path / "lora")
    merged = theirs.merge_and_unload().eval()
    plain = m.merge_and_unload()
    assert plain.state_dict().keys() == build(family, task).state_dict().keys()
    np.testing.assert_allclose(logits(plain), their_logits(merged, torch), atol=1e-5)
    assert not np.allclose(logits(plain), logits(build(family, task)), atol=1e-3)


def test_a_head_that_peft_did_not_train_is_the_bases(bases, tmp_path, torch):
    """The pooler, unless modules_to_save names it; but what it names has to be there."""
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    peft.get_peft_model(transformers_model(bases("bert", "classification"), "classification"), lora).save_pretrained(
        tmp_path / "lora"
    )
    m = PeftModel.from_pretrained(build("bert"), tmp_path / "lora")
    assert np.array_equal(m.model.head.pooler.weight.numpy(), build("bert").head.pooler.weight.numpy())
    change(tmp_path / "lora", {"modules_to_save": ["classifier", "pooler"]})
    with pytest.raises(UserError, match=r"missing \['head\.pooler"):
        PeftModel.from_pretrained(build("bert"), tmp_path / "lora")


# ---- nothing is ignored


def change(folder, fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"use_dora": True}, "use_dora=True does not fit"),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"layers_to_transform": [1]}, r"layers_to_transform=\[1\]"),
        ({"exclude_modules": "x", "lora_bias": True}, "exclude_modules='x', lora_bias=True"),
        ({"a_field_of_the_future": 1}, "a_field_of_the_future=1"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"rank_pattern": {"c_attn": 5}}, "r is 5 for transformer.h.0.attn.c_attn"),
        ({"rank_pattern": {"(": 5}}, r"rank_pattern has .* no regular expression"),
        ({"target_modules": "(c_attn"}, r"target_modules has '\(c_attn', which is no regular expression"),
        ({"target_modules": ["c_attn", "c_atn"]}, "'c_atn'"),
        ({"target_modules": ["mlp.c_fc"]}, "does not fit the tensors"),
        ({"target_modules": ".*c_fc"}, "does not fit the tensors"),
        ({"target_modules": "all-linear"}, "does not fit the tensors"),
        ({"target_modules": 3}, "target_modules"),
        ({"modules_to_save": ["ln_9"]}, "'ln_9'"),
        ({"modules_to_save": ["ln_1"]}, "missing"),
        ({"modules_to_save": ["wte"]}, "tied"),
        ({"bias": "lora_only"}, "missing"),
        ({"bias": "some"}, "LoRA bias"),
        ({"r": 0}, "rank of LoRA"),
        ({"peft_type": "LORRA"}, "Did you mean 'LORA'"),
    ],
    ids=str,
)
def test_what_is_not_built_here_is_an_error_that_names_it(tmp_path, fields, says):
    trained("gpt2", "causal-lm", VARIANTS["plain"]).save_pretrained(tmp_path)
    change(tmp_path, fields)
    base = build("gpt2", "causal-lm")
    before = base.state_dict()
    with pytest.raises(UserError, match=says):
        PeftModel.from_pretrained(base, tmp_path)
    after = base.state_dict()  # the model is as it was, and free for another
    assert {n: a.tobytes() for n, a in before.items()} == {n: a.tobytes() for n, a in after.items()}
    get_peft_model(base, LoraConfig(r=1))


def test_lora_on_what_cannot_have_it_here_is_named(bases, tmp_path, torch):
    peft = pytest.importorskip("peft")
    whole = transformers_model(bases("bert", "classification"), "classification")
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "dense"])
    peft.get_peft_model(whole, lora).save_pretrained(tmp_path / "lora")
    with pytest.raises(UserError, match=r"bert\.pooler\.dense is not built here"):
        PeftModel.from_pretrained(build("bert"), tmp_path / "lora")


def test_alpha_changed_in_the_file_counts(tmp_path):
    """Also for a pair that stands for several layers, whose own α lies in the metadata."""
    m = trained("gpt2", "causal-lm", VARIANTS["plain"])
    m.save_pretrained(tmp_path)
    change(tmp_path, {"lora_alpha": 28})  # 14 for the pair of rank 6, that is 7 for each of rank 3
    again = PeftModel.from_pretrained(build("gpt2", "causal-lm"), tmp_path)
    assert again.config.lora_alpha == pytest.approx(14)
    m.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == pytest.approx(14)


def test_rank_r_on_q_and_v_is_a_pair_of_rank_2r_on_c_attn(tmp_path):
    """Pitfall: rank r on a fused qkv is not rank r on q and on v. The pair's B is zero off its blocks."""
    from minipeft.backend.storage import read_tensors

    m = trained("gpt2", "causal-lm", LoraConfig(r=3, lora_alpha=7))
    m.save_pretrained(tmp_path)
    tensors, _ = read_tensors(tmp_path / "adapter_model.safetensors")
    A, B = (tensors[f"base_model.model.transformer.h.1.attn.c_attn.lora_{X}.weight"] for X in "AB")
    q, v = m.method.layers["blocks.1.q_proj"], m.method.layers["blocks.1.v_proj"]
    d = q.B.shape[1]
    assert (A.shape, B.shape) == ((6, d), (3 * d, 6))
    expected = np.zeros((3 * d, 6), dtype=np.float32)
    expected[:d, :3], expected[2 * d :, 3:] = q.B.numpy().T, v.B.numpy().T
    assert np.array_equal(B, expected)
    assert np.array_equal(A, np.concatenate([q.A.numpy(), v.A.numpy()], axis=1).T)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LoraConfig(r=2, alpha_pattern={"v_proj": 9}), "one scale"),
        (LoraConfig(r=2, target_modules=("q_proj",), modules_to_save=("k_proj",)), "one matrix"),
        (LoraConfig(r=2, modules_to_save=("embed.word",)), "tied"),
    ],
    ids=["scales", "a part whole", "tied"],
)
def test_what_pefts_format_has_no_place_for_is_an_error_and_leaves_no_file(config, says, tmp_path):
    with pytest.raises(UserError, match=says):
        trained("gpt2", "causal-lm", config).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank_pattern": {"k_proj": 4}}, "'k_proj', which is not among the targets"),
        ({"alpha_pattern": {"q_poj": 4}}, "Nearest: q_proj"),
        ({"rank_pattern": {"q_proj": 0}}, "rank of LoRA"),
        ({"modules_to_save": ("q_proj",)}, "trained whole or by LoRA"),
        ({"modules_to_save": ("blocks.1",)}, "trained whole or by LoRA"),
        ({"modules_to_save": ("atn_norm",)}, "Nearest: attn_norm"),
    ],
)
def test_a_pattern_or_module_that_fits_nothing_is_an_error(settings, says):
    with pytest.raises(UserError, match=says):
        get_peft_model(build("llama"), LoraConfig(**settings))


def test_the_patterns_set_rank_and_scale():
    m = get_peft_model(build("llama"), VARIANTS["patterns"])
    layers = m.method.layers
    ranks = {name: layer.A.shape[1] for name, layer in layers.items()}
    assert ranks == {f"blocks.{i}.o_proj": 4 if i == 1 else 2 for i in range(3)} | {
        f"blocks.{i}.up_proj": 3 for i in range(3)
    }
    assert [layers[n].scale for n in ("blocks.0.o_proj", "blocks.1.o_proj", "blocks.0.up_proj")] == [9 / 2, 9 / 4, 1]


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "rank_pattern": {"k_proj": 1}}], ids=str)
@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("gpt2", "causal-lm")])
def test_pissa_is_saved_as_lora_of_rank_2r_for_the_original_base(family, task, settings, bases, tmp_path, torch):
    """Nobody has to decompose the base again, and PEFT knows of no PiSSA in the file."""
    peft = pytest.importorskip("peft")
    m = trained(family, task, PissaConfig(r=3, lora_alpha=4, target_modules=("k_proj", "down_proj"), **settings))
    m.save_pretrained(tmp_path / "lora")
    again = PeftModel.from_pretrained(build(family, task), tmp_path / "lora")
    assert type(again.config) is LoraConfig
    assert {n: l.A.shape[1] for n, l in again.method.layers.items()} == {
        n: 2 * l.A.shape[1] for n, l in m.method.layers.items()
    }
    np.testing.assert_allclose(logits(again), logits(m), atol=1e-5)
    theirs = peft.PeftModel.from_pretrained(transformers_model(bases(family, task), task), tmp_path / "lora").eval()
    np.testing.assert_allclose(logits(m), their_logits(theirs, torch), atol=1e-5)

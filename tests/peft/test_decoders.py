"""Every method on GPT-2 and Llama: the same targets, the base untouched, and the language head left as it is."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import bits, disturb

import minipeft as mp
from minipeft.autograd import functional
from minipeft.errors import UserError
from minipeft.models import GPT2, Llama
from minipeft.optim import AdamW
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

D, LAYERS, VOCAB = 16, 3, 30
LLAMA = {"vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 12}
MAKE = {
    "gpt2": lambda task, **o: GPT2({"vocab_size": VOCAB, "n_embd": D, "n_layer": LAYERS, "n_head": 4}, task, **o),
    "llama": lambda task, **o: Llama(LLAMA, task, **o),
    "tied llama": lambda task, **o: Llama({**LLAMA, "tie_word_embeddings": True}, task, **o),
}
METHODS = {
    "full": FullConfig(),
    "topk": TopKConfig(1),
    "adapter": AdapterConfig(4),
    "lora": LoraConfig(r=2),
    "lora everywhere": LoraConfig(r=2, target_modules="all-linear"),
    "intrinsic": IntrinsicConfig(d=50),
}
every_family = pytest.mark.parametrize("family", MAKE)
every_method = pytest.mark.parametrize("method", METHODS)
IDS = np.random.default_rng(0).integers(0, VOCAB, (3, 8))


def build(family: str, task: str = "causal-lm", **options):
    mp.seed(0)
    model = MAKE[family](task, dropout=0.0, **options)
    rng = np.random.default_rng(1)
    for p in model.parameters():
        p.data += (0.2 * rng.standard_normal(p.shape)).astype("float32")
    return model


def loss_of(model):
    return functional.cross_entropy(model(IDS[:, :-1]), IDS[:, 1:])


@every_family
@every_method
def test_a_method_starts_from_the_base_and_trains_its_own_parameters_alone(family, method):
    base = build(family)
    expected = base(IDS).data
    m = get_peft_model(base, METHODS[method])
    np.testing.assert_array_equal(m(IDS).data, expected)
    trained = set(m.trainable_parameters())
    before, optimizer, losses = bits(m), AdamW(m.parameters(), lr=3e-3), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(m)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0]
    moved = {name.removeprefix("model.") for name, b in bits(m).items() if b != before[name]}
    assert moved == trained


@every_family
def test_counts(family):
    block = sum(p.numel() for p in build(family).blocks[0].parameters())
    kv = D if family == "gpt2" else D // 2
    norm = 2 * D if family == "gpt2" else D
    total = sum(p.numel() for p in build(family).parameters())
    expected = {
        "full": total,
        "topk": block + norm,
        "adapter": LAYERS * 2 * (2 * D * 4 + 4 + D),
        "lora": LAYERS * 2 * (D + D + D + kv),
        "intrinsic": 50,
    }
    for method, number in expected.items():
        count = get_peft_model(build(family), METHODS[method]).count_parameters()
        assert (count.head, count.method) == (0, number), method


@every_family
def test_the_language_head_is_no_task_head(family, tmp_path):
    m = get_peft_model(build(family), LoraConfig(r=2))
    assert not [name for name in m.trainable_parameters() if name.startswith(("head", "embed"))]
    assert set(m.saved_parameters()) == set(m.trainable_parameters())
    with pytest.raises(UserError, match="no classifier to train"):
        get_peft_model(build(family), HeadConfig())


@every_family
def test_a_classifiers_head_is_trained_with_every_method(family):
    for config in (*METHODS.values(), HeadConfig()):
        m = get_peft_model(build(family, "classification", labels=("a", "b", "c")), config)
        assert m.count_parameters().head == 3 * D
        assert m(IDS).shape == (3, 3)


@every_family
def test_intrinsic_dimension_moves_a_tied_table_in_both_places(family):
    m = get_peft_model(build(family), IntrinsicConfig(d=50)).eval()
    disturb(m)
    expected = m(IDS).data
    assert not np.allclose(expected, build(family)(IDS).data)
    m.merge_adapter()
    np.testing.assert_allclose(m(IDS).data, expected, atol=1e-5)


@every_family
@pytest.mark.parametrize("method", ["lora", "lora everywhere"])
def test_merging_and_back(family, method):
    base = build(family)
    before = bits(base)
    m = get_peft_model(base, METHODS[method]).eval()
    disturb(m)
    expected = m(IDS).data
    m.merge_adapter()
    np.testing.assert_allclose(m(IDS).data, expected, atol=1e-5)
    m.unmerge_adapter()
    np.testing.assert_array_equal(m(IDS).data, expected)
    disturbed = {name.replace(".linear", "").removeprefix("model."): b for name, b in bits(m).items()}
    assert all(disturbed[name] == b for name, b in before.items())


@every_family
@every_method
def test_saved_and_loaded_again(family, method, tmp_path):
    m = get_peft_model(build(family), METHODS[method])
    disturb(m)
    m.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build(family), tmp_path)
    np.testing.assert_array_equal(again(IDS).data, m(IDS).data)


def test_a_plain_save_of_a_model_with_a_method_is_refused(tmp_path):
    base = build("gpt2")
    get_peft_model(base, LoraConfig(r=2))
    with pytest.raises(UserError, match=r"is no part of a GPT-2: merge_and_unload\(\)"):
        base.save_pretrained(tmp_path)

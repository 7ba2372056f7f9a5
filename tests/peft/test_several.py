"""Several adapters on one base: each is itself whenever it is active, and none leaves a trace in another or in a file."""

from __future__ import annotations

import numpy as np
import pytest
from families import build
from tiny import DATA, PAD, bits, disturb, logits, loss_of, take_steps, tiny_model

from minipeft import UserError
from minipeft.optim import AdamW
from minipeft.peft import (
    AdapterConfig,
    DoraConfig,
    FullConfig,
    IntrinsicConfig,
    LoraConfig,
    PeftModel,
    TopKConfig,
    get_peft_model,
)
from minipeft.training import Trainer, TrainingConfig

CONFIGS = {
    "lora": LoraConfig(r=2, lora_alpha=3),
    "other-lora": LoraConfig(r=3, target_modules=("k_proj", "blocks.1.down_proj")),
    "adapter": AdapterConfig(4, placement="parallel"),
    "intrinsic": IntrinsicConfig(d=60),
}


def alone(name: str) -> PeftModel:
    """One adapter on a base of its own, away from its start, and its head too."""
    m = get_peft_model(tiny_model(), CONFIGS[name])
    disturb(m, seed=len(name))
    return m


def together(*names: str) -> PeftModel:
    """The same adapters on one base; the first is active."""
    m = get_peft_model(tiny_model(), CONFIGS[names[0]], adapter_name=names[0])
    for name in names[1:]:
        m.add_adapter(name, CONFIGS[name])
    for name in names:
        m.set_adapter(name)
        for own, other in zip(m.parameters(), alone(name).parameters(), strict=True):
            own.data[...] = other.data
    m.set_adapter(names[0])
    return m


def test_each_is_what_it_is_alone_whatever_was_active_before() -> None:
    m = together(*CONFIGS)
    for name in [*CONFIGS, *reversed(CONFIGS)]:
        m.set_adapter(name)
        expected = alone(name)
        assert m.active_adapter == name
        assert m.config == CONFIGS[name]
        assert np.array_equal(logits(m), logits(expected))
        assert bits(m) == bits(expected)
        assert m.trainable_parameters().keys() == expected.trainable_parameters().keys()
        assert m.count_parameters() == expected.count_parameters()


def test_swapping_moves_no_weight_of_the_base_and_makes_none_anew() -> None:
    m = together("lora", "other-lora")
    arrays = {name: p.data for name, p in m.named_parameters() if ".head." not in name}
    A = m.method.layers["blocks.0.q_proj"].A
    m.set_adapter("other-lora")
    m.set_adapter("lora")
    assert all(p.data is arrays[name] for name, p in m.named_parameters() if name in arrays)
    assert m.method.layers["blocks.0.q_proj"].A is A


def test_a_new_one_starts_from_the_base_with_the_heads_first_values() -> None:
    m = together("lora")
    m.add_adapter("new", CONFIGS["adapter"])
    assert m.active_adapter == "lora"
    assert np.array_equal(logits(m), logits(alone("lora")))
    m.set_adapter("new")
    assert np.array_equal(logits(m), logits(tiny_model()))


def test_training_one_leaves_the_others_and_the_base_to_the_bit() -> None:
    m = together("lora", "adapter")
    m.set_adapter("adapter")
    take_steps(m)
    trained = logits(m)
    m.set_adapter("lora")
    assert bits(m) == bits(alone("lora"))
    take_steps(m)
    m.set_adapter("adapter")
    assert np.array_equal(logits(m), trained)


def test_the_trainer_trains_the_active_one() -> None:
    m = together("lora", "adapter")
    Trainer(m, DATA, PAD, TrainingConfig(lr=0.01, epochs=1, batch_size=8)).run()
    assert not np.array_equal(logits(m), logits(alone("lora")))
    m.set_adapter("adapter")
    assert np.array_equal(logits(m), logits(alone("adapter")))


def test_an_optimizer_of_one_goes_on_after_another_had_its_turn() -> None:
    m = together("lora", "adapter")
    optimizer = AdamW(m.parameters(), lr=0.01)
    m.set_adapter("adapter")
    m.set_adapter("lora")
    before = bits(m)
    optimizer.zero_grad()
    loss_of(m).backward()
    optimizer.step()
    after = bits(m)
    assert {n for n in before if before[n] != after[n]} == {n for n, p in m.named_parameters() if p.requires_grad}


def test_deleting() -> None:
    m = together("lora", "adapter")
    with pytest.raises(UserError, match="active"):
        m.delete_adapter("lora")
    m.delete_adapter("adapter")
    with pytest.raises(UserError, match="adapter 'adapter'"):
        m.set_adapter("adapter")
    with pytest.raises(UserError, match="Did you mean 'lora'"):
        m.delete_adapter("lore")
    m.add_adapter("adapter", CONFIGS["lora"])  # the name is free again


def test_switched_off_it_is_the_base_with_the_active_ones_head() -> None:
    m = together("lora", "adapter")
    for name in ("lora", "adapter"):
        m.set_adapter(name)
        base = tiny_model()
        for own, p in zip(base.head.parameters(), m.model.head.parameters(), strict=True):
            own.data[...] = p.data
        with m.disable_adapter():
            assert np.array_equal(logits(m), logits(base))
            with pytest.raises(UserError, match="switched off"):
                m.set_adapter("lora" if name == "adapter" else "adapter")
        assert np.array_equal(logits(m), logits(alone(name)))


def test_float64_reaches_those_that_are_away() -> None:
    m = together("lora", "adapter")
    m.astype("float64")
    m.set_adapter("adapter")
    assert {str(p.dtype) for p in m.parameters()} == {"float64"}
    logits(m)


def test_evaluation_mode_reaches_those_that_are_away() -> None:
    """Pitfall: dropout still on in evaluation."""
    m = get_peft_model(tiny_model(), LoraConfig(r=2, lora_dropout=0.5), adapter_name="a")
    m.add_adapter("b", CONFIGS["lora"])
    disturb(m)
    m.set_adapter("b")
    m.eval()
    m.set_adapter("a")
    assert np.array_equal(logits(m), logits(m))
    m.train()
    m.set_adapter("b")
    m.set_adapter("a")
    assert not np.array_equal(logits(m), logits(m))


def test_attaching_leaves_the_mode_of_the_model() -> None:
    model = tiny_model(dropout=0.5).eval()
    m = get_peft_model(model, CONFIGS["lora"])
    m.add_adapter("b", CONFIGS["adapter"])
    m.set_adapter("b")
    assert np.array_equal(logits(m), logits(m))


# ---- merged


def test_another_cannot_be_used_while_one_is_merged_and_the_error_says_the_way_out() -> None:
    """Pitfalls: merge twice adds twice; two merged at once."""
    m = together("lora", "other-lora")
    m.merge_adapter()
    merged = bits(m)
    for use in (
        lambda: m.set_adapter("other-lora"),
        lambda: m.merge_adapter("other-lora"),
        lambda: m.add_adapter("new", CONFIGS["lora"]),
        lambda: m.add_weighted_adapter(["lora"], [1], "new"),
    ):
        with pytest.raises(UserError, match=r"'lora' is merged .* unmerge_adapter\(\) first.*add_weighted_adapter"):
            use()
    m.set_adapter("lora")  # as it is
    m.merge_adapter("lora")
    assert bits(m) == merged
    m.unmerge_adapter()
    m.merge_adapter("other-lora")
    m.unmerge_adapter()
    assert bits(m) == bits(alone("other-lora"))
    m.set_adapter("lora")
    assert bits(m) == bits(alone("lora"))


# ---- files


def test_what_is_saved_is_the_active_one_alone_and_never_merged(tmp_path) -> None:
    m = together("lora", "adapter")
    m.save_pretrained(tmp_path / "lora")
    m.set_adapter("adapter")
    m.save_pretrained(tmp_path / "adapter")
    m.set_adapter("lora")
    m.merge_adapter()
    m.save_pretrained(tmp_path / "merged")
    for name in ("lora", "adapter"):
        assert bits(PeftModel.from_pretrained(tiny_model(), tmp_path / name)) == bits(alone(name))
    assert bits(PeftModel.from_pretrained(tiny_model(), tmp_path / "merged")) == bits(alone("lora"))


def test_loading_a_second_and_a_third(tmp_path) -> None:
    for name in CONFIGS:
        alone(name).save_pretrained(tmp_path / name)
    m = PeftModel.from_pretrained(tiny_model(), tmp_path / "lora", adapter_name="lora")
    for name in ("other-lora", "adapter", "intrinsic"):
        m.load_adapter(tmp_path / name, name)
        assert m.active_adapter == "lora"
    for name in CONFIGS:
        m.set_adapter(name)
        assert bits(m) == bits(alone(name))


def test_a_file_that_does_not_fit_adds_nothing(tmp_path) -> None:
    get_peft_model(tiny_model(layers=2), CONFIGS["lora"]).save_pretrained(tmp_path)
    m = together("lora", "adapter")
    before = bits(m)
    with pytest.raises(UserError, match="another shape"):
        m.load_adapter(tmp_path, "third")
    assert set(m.adapters.slots) == {"lora", "adapter"}
    assert bits(m) == before


# ---- what cannot be


@pytest.mark.parametrize(
    "config", [FullConfig(), TopKConfig(1), LoraConfig(r=2, bias="all"), AdapterConfig(4, train_norms=True)], ids=str
)
def test_what_trains_the_bases_own_weights_is_no_one_of_several(config) -> None:
    m = together("lora")
    before = bits(m)
    with pytest.raises(UserError, match="own"):
        m.add_adapter("b", config)
    assert bits(m) == before
    assert m.trainable_parameters().keys() == alone("lora").trainable_parameters().keys()
    m = get_peft_model(tiny_model(), config)
    before = bits(m)
    with pytest.raises(UserError, match="own"):
        m.add_adapter("b", CONFIGS["lora"])
    assert bits(m) == before
    take_steps(m)


def test_a_setting_that_does_not_fit_adds_nothing() -> None:
    m = together("lora")
    before = bits(m)
    for config in (LoraConfig(r=99), LoraConfig(target_modules=("qproj",)), IntrinsicConfig(d=10**7)):
        with pytest.raises(UserError):
            m.add_adapter("b", config)
        assert bits(m) == before
    with pytest.raises(UserError, match="'lora' already"):
        m.add_adapter("lora", CONFIGS["adapter"])


# ---- weighted sums


def weights(m: PeftModel) -> dict[str, np.ndarray]:
    """The plain weights that the active adapter amounts to, its head with them."""
    m.merge_adapter()
    values = {name.replace(".linear.", "."): p.numpy().copy() for name, p in m.named_parameters() if name[-2:] != ".A"}
    m.unmerge_adapter()
    return {name: value for name, value in values.items() if name[-2:] != ".B"}


def test_a_weighted_sum_is_the_sum_of_the_changes() -> None:
    m = together("lora", "other-lora")
    m.add_adapter("third", LoraConfig(r=1, use_rslora=True, target_modules=("q_proj",)))
    m.set_adapter("third")
    disturb(m)
    m.add_weighted_adapter(["lora", "other-lora", "third"], [0.5, -2, 0.25], "sum")
    base = weights(get_peft_model(tiny_model(), CONFIGS["lora"]))
    expected = dict(base)
    for name, w in (("lora", 0.5), ("other-lora", -2), ("third", 0.25)):
        m.set_adapter(name)
        for key, value in weights(m).items():
            expected[key] = expected[key] + w * (value - base[key])
    m.set_adapter("sum")
    got = weights(m)
    assert got.keys() == expected.keys()
    for key in got:
        np.testing.assert_allclose(got[key], expected[key], atol=1e-5)


def test_one_with_weight_1_is_itself_and_it_saves_and_loads(tmp_path) -> None:
    m = together("lora", "other-lora")
    m.add_weighted_adapter(["lora"], [1], "same")
    m.set_adapter("same")
    np.testing.assert_allclose(logits(m), logits(alone("lora")), atol=1e-5)
    m.save_pretrained(tmp_path)
    assert np.array_equal(logits(PeftModel.from_pretrained(tiny_model(), tmp_path)), logits(m))


def test_sums_that_cannot_be() -> None:
    m = together("lora", "adapter")
    for names, weights_, says in (
        (["lora", "adapter"], [1, 1], "'adapter' is of AdapterConfig"),
        (["lora", "lore"], [1, 1], "Did you mean 'lora'"),
        (["lora"], [1, 1], "1 adapters and 2 weights"),
        ([], [], "each adapter"),
        (["lora"] * 9, [1] * 9, "rank"),
    ):
        with pytest.raises(UserError, match=says):
            m.add_weighted_adapter(names, weights_, "sum")
    assert set(m.adapters.slots) == {"lora", "adapter"}
    assert np.array_equal(logits(m), logits(alone("lora")))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_files_in_pefts_format_become_several_as_well(family, tmp_path) -> None:
    configs = {"a": LoraConfig(r=2), "b": DoraConfig(r=3, target_modules="all-linear")}
    expected = {}
    for name, config in configs.items():
        m = get_peft_model(build(family), config)
        disturb(m, seed=len(name))
        m.save_pretrained(tmp_path / name)
        expected[name] = bits(m)
    m = PeftModel.from_pretrained(build(family), tmp_path / "a", adapter_name="a")
    m.load_adapter(tmp_path / "b", "b")
    assert bits(m) == expected["a"]
    m.set_adapter("b")
    assert bits(m) == expected["b"]
    m.add_weighted_adapter(["a"], [0.5], "half")
    with pytest.raises(UserError, match="Only LoRA"):
        m.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both")

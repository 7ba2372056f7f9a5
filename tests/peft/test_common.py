"""What is true of every method: counts, the exact start, what moves and what does not, off and on, merged or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from tiny import (
    BATCH,
    BLOCK,
    CLASSIFIER,
    EMBED,
    FF,
    HEAD,
    LAYERS,
    NORM,
    TOTAL,
    D,
    bits,
    call,
    disturb,
    logits,
    loss_of,
    take_steps,
    tiny_model,
)

import minipeft as mp
from minipeft import UserError
from minipeft.autograd import gradcheck
from minipeft.optim import AdamW
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
    PeftConfig,
    PeftModel,
    PissaConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TopKConfig,
    VeraConfig,
    get_peft_model,
)

R, BOTTLENECK, DIM = 2, 5, 60
ADAPTER = 2 * D * BOTTLENECK + BOTTLENECK + D
ALL_BIASES = D + LAYERS * (7 * D + FF)  # the embeddings' norm; q, k, v, o, down, two norms and up of each block


@dataclass(frozen=True)
class Case:
    """A method with what the formulas say of it."""

    config: PeftConfig
    trained: int  # parameters that the method trains, the head left out
    added: int = 0  # parameters that the base does not have
    head: int = HEAD
    merges: bool = False
    switches: bool = False  # disable_adapter works
    starts_exact: bool = True  # step 0 is the base
    whole_gradient: bool = True  # nothing is held constant on purpose


def lora(r: int = R, per_rank: int = LAYERS * 2 * (D + D), biases: int = 0, **settings: object) -> Case:
    """LoRA adds r(in + out) parameters a target."""
    config = LoraConfig(r=r, lora_alpha=3, **settings)
    return Case(config, r * per_rank + biases, r * per_rank, merges=True, switches=biases == 0)


def added(config: PeftConfig, trained: int, **more: bool) -> Case:
    """A method that adds what it trains, and merges and switches unless said otherwise."""
    return Case(config, trained, trained, **{"merges": True, "switches": True, **more})


def adapter(count: int, norms: int = 0, **settings: object) -> Case:
    """An adapter has 2dR + R + d parameters."""
    config = AdapterConfig(bottleneck=BOTTLENECK, **settings)
    return Case(config, count * ADAPTER + norms, count * ADAPTER, switches=norms == 0)


def intrinsic(**settings: object) -> Case:
    """θ_d has d parameters, whatever else."""
    return Case(IntrinsicConfig(d=DIM, **settings), DIM, DIM, merges=True, switches=True)


CASES = {
    "full": Case(FullConfig(), TOTAL - HEAD),
    "head": Case(HeadConfig(), 0, head=CLASSIFIER),
    "topk-0": Case(TopKConfig(0), 0),
    "topk-1": Case(TopKConfig(1), BLOCK),
    "topk-2": Case(TopKConfig(2), 2 * BLOCK),
    "topk-2-no-head": Case(TopKConfig(2, train_head=False), 2 * BLOCK, head=0),
    "topk-1-embeddings": Case(TopKConfig(1, train_embeddings=True), BLOCK + EMBED),
    "adapter-houlsby": adapter(2 * LAYERS, placement="houlsby"),
    "adapter-pfeiffer": adapter(LAYERS, placement="pfeiffer"),
    "adapter-parallel": adapter(LAYERS, placement="parallel", activation="tanh"),
    "adapter-norms": adapter(2 * LAYERS, norms=LAYERS * 2 * NORM, train_norms=True, activation="relu"),
    "lora": lora(),
    "lora-all-linear": lora(per_rank=LAYERS * (4 * 2 * D + 2 * (D + FF)), target_modules="all-linear"),
    "lora-gaussian-rs": lora(r=3, init="gaussian", use_rslora=True),
    "lora-one-layer": lora(per_rank=D + FF, target_modules=("blocks.1.up_proj",)),
    "lora-bias-targets": lora(biases=LAYERS * 2 * D, bias="lora_only"),
    "lora-bias-all": lora(biases=ALL_BIASES, bias="all"),
    "did-dense": intrinsic(projection="dense"),
    "did-sparse": intrinsic(projection="sparse"),
    "did-fastfood": intrinsic(projection="fastfood"),
    "did-scope": intrinsic(scope=("q_proj", "blocks.2")),
    "said-dense": intrinsic(projection="dense", structure_aware=True),
    "said-sparse": intrinsic(projection="sparse", structure_aware=True),
    "said-fastfood": intrinsic(projection="fastfood", structure_aware=True),
    "bitfit": Case(BitFitConfig(), ALL_BIASES, switches=True),
    "bitfit-q-up": Case(BitFitConfig(("q_proj", "up_proj")), LAYERS * (D + FF), switches=True),
    "ia3": added(IA3Config(), LAYERS * (2 * D + FF)),
    "ia3-q": added(IA3Config(("blocks.1.q_proj",), ()), D),
    "prompt": added(PromptTuningConfig(3), 3 * D, merges=False, starts_exact=False),
    "prompt-random": added(PromptTuningConfig(2, init="random"), 2 * D, merges=False, starts_exact=False),
    "prefix": added(PrefixTuningConfig(3), 2 * LAYERS * 3 * D, merges=False, starts_exact=False),
    "dora": added(DoraConfig(r=R, lora_alpha=3), LAYERS * 2 * (R * 2 * D + D), whole_gradient=False),
    "dora-everywhere": added(
        DoraConfig(r=1, target_modules="all-linear", use_rslora=True),
        LAYERS * (4 * 2 * D + 2 * (D + FF) + 5 * D + FF),
        whole_gradient=False,
    ),
    "vera": added(VeraConfig(r=7), LAYERS * 2 * (7 + D)),
    "vera-up-down": added(VeraConfig(r=5, target_modules=("up_proj", "down_proj")), LAYERS * (2 * 5 + FF + D)),
    "loraplus": added(LoraPlusConfig(r=R), R * LAYERS * 2 * 2 * D),
    "pissa": added(PissaConfig(r=R, lora_alpha=3), R * LAYERS * 2 * 2 * D),
}
ADDING = {name: case for name, case in CASES.items() if case.added}


def each(cases: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in cases.items()])


every_method = each(CASES)
every_adding_method = each(ADDING)
every_merging_method = each({name: case for name, case in CASES.items() if case.merges})
every_switching_method = each({name: case for name, case in CASES.items() if case.switches})


def base_with_head_of(m: PeftModel) -> mp.nn.Transformer:
    """The base as it was before training, with the head that `m` has now."""
    base = tiny_model()
    for name, parameter in base.head.named_parameters():
        parameter.data[...] = m.get_submodule("model.head").state_dict()[name]
    return base


# ---- counts


@every_method
def test_the_counts_are_those_of_the_formulas(case: Case) -> None:
    count = get_peft_model(tiny_model(), case.config).count_parameters()
    assert (count.head, count.method, count.total) == (case.head, case.trained, TOTAL + case.added)
    assert count.trainable == case.head + case.trained
    assert count.percent == pytest.approx(100 * (case.head + case.trained) / (TOTAL + case.added))


@every_method
def test_trainable_parameters_are_the_ones_counted_and_named_as_in_the_model(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    trainable = m.trainable_parameters()
    assert sum(p.numel() for p in trainable.values()) == case.head + case.trained
    assert all(p.requires_grad for p in trainable.values())
    assert not any(name.startswith("model.") for name in trainable)
    named = {name.removeprefix("model."): p for name, p in m.named_parameters()}
    assert all(named[name] is p for name, p in trainable.items())


def test_print_states_head_method_and_total_apart(capsys: pytest.CaptureFixture[str]) -> None:
    get_peft_model(tiny_model(), LoraConfig(r=R)).print_trainable_parameters()
    method = R * LAYERS * 2 * 2 * D
    printed = capsys.readouterr().out
    for number in (HEAD, method, HEAD + method, TOTAL + method):
        assert f"{number:,}" in printed


def test_pitfall_tied_parameters_counted_twice() -> None:
    model = tiny_model()
    model.blocks[1].q_proj.weight = model.blocks[0].q_proj.weight
    assert get_peft_model(model, FullConfig()).count_parameters().total == TOTAL - D * D


# ---- the start


@each({name: case for name, case in CASES.items() if case.starts_exact})
def test_at_step_0_the_logits_are_the_bases_exactly(case: Case) -> None:
    before = logits(tiny_model())
    m = get_peft_model(tiny_model(), case.config)
    assert np.array_equal(logits(m), before)
    assert np.array_equal(call(m).numpy(), before)  # recorded as well


@every_method
def test_inputs_may_be_given_by_name_as_to_the_base(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    with mp.no_grad():
        named = m(BATCH.input_ids, token_type_ids=BATCH.token_type_ids, attention_mask=BATCH.attention_mask)
    assert np.array_equal(named.numpy(), logits(m))


# ---- what moves


@every_method
def test_training_moves_every_trainable_tensor_and_no_other(case: Case) -> None:
    """Pitfalls: the head frozen; LoRA with A = B = 0 never trains; AdamW moving frozen weights; θ₀ moving."""
    m = get_peft_model(tiny_model(), case.config)
    trainable = {name for name, p in m.named_parameters() if p.requires_grad}
    before = bits(m)
    take_steps(m)
    after = bits(m)
    assert {name for name in before if before[name] != after[name]} == trainable
    assert case.head == 0 or any(".head.classifier." in name for name in trainable)


@every_method
def test_pitfall_weight_decay_does_not_move_frozen_weights(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    frozen = {name: value for name, value in bits(m).items() if name not in names_of_trainable(m)}
    take_steps(m, weight_decay=0.5)
    after = bits(m)
    assert {name: after[name] for name in frozen} == frozen


@every_method
def test_pitfall_frozen_parameters_get_no_gradient_and_no_moments(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    loss_of(m).backward()
    for name, p in m.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    optimizer = AdamW(m.parameters())
    assert optimizer.state_bytes() == 2 * 4 * (case.head + case.trained)  # m and v, float32


def test_pitfall_stale_moments_do_not_move_what_was_frozen_since() -> None:
    m = get_peft_model(tiny_model(), LoraConfig(r=R))
    optimizer = take_steps(m)
    layer = m.get_submodule("model.blocks.1.q_proj")
    layer.A.requires_grad = False
    frozen, other = layer.A.numpy().copy(), layer.B.numpy().copy()
    optimizer.zero_grad()
    loss_of(m).backward()
    optimizer.step()
    assert np.array_equal(layer.A.numpy(), frozen)
    assert not np.array_equal(layer.B.numpy(), other)


@every_method
def test_the_loss_falls(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    before = loss_of(m).item()
    optimizer = AdamW(m.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(15):
        optimizer.zero_grad()
        loss_of(m).backward()
        optimizer.step()
    assert loss_of(m).item() < 0.9 * before


@every_method
def test_the_same_seed_gives_the_same_bits(case: Case) -> None:
    def run(seed: int) -> dict[str, bytes]:
        model = tiny_model(dropout=0.1)
        mp.seed(seed)
        m = get_peft_model(model, case.config)
        take_steps(m, 2)
        return bits(m)

    once = run(5)
    assert run(5) == once
    assert run(6) != once  # the dropout masks and the starts are other ones


def names_of_trainable(m: PeftModel) -> set[str]:
    return {name for name, p in m.named_parameters() if p.requires_grad}


# ---- off and on


@every_switching_method
def test_switched_off_it_is_the_base_exactly_and_then_itself_again(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    take_steps(m)
    on, base = logits(m), logits(base_with_head_of(m))
    assert not np.array_equal(on, base)
    with m.disable_adapter():
        assert np.array_equal(logits(m), base)
        assert np.array_equal(call(m).numpy(), base)
    assert np.array_equal(logits(m), on)


@every_switching_method
def test_switched_off_twice_it_stays_off_until_the_outer_end(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    disturb(m)
    on, base = logits(m), logits(base_with_head_of(m))
    with m.disable_adapter():
        with m.disable_adapter():
            assert np.array_equal(logits(m), base)
        assert np.array_equal(logits(m), base)
    assert np.array_equal(logits(m), on)


@every_switching_method
def test_switched_on_again_after_an_error(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    disturb(m)
    on = logits(m)
    with pytest.raises(RuntimeError, match="inside"), m.disable_adapter():
        raise RuntimeError("inside")
    assert np.array_equal(logits(m), on)


@each({name: case for name, case in CASES.items() if case.switches and case.merges})
def test_switched_off_while_merged_it_is_the_base_and_then_merged_again(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    disturb(m)
    m.merge_adapter()
    merged, weights, base = logits(m), bits(m), logits(base_with_head_of(m))
    with m.disable_adapter():
        assert np.array_equal(logits(m), base)
        with m.disable_adapter():
            assert np.array_equal(logits(m), base)
        assert np.array_equal(logits(m), base)
    assert bits(m) == weights
    assert np.array_equal(logits(m), merged)


@each({name: case for name, case in CASES.items() if not case.switches})
def test_what_trains_the_bases_own_weights_says_that_it_cannot_be_switched_off(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    take_steps(m)
    before = logits(m)
    with pytest.raises(UserError, match="own"), m.disable_adapter():
        pytest.fail("the body must not run")
    assert np.array_equal(logits(m), before)


# ---- merged and not


@every_merging_method
def test_merged_logits_are_close_and_unmerge_is_exact(case: Case) -> None:
    """Pitfalls: merging twice adds twice; unmerging drifts (W₀ is kept, not subtracted from)."""
    m = get_peft_model(tiny_model(), case.config)
    take_steps(m)
    weights, before = bits(m), logits(m)
    m.merge_adapter()
    merged = bits(m)
    assert merged != weights
    np.testing.assert_allclose(logits(m), before, rtol=1e-4, atol=1e-5)
    m.merge_adapter()
    assert bits(m) == merged
    m.unmerge_adapter()
    assert bits(m) == weights
    assert np.array_equal(logits(m), before)
    m.unmerge_adapter()
    assert bits(m) == weights
    for _ in range(5):
        m.merge_adapter()
        m.unmerge_adapter()
    assert bits(m) == weights


@every_merging_method
def test_merging_follows_what_was_trained_since_the_last_time(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    disturb(m, seed=1)
    m.merge_adapter()
    first = logits(m)
    m.unmerge_adapter()
    disturb(m, seed=2)
    before = logits(m)
    m.merge_adapter()
    assert not np.allclose(logits(m), first, atol=1e-3)
    np.testing.assert_allclose(logits(m), before, rtol=1e-4, atol=1e-5)


@every_merging_method
def test_training_while_merged_is_an_error_and_evaluating_is_not(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    disturb(m)
    m.merge_adapter()
    with pytest.raises(UserError, match="unmerge_adapter"):
        call(m)
    logits(m)
    m.eval()
    call(m)
    m.train()
    m.unmerge_adapter()
    before = bits(m)
    take_steps(m, 1)
    assert bits(m) != before


@every_merging_method
def test_merge_and_unload_gives_the_plain_model_with_the_same_logits(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    take_steps(m)
    before = logits(m)
    plain = m.merge_and_unload()
    assert type(plain) is mp.nn.Transformer
    assert [(name, type(module)) for name, module in plain.named_modules()] == [
        (name, type(module)) for name, module in tiny_model().named_modules()
    ]
    assert plain.state_dict().keys() == tiny_model().state_dict().keys()
    np.testing.assert_allclose(logits(plain), before, rtol=1e-4, atol=1e-5)
    again = get_peft_model(plain, LoraConfig(r=1))  # it carries no method any more
    assert np.array_equal(logits(again), logits(plain))


@each({name: case for name, case in ADDING.items() if not case.merges})
def test_what_is_no_change_of_weights_says_that_it_cannot_be_merged_and_goes_on_working(case: Case) -> None:
    m = get_peft_model(tiny_model(), case.config)
    disturb(m)
    before = logits(m)
    for merge in (m.merge_adapter, m.merge_and_unload):
        with pytest.raises(UserError, match="cannot be merged"):
            merge()
    assert np.array_equal(logits(m), before)
    take_steps(m, 1)  # and may still be trained


# ---- attaching


@every_method
def test_a_second_method_on_top_is_an_error(case: Case) -> None:
    model = tiny_model()
    m = get_peft_model(model, case.config)
    before = bits(m)
    for carrier in (m, model):  # the model is changed in place, so the base carries the method too
        with pytest.raises(UserError, match="already"):
            get_peft_model(carrier, LoraConfig(target_modules="all-linear"))
    assert bits(m) == before
    take_steps(m, 1)
    assert bits(m) != before


@every_adding_method
def test_a_float64_model_gets_float64_parameters(case: Case) -> None:
    m = get_peft_model(tiny_model().astype("float64"), case.config)
    assert {str(p.dtype) for p in m.parameters()} == {"float64"}
    take_steps(m, 2)


@each({name: case for name, case in ADDING.items() if case.whole_gradient})
def test_the_gradient_of_the_branch_agrees_with_finite_differences(case: Case) -> None:
    m = get_peft_model(tiny_model(layers=2 if DIM < 38 else LAYERS), case.config).astype("float64")
    disturb(m)
    parameters = [p for name, p in m.trainable_parameters().items() if not name.startswith("head.")]
    assert parameters

    def f(*values: mp.Tensor) -> mp.Tensor:
        own = [p.data for p in parameters]
        for p, value in zip(parameters, values, strict=True):
            p.data = value.data
        try:
            return call(m)
        finally:
            for p, data in zip(parameters, own, strict=True):
                p.data = data

    gradcheck(f, *parameters, directions=1, rtol=1e-5)

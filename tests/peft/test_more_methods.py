"""(IA)³, VeRA, DoRA, PiSSA, LoRA+, BitFit, prompts and prefixes: PEFT's forward pass, and what is true of each alone."""

from __future__ import annotations

import numpy as np
import pytest
from families import D, build, pairs
from tiny import LAYERS, bits, disturb, loss_of, tiny_model
from tiny import logits as tiny_logits

import minipeft as mp
from minipeft import UserError
from minipeft.autograd import Tensor
from minipeft.nn.cache import KVCache
from minipeft.optim import AdamW
from minipeft.peft import (
    BitFitConfig,
    DoraConfig,
    IA3Config,
    LoraConfig,
    LoraPlusConfig,
    PissaConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from minipeft.training import Trainer, TrainingConfig

pytestmark = [
    pytest.mark.numpy_only,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]
IDS = np.array([[2, 5, 9, 13, 3], [2, 7, 8, 3, 11]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
TASKS = {"classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM"}
LM = [("gpt2", "causal-lm"), ("llama", "causal-lm")]


def logits(model, mask=None):
    with mp.no_grad():
        return model.eval()(IDS, mask).numpy().copy()


@pytest.fixture
def theirs(tmp_path, torch):
    """`theirs(family, task, config)`: PEFT's method on the model that `build` makes, everything trainable moved."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    auto = {"classification": "AutoModelForSequenceClassification", "causal-lm": "AutoModelForCausalLM"}

    def make(family, task, kind, **settings):
        build(family, task).save_pretrained(tmp_path / "base")
        base = getattr(transformers, auto[task]).from_pretrained(tmp_path / "base")
        torch.manual_seed(0)
        model = peft.get_peft_model(base, getattr(peft, kind)(task_type=TASKS[task], **settings)).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.requires_grad and ".modules_to_save." not in name:
                    p.add_(0.2 * torch.randn_like(p))
        return model

    return make


def their_logits(model, torch, mask=None):
    with torch.no_grad():
        return model(torch.tensor(IDS), attention_mask=None if mask is None else torch.tensor(mask)).logits.numpy()


def layer_of(model, theirs_name, ours):
    """Our layer in the place of PEFT's."""
    for name, layer in ours.method.layers.items():
        if ours.model.in_file(ours.model.hf_name(f"{name}.weight")[0].removesuffix(".weight")) in theirs_name:
            return layer
    raise AssertionError(theirs_name)


def copy(theirs, ours, leaf, write):
    """Write every parameter of theirs called `leaf` into our layer in its place."""
    found = [(name, p.detach().numpy()) for name, p in theirs.named_parameters() if f".{leaf}." in name]
    assert len(found) == len(ours.method.layers)
    for name, values in found:
        write(layer_of(ours.model, name, ours), values)


# ---- (IA)³


@pytest.mark.parametrize(
    ("family", "targets", "inner"),
    [
        ("bert", r".*(key|value|\d\.output\.dense)", r".*\d\.output\.dense"),
        ("llama", ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    ],
)
def test_ia3_is_pefts(family, targets, inner, theirs, torch):
    other = theirs(family, "classification", "IA3Config", target_modules=targets, feedforward_modules=inner)
    m = get_peft_model(build(family), IA3Config())

    def write(layer, values):
        layer.l.data[...] = values.reshape(-1)

    copy(other, m, "ia3_l", write)
    expected = their_logits(other, torch)
    np.testing.assert_allclose(logits(m), expected, atol=1e-5)
    assert not np.allclose(expected, logits(build(family)), atol=1e-3)
    np.testing.assert_allclose(logits(m.merge_and_unload()), expected, atol=1e-5)


def test_ia3_settings_that_do_not_fit():
    with pytest.raises(UserError, match="not all among the target_modules"):
        get_peft_model(build("llama"), IA3Config(("k_proj",), ("down_proj",)))
    with pytest.raises(UserError, match="Nearest: k_proj"):
        get_peft_model(build("llama"), IA3Config(("kproj",), ()))


# ---- VeRA


@pytest.mark.parametrize(
    ("family", "targets", "ours"),
    [
        ("bert", ["query", "intermediate.dense"], ("q_proj", "up_proj")),
        ("llama", ["q_proj", "k_proj", "down_proj"], ("q_proj", "k_proj", "down_proj")),
    ],
)
def test_vera_is_pefts(family, targets, ours, theirs, torch):
    other = theirs(family, "classification", "VeraConfig", r=6, target_modules=targets)
    m = get_peft_model(build(family), VeraConfig(r=6, target_modules=ours))
    shared = {
        n.split(".")[-2]: p.numpy()
        for n, p in other.named_buffers()
        if n.endswith(("vera_A.default", "vera_B.default"))
    }
    for layer in m.method.layers.values():
        layer.A.data[...] = shared["vera_A"][:, : layer.A.shape[0]].T
        layer.B.data[...] = shared["vera_B"][: layer.B.shape[1]].T
    for leaf, own in (("vera_lambda_d", "d"), ("vera_lambda_b", "b")):
        found = [(name, p.detach().numpy()) for name, p in other.named_parameters() if f".{leaf}" in name]
        assert len(found) == len(m.method.layers)
        for name, values in found:
            getattr(layer_of(m.model, name, m), own).data[...] = values
    expected = their_logits(other, torch)
    np.testing.assert_allclose(logits(m), expected, atol=1e-5)
    assert not np.allclose(expected, logits(build(family)), atol=1e-3)
    np.testing.assert_allclose(logits(m.merge_and_unload()), expected, atol=1e-5)


def test_vera_shares_a_and_b_and_its_seed_rebuilds_them():
    """Pitfall: a projection drawn from the global random state."""
    layers = list(get_peft_model(build("llama"), VeraConfig(r=6)).method.layers.values())
    assert layers[0].A.data.base is layers[-1].A.data.base
    mp.seed(5)
    again = get_peft_model(build("llama", seed=5), VeraConfig(r=6)).method.layers["blocks.0.q_proj"]
    assert np.array_equal(again.A.numpy(), layers[0].A.numpy())
    other = get_peft_model(build("llama"), VeraConfig(r=6, projection_prng_key=1)).method.layers["blocks.0.q_proj"]
    assert not np.array_equal(other.A.numpy(), layers[0].A.numpy())


# ---- DoRA


def test_dora_splits_a_weight_into_length_and_direction():
    m = get_peft_model(build("llama"), DoraConfig(r=2, lora_alpha=5))
    disturb(m)
    for layer in m.method.layers.values():
        V = layer.linear.weight.numpy() + layer.scale * layer.A.numpy() @ layer.B.numpy()
        np.testing.assert_allclose(layer.norm(), np.linalg.norm(V, axis=0), rtol=1e-5)
        layer.merge()
        lengths = np.linalg.norm(layer.linear.weight.numpy(), axis=0)
        np.testing.assert_allclose(lengths, np.abs(layer.magnitude.numpy()), rtol=1e-4)
        np.testing.assert_allclose(layer.linear.weight.numpy() / lengths, V / np.linalg.norm(V, axis=0), atol=1e-5)


def test_doras_gradient_is_that_of_a_constant_norm(torch):
    """As PEFT's and the paper's (section 4.3): the norm is detached."""
    linear = mp.nn.Linear(6, 5)
    layer = DoraConfig(r=2).attach(_Holder(linear)).layers["q_proj"]
    rng = np.random.default_rng(0)
    layer.B.data += rng.standard_normal(layer.B.shape).astype("float32")
    x = rng.standard_normal((4, 6)).astype("float32")
    (layer(Tensor(x)) ** 2).sum().backward()
    A, B, m = (torch.tensor(p.numpy(), requires_grad=True) for p in (layer.A, layer.B, layer.magnitude))
    V = torch.tensor(linear.weight.numpy()) + layer.scale * A @ B
    y = torch.tensor(x) @ (V * (m / V.norm(dim=0).detach())) + torch.tensor(linear.bias.numpy())
    (y**2).sum().backward()
    for own, other in ((layer.A, A), (layer.B, B), (layer.magnitude, m)):
        np.testing.assert_allclose(own.grad, other.grad.numpy(), rtol=1e-4, atol=1e-5)


class _Holder(mp.nn.Module):
    def __init__(self, linear):
        self.q_proj = linear
        self.v_proj = mp.nn.Linear(6, 5)


# ---- PiSSA


def test_pissa_starts_from_the_largest_singular_directions_as_pefts_does(theirs, torch):
    other = theirs(
        "llama",
        "causal-lm",
        "LoraConfig",
        r=2,
        lora_alpha=5,
        target_modules=["q_proj", "v_proj"],
        init_lora_weights="pissa",
    )
    m = get_peft_model(build("llama", "causal-lm"), PissaConfig(r=2, lora_alpha=5))
    for layer in m.method.layers.values():
        U, S, Vt = np.linalg.svd(layer.linear.weight.numpy())
        np.testing.assert_allclose(
            layer.scale * layer.A.numpy() @ layer.B.numpy(), U[:, :2] * S[:2] @ Vt[:2], atol=1e-5
        )
    copy(other, m, "lora_A", lambda layer, values: layer.A.data.__setitem__(..., values.T))
    copy(other, m, "lora_B", lambda layer, values: layer.B.data.__setitem__(..., values.T))
    # PEFT has subtracted A₀ B₀ from W in float32
    np.testing.assert_allclose(logits(m), their_logits(other, torch), atol=1e-4)


def test_pissa_leaves_the_base_as_it_is_and_refuses_a_rank_that_could_not_be_saved():
    model = tiny_model()
    before = bits(model)
    m = get_peft_model(model, PissaConfig(r=2))
    disturb(m)
    after = {name.removeprefix("model.").replace(".linear.", "."): b for name, b in bits(m).items()}
    assert {name for name in before if after[name] != before[name]} == {n for n in before if n.startswith("head.")}
    with pytest.raises(UserError, match="saved as LoRA of rank 2r"):
        get_peft_model(tiny_model(), PissaConfig(r=9))


# ---- LoRA+


def test_loraplus_moves_b_lambda_times_as_fast_and_the_rest_as_before():
    def one_step(config):
        m = get_peft_model(tiny_model(), config)
        disturb(m)
        before = {n: p.numpy().copy() for n, p in m.trainable_parameters().items()}
        optimizer = AdamW(m.parameters(), lr=1e-3, weight_decay=0.0, rates=m.method.rates())
        loss_of(m).backward()
        optimizer.step()
        return {n: p.numpy() - before[n] for n, p in m.trainable_parameters().items()}

    plain, plus = one_step(LoraConfig(r=2)), one_step(LoraPlusConfig(r=2, loraplus_lr_ratio=4))
    for name, change in plain.items():
        np.testing.assert_allclose(plus[name], (4 if name.endswith(".B") else 1) * change, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_trainer_gives_b_its_rate_whoever_works(workers):
    from tiny import DATA, PAD

    def train(config):
        m = get_peft_model(tiny_model(), config)
        Trainer(m, DATA, PAD, TrainingConfig(lr=1e-3, epochs=1, batch_size=40, warmup=0, clip=0, workers=workers)).run()
        return m

    def moved(m):
        return [np.abs(layer.B.numpy()).mean() for layer in m.method.layers.values()]

    plain, plus = train(LoraConfig(r=2)), train(LoraPlusConfig(r=2, loraplus_lr_ratio=8))
    np.testing.assert_allclose(moved(plus), 8 * np.array(moved(plain)), rtol=1e-3)
    same = [n for n in plain.trainable_parameters() if not n.endswith(".B")]
    for name in same:
        np.testing.assert_allclose(
            plus.trainable_parameters()[name].numpy(), plain.trainable_parameters()[name].numpy(), atol=1e-6
        )


def test_rates_of_groups_are_torchs(torch):
    """AdamW with weight decay, several steps, against torch's parameter groups."""
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape).astype("float32") for shape in ((3, 2), (2, 4), (3, 2), (5,))]
    ours = [mp.nn.Parameter(mp.backend.active().asarray(v)) for v in values]
    others = [torch.nn.Parameter(torch.tensor(v)) for v in values]
    optimizer = AdamW(ours, lr=0.01, weight_decay=0.1, rates={ours[1]: 16.0, ours[2]: 0.5})
    groups = [(others[:1] + others[3:], 0.01), ([others[1]], 0.16), ([others[2]], 0.005)]
    other = torch.optim.AdamW([{"params": p, "lr": lr} for p, lr in groups], weight_decay=0.1)
    for _ in range(3):
        for p, q in zip(ours, others, strict=True):
            g = rng.standard_normal(p.shape).astype("float32")
            p.grad[...] = g
            q.grad = torch.tensor(g)
        optimizer.step()
        other.step()
    for p, q in zip(ours, others, strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_loraplus_in_peft_is_lora(tmp_path):
    m = get_peft_model(build("llama"), LoraPlusConfig(r=2, lora_alpha=5))
    disturb(m)
    m.save_pretrained(tmp_path)
    again = mp.peft.PeftModel.from_pretrained(build("llama"), tmp_path)
    assert again.config == LoraConfig(r=2, lora_alpha=5, target_modules=tuple(again.method.layers))
    assert np.array_equal(logits(again), logits(m))
    with pytest.raises(UserError, match="loraplus_lr_ratio=0"):
        LoraPlusConfig(loraplus_lr_ratio=0)


# ---- BitFit


def test_bitfit_trains_biases_only_and_gives_the_base_back():
    m = get_peft_model(build("bert"), BitFitConfig())
    assert all(n.endswith(".bias") or n.startswith("head.") for n in m.trainable_parameters())
    trained = {n for n in m.trainable_parameters() if not n.startswith("head.")}
    assert trained == {
        n for n, _ in build("bert").named_parameters() if n.endswith(".bias") and not n.startswith("head.")
    }
    with pytest.raises(UserError, match="no part"), m.disable_adapter():
        raise UserError("no part")
    with pytest.raises(UserError, match="this Llama has none"):
        get_peft_model(build("llama"), BitFitConfig())


def test_bitfit_is_one_of_several_and_is_not_saved_while_it_is_off(tmp_path):
    m = get_peft_model(build("bert"), BitFitConfig(), adapter_name="biases")
    disturb(m)
    with_biases = logits(m)
    m.add_adapter("lora", LoraConfig(r=2))
    m.set_adapter("lora")
    assert np.array_equal(logits(m), logits(build("bert")))
    m.set_adapter("biases")
    assert np.array_equal(logits(m), with_biases)
    with m.disable_adapter(), pytest.raises(UserError, match="switched off"):
        m.save_pretrained(tmp_path)


# ---- prompt and prefix tuning


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "padded"])
@pytest.mark.parametrize(("family", "task"), pairs())
def test_prompt_tuning_is_pefts(family, task, mask, theirs, torch):
    other = theirs(family, task, "PromptTuningConfig", num_virtual_tokens=3)
    m = get_peft_model(build(family, task), PromptTuningConfig(3))
    m.method.prompt.data[...] = other.prompt_encoder["default"].embedding.weight.detach().numpy()
    expected = their_logits(other, torch, mask)
    got = logits(m, mask)
    if task == "causal-lm":
        expected = expected[:, 3:]
    where = slice(None)
    if mask is not None and family != "bert":  # given rows and no ids, transformers' classifiers read the padding
        where = MASK.astype(bool) if task == "causal-lm" else slice(0, 1)
    np.testing.assert_allclose(got[where], expected[where], atol=1e-5)
    assert not np.allclose(got, logits(build(family, task), mask), atol=1e-3)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "padded"])
@pytest.mark.parametrize(("family", "task"), LM)  # PEFT has none for the classifiers of this transformers
def test_prefix_tuning_is_pefts(family, task, mask, theirs, torch):
    other = theirs(family, task, "PrefixTuningConfig", num_virtual_tokens=3)
    m = get_peft_model(build(family, task), PrefixTuningConfig(3))
    P = other.prompt_encoder["default"].embedding.weight.detach().numpy().reshape(3, LAYERS, 2, -1)
    m.method.keys.data[...], m.method.values.data[...] = P[:, :, 0].swapaxes(0, 1), P[:, :, 1].swapaxes(0, 1)
    expected, got = their_logits(other, torch, mask), logits(m, mask)
    where = slice(None) if mask is None else MASK.astype(bool)
    np.testing.assert_allclose(got[where], expected[where], atol=1e-5)
    assert not np.allclose(got, logits(build(family, task), mask), atol=1e-3)


@pytest.mark.parametrize(("family", "task"), [pair for pair in pairs() if pair[0] != "bert"])
def test_a_prefix_made_of_words_is_as_if_they_had_been_read(family, task):
    """In a causal model: the keys and values of the first tokens as P, and then the rest of the text."""
    base = build(family, task).eval()
    with mp.no_grad():
        whole = base(IDS[:1]).numpy()
        cache = KVCache(LAYERS)
        base(IDS[:1, :3], cache=cache)
        m = get_peft_model(base, PrefixTuningConfig(3)).eval()
        for i, layer in enumerate(cache.layers):
            m.method.keys.data[i], m.method.values.data[i] = layer.k[0, :3], layer.v[0, :3]
        rest = m(IDS[:1, 3:]).numpy()
    np.testing.assert_allclose(rest, whole[:, 3:] if task == "causal-lm" else whole, atol=1e-5)


@pytest.mark.parametrize("config", [PromptTuningConfig(3), PrefixTuningConfig(3)], ids=["prompt", "prefix"])
@pytest.mark.parametrize(("family", "task"), LM)
def test_with_a_cache_the_text_comes_after_them_too(family, task, config):
    m = get_peft_model(build(family, task), config)
    disturb(m, std=0.5)
    whole = logits(m)
    with mp.no_grad():
        cache = KVCache(LAYERS)
        parts = [m(IDS[:, :3], cache=cache).numpy(), m(IDS[:, 3:], cache=cache, last=True).numpy()]
    np.testing.assert_allclose(parts[0], whole[:, :3], atol=1e-5)
    np.testing.assert_allclose(parts[1], whole[:, -1:], atol=1e-5)


@pytest.mark.parametrize("config", [PromptTuningConfig(3), PrefixTuningConfig(3)], ids=["prompt", "prefix"])
@pytest.mark.parametrize(("family", "task"), pairs())
def test_padding_does_not_change_them(family, task, config):
    m = get_peft_model(build(family, task), config)
    disturb(m)
    padded = np.concatenate([IDS, np.zeros((2, 3), dtype=IDS.dtype)], axis=1)
    mask = np.concatenate([np.ones_like(IDS), np.zeros((2, 3), dtype=IDS.dtype)], axis=1)
    with mp.no_grad():
        got = m.eval()(padded, mask).numpy()
    np.testing.assert_allclose(got[:, :5] if task == "causal-lm" else got, logits(m), atol=1e-5)


def test_segments_and_positions_come_after_the_prompt():
    """The text keeps its segments; its first word has position n."""
    from tiny import BATCH

    m = get_peft_model(tiny_model(), PromptTuningConfig(2))
    model = m.model
    m.method.prompt.data[...] = model.embed.word.weight.data[[7, 8]]  # as if the text began with two words more
    ids = np.concatenate([np.array([[7, 8]] * len(BATCH)), BATCH.input_ids], axis=1)
    mask = np.concatenate([np.ones((len(BATCH), 2), dtype=int), BATCH.attention_mask], axis=1)
    types = np.concatenate([np.zeros((len(BATCH), 2), dtype=int), BATCH.token_type_ids], axis=1)
    with mp.no_grad():
        expected = model(ids, mask, types).numpy()
    np.testing.assert_allclose(tiny_logits(m), expected, atol=1e-5)


def test_prompts_and_prefixes_that_cannot_be():
    for kind in (PromptTuningConfig, PrefixTuningConfig):
        with pytest.raises(UserError, match="1 row or more"):
            kind(0)
        with pytest.raises(UserError, match="reads at most 12"):
            get_peft_model(build("gpt2"), kind(12))
        with pytest.raises(UserError, match="at most 12"):
            logits(get_peft_model(build("gpt2"), kind(8)))
    with pytest.raises(UserError, match="prompt init"):
        PromptTuningConfig(init="text")


def test_a_prompt_starts_as_words_of_the_vocabulary():
    m = get_peft_model(build("gpt2"), PromptTuningConfig(4))
    table = build("gpt2").embed.word.weight.numpy()
    assert all((row == table).all(axis=1).any() for row in m.method.prompt.numpy())
    assert m.method.prompt.shape == (4, D)

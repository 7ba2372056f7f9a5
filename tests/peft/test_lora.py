"""LoRA against HF PEFT on the same weights, and against its own formulas."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import (
    BATCH,
    CLASSES,
    DATA,
    LAYERS,
    PAD,
    POSITIONS,
    TYPES,
    VOCAB,
    D,
    bits,
    disturb,
    logits,
    take_steps,
    tiny_model,
)

import minipeft as mp
from minipeft import UserError
from minipeft.autograd import Tensor, functional
from minipeft.data import collate
from minipeft.models import load_model
from minipeft.nn import Linear
from minipeft.optim import AdamW
from minipeft.peft import LoraConfig, PeftModel, get_peft_model
from minipeft.peft.lora import LoRALinear

# ---- against HF PEFT

HF_BLOCK = {
    "q_proj": "attention.self.query",
    "k_proj": "attention.self.key",
    "v_proj": "attention.self.value",
    "o_proj": "attention.output.dense",
    "up_proj": "intermediate.dense",
    "down_proj": "output.dense",
    "attn_norm": "attention.output.LayerNorm",
    "mlp_norm": "output.LayerNorm",
}
SETTINGS = {
    "default": {},
    "rslora": {"use_rslora": True, "init": "gaussian"},
    "all-linear": {"target_modules": "all-linear", "r": 4},
    "one-block": {"target_modules": ("blocks.1.q_proj", "down_proj")},
    "bias-of-targets": {"bias": "lora_only"},
    "bias-all": {"bias": "all"},
}
both = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


@pytest.fixture(scope="module")
def libraries() -> SimpleNamespace:
    """torch, transformers and peft, or a skip that says which one is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = ("torch", "transformers", "peft")
        found = SimpleNamespace(
            **{name: pytest.importorskip(name, reason=f"the comparison with HF PEFT needs {name}") for name in names}
        )
    found.torch.set_num_threads(1)
    return found


class Pair:
    """The same small BERT with the same LoRA, ours and Hugging Face's."""

    def __init__(self, libraries: SimpleNamespace, folder: Path, settings: dict[str, Any]) -> None:
        torch, transformers, peft = libraries.torch, libraries.transformers, libraries.peft
        self.torch = torch
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=VOCAB,
            hidden_size=D,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=POSITIONS,
            type_vocab_size=TYPES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=CLASSES,
            initializer_range=0.3,
        )
        base = transformers.BertForSequenceClassification(config)
        with torch.no_grad():
            for p in base.parameters():
                if p.ndim == 1:
                    p += 0.2 * torch.randn(p.shape)
        base.save_pretrained(folder)

        config = LoraConfig(**{"r": 3, "lora_alpha": 5, **settings})
        self.ours = get_peft_model(load_model(folder), config)
        layers = {name: m for name, m in self.ours.model.named_modules() if isinstance(m, LoRALinear)}
        self.theirs = peft.get_peft_model(
            base,
            peft.LoraConfig(
                task_type="SEQ_CLS",
                r=config.r,
                lora_alpha=config.lora_alpha,
                target_modules=[_hf_module(name) for name in layers],
                use_rslora=config.use_rslora,
                bias=config.bias,
                modules_to_save=["pooler", "classifier"],
            ),
        )
        their_parameters = dict(self.theirs.named_parameters())
        self.tensors = {}  # of each trainable tensor: ours, theirs, whether theirs is transposed
        for name, p in self.ours.trainable_parameters().items():
            theirs, transposed = _hf_parameter(name)
            self.tensors[name] = (p, their_parameters[theirs], transposed)
        with torch.no_grad():
            for name, (p, q, transposed) in self.tensors.items():
                if name.endswith(
                    (".A", ".B")
                ):  # the starts are random, or zero: take random ones, the same on both sides
                    q.copy_(torch.randn(q.shape) * 0.2)
                    p.data[...] = q.numpy().T if transposed else q.numpy()

    def loss(self, rows: range) -> tuple[Any, Any]:
        """The loss of some rows, ours and theirs."""
        batch = collate(DATA, rows, PAD)
        mine = functional.cross_entropy(
            self.ours(batch.input_ids, batch.attention_mask, batch.token_type_ids), batch.labels
        )
        return mine, self.theirs(**_torch_inputs(self.torch, batch), labels=self.torch.tensor(batch.labels).long()).loss

    def logits(self) -> tuple[np.ndarray, np.ndarray]:
        """The logits of BATCH, ours and theirs."""
        with self.torch.no_grad():
            theirs = self.theirs(**_torch_inputs(self.torch, BATCH)).logits.numpy()
        return logits(self.ours), theirs


def _torch_inputs(torch: Any, batch: Any) -> dict[str, Any]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: torch.tensor(getattr(batch, name)).long() for name in names}


def _hf_module(ours: str) -> str:
    _, n, name = ours.split(".")
    return f"bert.encoder.layer.{n}.{HF_BLOCK[name]}"


def _hf_parameter(ours: str) -> tuple[str, bool]:
    """Theirs, and whether it is the transpose of ours."""
    part, _, leaf = ours.rpartition(".")
    prefix = "base_model.model"
    if part == "head.pooler":
        return f"{prefix}.bert.pooler.modules_to_save.default.dense.{leaf}", leaf == "weight"
    if part == "head.classifier":
        return f"{prefix}.classifier.modules_to_save.default.{leaf}", leaf == "weight"
    if part == "embed.norm":
        return f"{prefix}.bert.embeddings.LayerNorm.{leaf}", False
    if leaf in "AB":
        return f"{prefix}.{_hf_module(part)}.lora_{leaf}.default.weight", True
    if part.endswith(".linear"):
        return f"{prefix}.{_hf_module(part.removesuffix('.linear'))}.base_layer.{leaf}", False
    return f"{prefix}.{_hf_module(part)}.{leaf}", False


@pytest.fixture
def pair(libraries: SimpleNamespace, tmp_path: Path, settings: dict[str, Any]) -> Pair:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Pair(libraries, tmp_path, settings)


@both
def test_pefts_logits_counts_and_merged_logits(pair: Pair) -> None:
    mine, theirs = pair.logits()
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    trained = sum(p.numel() for p in pair.theirs.parameters() if p.requires_grad)
    assert pair.ours.count_parameters().trainable == trained
    pair.ours.merge_adapter()
    pair.theirs.merge_adapter()
    merged, theirs_merged = pair.logits()
    np.testing.assert_allclose(merged, theirs_merged, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(merged, mine, rtol=1e-4, atol=1e-5)


@both
def test_pefts_gradients_of_every_trainable_tensor(pair: Pair) -> None:
    mine, theirs = pair.loss(range(8))
    mine.backward()
    theirs.backward()
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, (p, q, transposed) in pair.tensors.items():
        expected = q.grad.numpy().T if transposed else q.grad.numpy()
        np.testing.assert_allclose(p.grad, expected, rtol=1e-3, atol=2e-6, err_msg=name)


# bias="all" trains the key biases, whose gradient is zero but for rounding: Adam makes full steps of it.
@pytest.mark.parametrize("settings", [v for k, v in SETTINGS.items() if k != "bias-all"])
def test_three_adamw_steps_end_where_torch_and_peft_do(pair: Pair) -> None:
    mine = AdamW(pair.ours.parameters(), lr=0.01, weight_decay=0.1)
    trained = [p for p in pair.theirs.parameters() if p.requires_grad]
    theirs = pair.torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    for step in range(3):
        mine.zero_grad()
        theirs.zero_grad()
        for loss in pair.loss(range(8 * step, 8 * step + 8)):
            loss.backward()
        mine.step()
        theirs.step()
    for name, (p, q, transposed) in pair.tensors.items():
        expected = q.detach().numpy().T if transposed else q.detach().numpy()
        np.testing.assert_allclose(p.numpy(), expected, rtol=1e-3, atol=2e-4, err_msg=name)
    np.testing.assert_allclose(*pair.logits(), rtol=1e-2, atol=2e-3)


# ---- the layer


def layer(d_in: int = 6, d_out: int = 9, **settings: Any) -> LoRALinear:
    mp.seed(0)
    made = LoRALinear(
        Linear(d_in, d_out), LoraConfig(**{"r": 2, "lora_alpha": 5, **settings}), mp.backend.random.stream("x")
    )
    rng = np.random.default_rng(0)
    for parameter in made.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    return made


X = np.random.default_rng(3).standard_normal((4, 5, 6)).astype(np.float32)


@pytest.mark.parametrize(("settings", "scale"), [({}, 5 / 2), ({"use_rslora": True}, 5 / math.sqrt(2))])
def test_the_layer_is_XW_plus_b_plus_s_XAB(settings: dict[str, Any], scale: float) -> None:
    """Pitfall: alpha lost. s = α/r, or α/√r."""
    lora = layer(**settings)
    W, b, A, B = (p.numpy().astype(np.float64) for p in (lora.linear.weight, lora.linear.bias, lora.A, lora.B))
    np.testing.assert_allclose(lora(Tensor(X)).numpy(), X @ W + b + scale * (X @ A @ B), rtol=1e-4, atol=1e-4)
    lora.merge()
    np.testing.assert_allclose(lora.linear.weight.numpy(), W + scale * A @ B, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lora(Tensor(X)).numpy(), X @ W + b + scale * (X @ A @ B), rtol=1e-4, atol=1e-4)


def test_pitfall_unmerge_keeps_W0_and_does_not_subtract() -> None:
    lora = layer()
    lora.A.data *= 1e6  # W₀ is far below the rounding of s · A B: subtracting could not bring it back
    before = lora.linear.weight.numpy().tobytes()
    lora.merge()
    merged = lora.linear.weight.numpy().tobytes()
    lora.merge()
    assert lora.linear.weight.numpy().tobytes() == merged != before
    lora.unmerge()
    assert lora.linear.weight.numpy().tobytes() == before


def test_dropout_acts_on_the_branch_alone() -> None:
    lora = layer(lora_dropout=0.5)
    with_branch = lora(Tensor(X)).numpy()
    assert not np.array_equal(lora(Tensor(X)).numpy(), with_branch)  # another mask
    lora.B.data[...] = 0
    assert np.array_equal(lora(Tensor(X)).numpy(), lora.linear(Tensor(X)).numpy())


def test_pitfall_dropout_still_on_in_evaluation() -> None:
    lora, plain = layer(lora_dropout=0.5), layer()
    lora.eval()
    assert np.array_equal(lora(Tensor(X)).numpy(), plain(Tensor(X)).numpy())
    m = get_peft_model(tiny_model(), LoraConfig(lora_dropout=0.5))
    disturb(m)
    m.eval()
    assert np.array_equal(logits(m), logits(m))
    m.train()
    assert not np.array_equal(logits(m), logits(m))


def test_dropout_keeps_the_branch_in_the_mean() -> None:
    lora, plain = layer(lora_dropout=0.3), layer()
    rows = Tensor(np.broadcast_to(X[0, 0], (20_000, 6)).copy())
    expected = plain(rows).numpy()[0]
    spread = lora(rows).numpy().std(axis=0) / math.sqrt(20_000)
    assert (np.abs(lora(rows).numpy().mean(axis=0) - expected) < 5 * spread + 1e-4).all()


# ---- the start


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_pitfall_A_is_not_zero_and_B_is(init: str) -> None:
    m = get_peft_model(tiny_model(), LoraConfig(init=init, target_modules="all-linear"))
    layers = [module for _, module in m.named_modules() if isinstance(module, LoRALinear)]
    assert len(layers) == 6 * LAYERS
    for made in layers:
        assert (made.A.numpy() != 0).all()
        assert (made.B.numpy() == 0).all()
    starts = {made.A.numpy().tobytes() for made in layers}
    assert len(starts) == len(layers)  # no two layers start alike


def test_kaiming_fills_plus_minus_one_over_root_in() -> None:
    mp.seed(0)
    A = LoRALinear(Linear(400, 300), LoraConfig(r=50), mp.backend.random.stream("x")).A.numpy()
    bound = 1 / math.sqrt(400)
    assert np.abs(A).max() <= bound
    assert A.max() > 0.999 * bound
    assert A.min() < -0.999 * bound
    assert A.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert A.mean() == pytest.approx(0, abs=4 * float(A.std()) / math.sqrt(A.size))


def test_gaussian_has_the_standard_deviation_one_over_r() -> None:
    mp.seed(0)
    A = LoRALinear(Linear(400, 300), LoraConfig(r=50, init="gaussian"), mp.backend.random.stream("x")).A.numpy()
    assert A.std() == pytest.approx(1 / 50, rel=0.02)
    assert A.mean() == pytest.approx(0, abs=4 * float(A.std()) / math.sqrt(A.size))
    assert np.mean(np.abs(A) > 2 / 50) == pytest.approx(0.0455, abs=0.006)  # a normal distribution's tails


# ---- where


def changed_weights(config: LoraConfig) -> dict[str, np.ndarray]:
    """The weights that training and merging have changed, as differences."""
    m = get_peft_model(tiny_model(), config)
    take_steps(m, 4)
    plain, base = m.merge_and_unload().state_dict(), tiny_model().state_dict()
    differences = {name: plain[name] - base[name] for name in base if not name.startswith("head.")}
    return {name: change for name, change in differences.items() if change.any()}


def test_pitfall_rank_r_on_q_and_on_v_each() -> None:
    """Rank r on a fused qkv would be another thing: here q and v change by rank r each, and k not at all."""
    changes = changed_weights(LoraConfig(r=2))
    assert set(changes) == {f"blocks.{n}.{p}_proj.weight" for n in range(LAYERS) for p in "qv"}
    for change in changes.values():
        s = np.linalg.svd(change, compute_uv=False)
        assert s[1] > 1e-3 * s[0]
        assert s[2] < 1e-4 * s[0]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("q_proj", {f"blocks.{n}.q_proj" for n in range(LAYERS)}),
        (("blocks.1.k_proj",), {"blocks.1.k_proj"}),
        (("2.o_proj", "up_proj"), {"blocks.2.o_proj", *(f"blocks.{n}.up_proj" for n in range(LAYERS))}),
        (
            "all-linear",
            {f"blocks.{n}.{p}_proj" for n in range(LAYERS) for p in ("q", "k", "v", "o", "up", "down")},
        ),
    ],
)
def test_the_targets_and_no_others(targets: Any, expected: set[str]) -> None:
    m = get_peft_model(tiny_model(), LoraConfig(target_modules=targets))
    assert {name for name, module in m.model.named_modules() if isinstance(module, LoRALinear)} == expected


@pytest.mark.parametrize(
    ("targets", "missing", "nearest"),
    [
        ("query_proj", "query_proj", "q_proj"),
        (("q_proj", "v_prj"), "v_prj", "v_proj"),  # one of several misses
        (("q_proj", "blocks.7.v_proj"), "blocks.7.v_proj", r"blocks\.\d\.v_proj"),
        ("all_linear", "all_linear", "all-linear"),
        ("proj", "proj", "q_proj"),  # a name is matched whole, or from a dot on
        ("attn_norm", "attn_norm", "known"),  # exists, and is no linear layer
        ("classifier", "classifier", "known"),  # the head is trained whole
    ],
)
def test_pitfall_a_wrong_target_is_silently_ignored(targets: Any, missing: str, nearest: str) -> None:
    model = tiny_model()
    before = bits(model)
    with pytest.raises(UserError, match=f"(?is){missing}.*{nearest}"):
        get_peft_model(model, LoraConfig(target_modules=targets))
    assert bits(model) == before
    assert not any(isinstance(module, LoRALinear) for _, module in model.named_modules())


def test_no_targets_is_an_error() -> None:
    with pytest.raises(UserError, match="all-linear"):
        get_peft_model(tiny_model(), LoraConfig(target_modules=()))


def test_a_rank_that_does_not_fit_is_an_error_that_leaves_the_model_as_it_was() -> None:
    model = tiny_model(d_ff=4)
    before = logits(model)
    with pytest.raises(UserError, match=r"r=8.*rank 4"):
        get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))  # q, k, v and o would have taken it
    assert not any(isinstance(module, LoRALinear) for _, module in model.named_modules())
    m = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert np.array_equal(logits(m), before)
    assert m.count_parameters().method == LAYERS * 4 * (4 * 2 * D + 2 * (D + 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r=0"),
        ({"r": -1}, "r=-1"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0"),
        ({"lora_dropout": -0.1}, "lora_dropout=-0.1"),
        ({"init": "gausian"}, "gaussian"),
        ({"bias": "some"}, "lora_only"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoraConfig(**settings)


# ---- unloading


def test_a_merged_and_unloaded_bert_saves_and_loads(tmp_path: Path) -> None:
    hf = {
        "model_type": "bert",
        "vocab_size": VOCAB,
        "hidden_size": D,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": TYPES,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    mp.seed(0)
    m: PeftModel = get_peft_model(
        mp.models.bert.Bert(hf, "classification", ("no", "perhaps", "yes"), None),
        LoraConfig(target_modules="all-linear"),
    )
    disturb(m)
    before = logits(m)
    plain = m.merge_and_unload()
    plain.save_pretrained(tmp_path / "merged")
    loaded = load_model(tmp_path / "merged")
    assert loaded.labels == ("no", "perhaps", "yes")
    assert np.array_equal(logits(loaded), logits(plain))
    np.testing.assert_allclose(logits(loaded), before, rtol=1e-4, atol=1e-5)
    assert bits(loaded) == bits(plain)

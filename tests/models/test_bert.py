"""BERT against transformers: values, gradients, steps, files; and every way in which a folder can be broken."""

from __future__ import annotations

import json
import shutil
import warnings
from typing import Any

import numpy as np
import pytest

from minipeft.autograd import functional
from minipeft.backend.storage import read_tensors, write_tensors
from minipeft.errors import UserError
from minipeft.models import load_model
from minipeft.optim import AdamW

LABELS = {0: "calm", 1: "angry", 2: "glad"}
CONFIG = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
}
rng = np.random.default_rng(0)
MASK = (np.arange(9) < np.array([[9], [4], [7], [1]])).astype(int)
IDS = rng.integers(1, 50, (4, 9)) * MASK  # 0 pads; transformers keeps that row's gradient at zero wherever it stands
SEGMENTS = rng.integers(0, 2, (4, 9))
TARGETS = np.array([2, 0, 1, 2])
INPUTS = (IDS, MASK, SEGMENTS)


@pytest.fixture(scope="session")
def transformers(torch) -> Any:
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


@pytest.fixture(scope="session")
def folders(torch, transformers, tmp_path_factory) -> dict[str, Any]:
    """Small BERTs with random numbers everywhere, as transformers saves them: {activation: folder}."""
    made = {}
    for activation in ("gelu", "gelu_new"):
        torch.manual_seed(0)
        config = transformers.BertConfig(**CONFIG, hidden_act=activation, id2label=LABELS)
        model = transformers.BertForSequenceClassification(config)
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(std=0.3)
        folder = tmp_path_factory.mktemp("bert") / activation
        model.save_pretrained(folder)
        made[activation] = folder
    return made


@pytest.fixture
def folder(folders, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(folders["gelu"], tmp_path / "model")


def theirs(torch, transformers, folder, double=False, **options):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float64 if double else torch.float32, **options
    )
    return model.eval()


def call(torch, model, inputs=INPUTS, **options):
    names = ("input_ids", "attention_mask", "token_type_ids")
    return model(**{n: torch.tensor(a) for n, a in zip(names, inputs, strict=False)}, **options)


def oriented(ours: str, array):
    """Their layout -> ours: linear weights are (out, in) there."""
    linear = ours.endswith("_proj.weight") or (ours.startswith("head.") and array.ndim == 2)
    return array.T if linear else array


def as_ours(model, tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """Their tensors under our names and in our layout."""
    names = {ours: model.in_file(theirs) for (theirs, _), (ours,) in model.layout().items()}
    return {ours: oriented(ours, tensors[name].detach().numpy()) for ours, name in names.items()}


def loss_of(model):
    return functional.cross_entropy(model(*INPUTS), TARGETS)


# ---- the same function


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@pytest.mark.parametrize("inputs", [INPUTS, (IDS, MASK), (IDS,), (IDS[:1, :1],)], ids=len)
def test_logits_are_transformers(torch, transformers, folders, activation, inputs):
    model = load_model(folders[activation]).eval()
    with torch.no_grad():
        expected = call(torch, theirs(torch, transformers, folders[activation]), inputs).logits.numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(model(*inputs).data, expected, atol=1e-5)


def test_every_layers_hidden_states_are_transformers(torch, transformers, folders):
    model = load_model(folders["gelu"], task="features").eval()
    with torch.no_grad():
        reference = theirs(torch, transformers, folders["gelu"])
        expected = [h.numpy() for h in call(torch, reference, output_hidden_states=True).hidden_states]
    x = model.embed(IDS, SEGMENTS)
    hidden = [x]
    for block in model.blocks:
        hidden.append(block(hidden[-1], MASK))
    assert len(hidden) == len(expected) == 4
    for ours, reference in zip(hidden, expected, strict=True):
        np.testing.assert_allclose(ours.data, reference, atol=1e-5)
    np.testing.assert_array_equal(model(*INPUTS).data, hidden[-1].data)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_every_parameters_gradient_is_transformers(torch, transformers, folders, dtype, tolerance, activation):
    model = load_model(folders[activation]).eval().astype(dtype)
    reference = theirs(torch, transformers, folders[activation], double=dtype == "float64")
    loss = loss_of(model)
    loss.backward()
    expected_loss = call(torch, reference, labels=torch.tensor(TARGETS)).loss
    expected_loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5 if dtype == "float32" else 1e-12)

    expected = as_ours(model, {name: p.grad for name, p in reference.named_parameters()})
    parameters = dict(model.named_parameters())
    assert parameters.keys() == expected.keys()
    largest = max(np.abs(g).max() for g in expected.values())
    for name, g in expected.items():
        # a key's bias has no influence (softmax does not see a shift): its gradient is rounding, in both
        size = max(np.abs(g).max(), 1e-3 * largest)
        np.testing.assert_allclose(parameters[name].grad, g, rtol=0, atol=tolerance * size, err_msg=name)


def test_three_steps_of_adamw_are_torchs(torch, transformers, folders):
    model = load_model(folders["gelu"]).eval().astype("float64")
    reference = theirs(torch, transformers, folders["gelu"], double=True)
    options = {"lr": 1e-3, "weight_decay": 0.1}
    optimizer = AdamW(model.parameters(), **options)
    torchs = torch.optim.AdamW(reference.parameters(), **options)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        torchs.zero_grad()
        call(torch, reference, labels=torch.tensor(TARGETS)).loss.backward()
        torchs.step()
    expected = as_ours(model, dict(reference.named_parameters()))
    for name, array in model.state_dict().items():
        assert np.abs(array - before[name]).max() > 1e-4, name
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-9, err_msg=name)


# ---- folders


def test_what_a_folder_tells(folders):
    model = load_model(folders["gelu"])
    assert model.labels == ("calm", "angry", "glad")
    assert model.tokenizer is None
    assert (model.config.layers, model.config.heads, model.config.dropout) == (3, 4, 0.1)
    assert model.training
    assert load_model(folders["gelu"], dropout=0.0).config.attention_dropout == 0
    assert load_model(folders["gelu"], dropout=0.0).head.dropout.p == 0


def test_saved_by_us_it_loads_in_transformers_and_back_bit_by_bit(torch, transformers, folders, tmp_path):
    model = load_model(folders["gelu"]).eval()
    for p in model.parameters():
        p.data[...] = np.random.default_rng(p.numel()).standard_normal(p.shape) * 0.3
    model.save_pretrained(tmp_path / "new")
    logits = model(*INPUTS).data

    reference, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "new", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert reference.config.id2label == LABELS
    with torch.no_grad():
        np.testing.assert_allclose(call(torch, reference.eval()).logits.numpy(), logits, atol=1e-5)

    again = load_model(tmp_path / "new").eval()
    assert again.labels == model.labels
    for name, array in model.state_dict().items():
        assert again.state_dict()[name].tobytes() == array.tobytes(), name
    np.testing.assert_array_equal(again(*INPUTS).data, logits)


def test_features_are_saved_as_a_bare_bert(torch, transformers, folders, tmp_path):
    model = load_model(folders["gelu"], task="features").eval()
    model.save_pretrained(tmp_path / "new")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file has no pooler, and transformers says so
        reference = transformers.AutoModel.from_pretrained(tmp_path / "new", attn_implementation="eager").eval()
    with torch.no_grad():
        expected = call(torch, reference).last_hidden_state.numpy()
    np.testing.assert_allclose(model(*INPUTS).data, expected, atol=1e-5)


def test_a_folder_without_a_head_gets_a_fresh_one(torch, transformers, folders, tmp_path):
    reference = theirs(torch, transformers, folders["gelu"])
    reference.bert.save_pretrained(tmp_path / "bare")
    model = load_model(tmp_path / "bare", labels=["no", "yes"])
    full = load_model(folders["gelu"])
    assert model.labels == ("no", "yes")
    assert model(*INPUTS).shape == (4, 2)
    np.testing.assert_array_equal(model.blocks[2].q_proj.weight.data, full.blocks[2].q_proj.weight.data)
    np.testing.assert_array_equal(model.head.pooler.weight.data, full.head.pooler.weight.data)
    assert model.head.classifier.weight.data.std() == pytest.approx(0.02, rel=0.5)
    assert load_model(tmp_path / "bare").labels == ("calm", "angry", "glad"), "the config's own labels"


def edit_config(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        config = {k: v for k, v in (config | changes).items() if v is not ...}
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def edit_tensors(change):
    def edit(folder):
        tensors = dict(read_tensors(folder / "model.safetensors")[0])
        change(tensors)
        write_tensors(folder / "model.safetensors", tensors)

    return edit


def write_config(text):
    return lambda folder: (folder / "config.json").write_bytes(text)


def cut_in_half(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
BROKEN = [
    (lambda folder: (folder / "config.json").unlink(), r"model has no config\.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), r"model has no model\.safetensors"),
    (write_config(b'{"model_type": "bert", '), r"config\.json is not valid JSON"),
    (write_config(b"\xff\xfe\x00"), r"config\.json is not valid JSON"),
    (write_config(b"[1, 2]"), r"config\.json must hold a JSON object"),
    (edit_config(model_type="roberta"), "holds a 'roberta' model; this version reads 'bert'"),
    (edit_config(model_type=...), "holds a None model"),
    (edit_config(hidden_size=...), r"config\.json lacks the field 'hidden_size'"),
    (edit_config(hidden_size="wide"), r"config\.json.*hidden_size.*'wide'"),
    (edit_config(num_hidden_layers=None), r"config\.json.*num_hidden_layers.*None"),
    (edit_config(num_attention_heads=0), "heads=0: a transformer needs at least 1"),
    (edit_config(num_attention_heads=5), "5 heads do not divide a width of 24"),
    (edit_config(hidden_act="swish"), "hidden_act 'swish'; known: gelu, gelu_new"),
    (edit_config(is_decoder=True), "decoder"),
    (edit_config(attention_probs_dropout_prob=1.0), r"attention_dropout=1\.0: a probability in \[0, 1\)"),
    (edit_config(position_embedding_type="relative_key"), "relative positions"),
    (edit_config(id2label=["a", "b"]), r"config\.json.*id2label"),
    (edit_config(num_hidden_layers=4), r"no tensor 'encoder\.layer\.3\..*not a whole BERT"),
    (edit_config(num_hidden_layers=2), r"tensors that a BERT does not have: encoder\.layer\.2\."),
    (edit_config(vocab_size=49), r"word_embeddings\.weight has shape \(50, 24\), .* asks for \(49, 24\)"),
    (edit_tensors(lambda t: t.pop(QUERY)), r"no tensor 'encoder\.layer\.1\.attention\.self\.query\.weight'"),
    (edit_tensors(lambda t: t.update({"bert.extra": t[QUERY]})), "does not have: extra"),
    (edit_tensors(lambda t: t.update({QUERY: t[QUERY][:, :5]})), r"query\.weight has shape \(5, 24\).* \(24, 24\)"),
    (edit_tensors(lambda t: t.update({QUERY: t[QUERY] * np.float32(np.nan)})), r"query\.weight' holds a NaN"),
    (edit_tensors(lambda t: t.update({QUERY: t[QUERY].astype("int32")})), r"q_proj\.weight is int32"),
    (cut_in_half, r"model\.safetensors is not a whole safetensors file"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), "not a whole safetensors file"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_folder_is_a_user_error_that_names_the_thing(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_another_number_of_labels_says_what_to_ask_for(folder):
    with pytest.raises(UserError, match=r"classifier.* has shape .*Ask for num_labels=3"):
        load_model(folder, num_labels=2)
    assert load_model(folder, num_labels=3).labels == ("calm", "angry", "glad")


@pytest.mark.parametrize("options", [{"num_labels": 1}, {"num_labels": 0}, {"labels": ["only"]}], ids=str)
def test_one_label_is_none(folder, options):
    with pytest.raises(UserError, match="at least 2 labels"):
        load_model(folder, **options)


def test_labels_and_their_number_must_agree(folder):
    with pytest.raises(UserError, match=r"num_labels=4.*3 labels"):
        load_model(folder, num_labels=4, labels=["a", "b", "c"])


def test_names_that_are_no_model(tmp_path):
    with pytest.raises(UserError, match=r"Unknown model 'minilmm'\. Did you mean 'minilm'\?.*Hugging Face folder"):
        load_model("minilmm")
    with pytest.raises(UserError, match="Unknown model task 'regression'"):
        load_model(tmp_path, task="regression")


# ---- MiniLM


@pytest.mark.asset
def test_minilm_is_transformers(torch, transformers, asset, tmp_path):
    model = load_model(asset("minilm"), num_labels=2).eval()
    d, layers, ff = 384, 6, 1536
    block = 4 * (d * d + d) + 2 * d * ff + ff + d + 4 * d
    expected = (30522 + 512 + 2) * d + 2 * d + layers * block + (d * d + d) + (2 * d + 2)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert round(expected / 1e6, 2) == 22.71
    assert model.tokenizer is not None
    draw = np.random.default_rng(0)
    ids = draw.integers(1000, 30000, (3, 24))
    mask = (np.arange(24) < np.array([[24], [10], [17]])).astype(int)
    model.save_pretrained(tmp_path)
    reference = theirs(torch, transformers, tmp_path)
    with torch.no_grad():
        out = call(torch, reference, (ids, mask), output_hidden_states=True)
    np.testing.assert_allclose(model(ids, mask).data, out.logits.numpy(), atol=1e-4)
    features = load_model(asset("minilm"), task="features").eval()
    np.testing.assert_allclose(features(ids, mask).data, out.hidden_states[-1].numpy(), atol=1e-4)

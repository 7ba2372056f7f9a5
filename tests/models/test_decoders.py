"""GPT-2 and Llama against transformers: logits, gradients, files both ways; tied tables; and folders that are broken."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest

import minipeft as mp
from minipeft.autograd import functional
from minipeft.backend.storage import read_tensors, write_tensors
from minipeft.errors import UserError
from minipeft.models import GPT2, Llama, load_model, load_tokenizer

GPT2_CONFIG = {"vocab_size": 50, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 20}
LLAMA_CONFIG = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2_CONFIG),
    "gpt2 with another inner width": ("GPT2", {**GPT2_CONFIG, "n_inner": 30, "activation_function": "gelu"}),
    "llama": ("Llama", LLAMA_CONFIG),
    "llama tied": ("Llama", {**LLAMA_CONFIG, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama with biases": ("Llama", {**LLAMA_CONFIG, "attention_bias": True, "mlp_bias": True}),
    "llama with another base": (
        "Llama",
        {**LLAMA_CONFIG, "rope_parameters": {"rope_type": "default", "rope_theta": 50}},
    ),
}
rng = np.random.default_rng(0)
IDS = rng.integers(1, 50, (4, 9))
MASK = (np.arange(9) < np.array([[9], [4], [7], [1]])).astype(int)
every_family = pytest.mark.parametrize("which", FAMILIES)


@pytest.fixture(scope="session")
def transformers(torch) -> Any:
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


@pytest.fixture(scope="session")
def folders(torch, transformers, tmp_path_factory) -> dict[str, Any]:
    """Small models with random numbers everywhere, as transformers saves them: {family: folder}."""
    made = {}
    for which, (name, fields) in FAMILIES.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**fields)
        model = getattr(transformers, f"{name}{'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'}")(config)
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(std=0.3)
        folder = tmp_path_factory.mktemp("decoder") / which
        model.save_pretrained(folder)
        made[which] = folder
    return made


@pytest.fixture
def folder(folders, tmp_path, request):
    """A copy that a test may break."""
    return shutil.copytree(folders[request.param], tmp_path / "model")


def theirs(torch, transformers, folder, kind="CausalLM", double=False):
    dtype = torch.float64 if double else torch.float32
    auto = getattr(transformers, f"AutoModel{'For' + kind if kind else ''}")
    return auto.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()


@every_family
def test_logits_are_transformers(torch, transformers, folders, which):
    model = load_model(folders[which], task="causal-lm").eval()
    with torch.no_grad():
        expected = theirs(torch, transformers, folders[which])(torch.tensor(IDS)).logits.numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(model(IDS).data, expected, atol=1e-4, rtol=1e-5)
    padded = model(IDS, MASK).data  # what is behind the padding changes nothing before it
    np.testing.assert_allclose(padded[MASK == 1], expected[MASK == 1], atol=1e-4, rtol=1e-5)


@every_family
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-6)])
def test_every_parameters_gradient_is_transformers(torch, transformers, folders, which, dtype, tolerance):
    model = load_model(folders[which], task="causal-lm").eval().astype(dtype)
    reference = theirs(torch, transformers, folders[which], double=dtype == "float64")
    functional.cross_entropy(model(IDS[:, :-1]), IDS[:, 1:]).backward()
    reference(torch.tensor(IDS), labels=torch.tensor(IDS)).loss.backward()
    expected = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    largest = max(np.abs(g).max() for g in expected.values())
    for (name, transposed), ours in model.layout().items():
        g = expected.pop(model.in_file(name))
        mine = np.concatenate([gradients[o].T if transposed else gradients[o] for o in ours], axis=-1)
        size = max(np.abs(g).max(), 1e-3 * largest)  # a key's bias has no influence: its gradient is rounding
        np.testing.assert_allclose(mine, g, rtol=0, atol=tolerance * size, err_msg=name)
    assert not expected


@every_family
def test_parameters_count_once_and_as_transformers_counts(torch, transformers, folders, which):
    model = load_model(folders[which], task="causal-lm")
    count = sum(p.numel() for p in model.parameters())
    assert count == sum(p.numel() for p in theirs(torch, transformers, folders[which]).parameters())
    assert (model.head.weight is model.embed.word.weight) == (which in ("llama tied", *list(FAMILIES)[:2]))


@every_family
def test_saved_by_us_it_loads_in_transformers_and_back_bit_by_bit(torch, transformers, folders, which, tmp_path):
    model = load_model(folders[which], task="causal-lm").eval()
    for p in model.parameters():
        p.data[...] = np.random.default_rng(p.numel()).standard_normal(p.shape) * 0.3
    model.save_pretrained(tmp_path / "new")
    reference, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "new", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        expected = reference.eval()(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(model(IDS).data, expected, atol=1e-4, rtol=1e-5)
    again = load_model(tmp_path / "new", task="causal-lm")
    for name, array in model.state_dict().items():
        assert again.state_dict()[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("which", ["gpt2", "llama"])
def test_a_classifier_reads_the_last_token_as_transformers_does(torch, transformers, folders, which, tmp_path):
    model = load_model(folders[which], labels=["calm", "angry", "glad"], dropout=0.0)
    for p in model.head.parameters():
        p.data[...] = rng.standard_normal(p.shape)
    model.hf_config["pad_token_id"] = 0
    model.save_pretrained(tmp_path / "new")
    reference = theirs(torch, transformers, tmp_path / "new", "SequenceClassification")
    assert reference.config.id2label == {0: "calm", 1: "angry", 2: "glad"}
    with torch.no_grad():
        expected = reference(torch.tensor(IDS * MASK), attention_mask=torch.tensor(MASK)).logits.numpy()
    np.testing.assert_allclose(model(IDS * MASK, MASK).data, expected, atol=1e-4)
    again = load_model(tmp_path / "new").eval()
    assert again.labels == ("calm", "angry", "glad")
    np.testing.assert_array_equal(again(IDS, MASK).data, model.eval()(IDS, MASK).data)


@pytest.mark.parametrize("which", ["gpt2", "llama"])
def test_features_are_the_last_hidden_states(torch, transformers, folders, which):
    with torch.no_grad():
        expected = theirs(torch, transformers, folders[which], "")(torch.tensor(IDS)).last_hidden_state.numpy()
    np.testing.assert_allclose(load_model(folders[which], task="features").eval()(IDS).data, expected, atol=1e-4)


def test_gpt2s_older_tokenizer_files(transformers, folders, tmp_path):
    folder = shutil.copytree(folders["gpt2"], tmp_path / "model")
    alphabet = [*"abcdefgh", "Ġ", "ab", "Ġab", "abc", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(alphabet)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\nab c\n")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.ids("abc ab<|endoftext|>h") == [11, 10, 12, 7]
    assert tokenizer.decode([11, 10, 12, 7]) == "abc abh"
    assert (tokenizer.eos_id, tokenizer.pad_id) == (12, 12)
    (folder / "merges.txt").write_text("#version: 0.2\na z\n")
    with pytest.raises(UserError, match="do not fit together"):
        load_tokenizer(folder)
    (folder / "vocab.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(folder)


# ---- broken folders


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


ATTN, WTE = "transformer.h.1.attn.c_attn.weight", "transformer.wte.weight"
BROKEN = [
    ("gpt2", edit_config(n_embd=...), "lacks the field 'n_embd'; is this a GPT-2 folder"),
    ("gpt2", edit_config(n_head="many"), "n_head is 'many'; int is expected"),
    ("gpt2", edit_config(activation_function="relu"), "activation_function 'relu'; known: gelu"),
    ("gpt2", edit_config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
    ("gpt2", edit_config(n_layer=4), r"no tensor 'h\.3\.ln_1\.weight'|no tensor 'h\.3\.attn.*not a whole GPT-2"),
    ("gpt2", edit_config(n_layer=2), r"tensors that a GPT-2 does not have: h\.2\."),
    (
        "gpt2",
        edit_tensors(lambda t: t.update({ATTN: t[ATTN][:, :-1]})),
        r"c_attn\.weight has shape \(24, 71\).*\(24, 72\)",
    ),
    ("gpt2", edit_config(vocab_size=49), r"wte\.weight has shape \(50, 24\), .* asks for \(49, 24\)"),
    (
        "gpt2",
        edit_config(model_type="gpt_neo"),
        "holds a 'gpt_neo' model; this version reads 'bert', 'gpt2' and 'llama'",
    ),
    ("llama", edit_config(hidden_act="gelu"), "hidden_act 'gelu'; a Llama here has 'silu'"),
    ("llama", edit_config(head_dim=8), "6 heads of width 8; here they fill hidden_size=24"),
    (
        "llama",
        edit_config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
        "rotary positions of the type.*yarn",
    ),
    (
        "llama",
        edit_config(rope_parameters=None, rope_scaling={"type": "linear"}),
        "rotary positions of the type.*linear",
    ),
    ("llama", edit_config(num_key_value_heads=4), "4 heads of keys and values do not divide 6"),
    ("llama", edit_tensors(lambda t: t.pop("lm_head.weight")), r"no tensor 'lm_head\.weight': it is not a whole Llama"),
]


@pytest.mark.parametrize(("folder", "damage", "message"), BROKEN, ids=[m for _, _, m in BROKEN], indirect=["folder"])
def test_a_broken_folder_is_a_user_error_that_names_the_thing(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_model(folder, task="causal-lm")


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_a_tied_head_that_is_written_twice_is_read_once(folder):
    expected = load_model(folder, task="causal-lm").eval()(IDS).data
    edit_tensors(lambda t: t.update({"lm_head.weight": t[WTE]}))(folder)
    np.testing.assert_array_equal(load_model(folder, task="causal-lm").eval()(IDS).data, expected)


def test_what_no_model_can_do(tmp_path):
    with pytest.raises(UserError, match="21 tokens; this model reads at most 20"):
        GPT2({**GPT2_CONFIG}, "causal-lm")(np.ones((1, 21), dtype=int))
    with pytest.raises(UserError, match="21 tokens; this model reads at most 20"):
        Llama({**LLAMA_CONFIG}, "causal-lm")(np.ones((1, 21), dtype=int))
    mp.models.Bert({**BERT}, "features", (), None).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="A BERT is made for classification or features, not for 'causal-lm'"):
        load_model(tmp_path, task="causal-lm")


BERT = {
    "model_type": "bert",
    "vocab_size": 9,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 4,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 8,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-12,
}

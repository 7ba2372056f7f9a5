"""glassllm: the numbers of its own code, which are written down here; and files that are damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest

import minipeft as mp
from minipeft.autograd import functional
from minipeft.errors import UserError
from minipeft.models import glass, load_model, load_tokenizer


def write(path, change=lambda arrays: None, tokenizer=True):
    """A model of one block of width 4 with 2 heads over 1, as glassllm keeps it."""
    rng = np.random.default_rng(0)
    config = {"vocab_size": 9, "d_model": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "max_len": 6}
    config |= {"rope_base": 100.0, "eps": 1e-6, "init_std": 0.02}
    shapes = {
        "E": (9, 8),
        "norm_f.gamma": (8,),
        "blocks.0.norm1.gamma": (8,),
        "blocks.0.norm2.gamma": (8,),
        "blocks.0.attn.W_Q": (8, 8),
        "blocks.0.attn.W_K": (8, 4),
        "blocks.0.attn.W_V": (8, 4),
        "blocks.0.attn.W_O": (8, 8),
        "blocks.0.ffn.W1": (8, 21),
        "blocks.0.ffn.W3": (8, 21),
        "blocks.0.ffn.W2": (21, 8),
    }
    arrays = {name: rng.standard_normal(shape).astype("float16") for name, shape in shapes.items()}
    arrays["__config__"] = np.array(json.dumps(config))
    change(arrays)
    np.savez(path, **arrays)
    if tokenizer:
        merges = {"version": 1, "alphabet": ["a", "b", "▁"], "merges": [["a", "b"], ["▁", "ab"]]}
        path.with_name(f"{path.stem}.tokenizer.json").write_text(json.dumps(merges, ensure_ascii=False))
    return path


def reference(arrays, ids):
    """The model by the book of glassllm: neighbouring pairs are turned, heads repeated, everything in float64."""
    w = {name: array.astype("float64") for name, array in arrays.items() if name != "__config__"}
    norm = lambda x, gamma: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * gamma

    def turn(x):  # (seq, heads, 4)
        angles = np.arange(len(x))[:, None] * 100.0 ** (-2 * np.arange(2) / 4)
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None, :]
        out = np.empty_like(x)
        out[..., 0::2], out[..., 1::2] = z.real, z.imag
        return out

    x = w["E"][ids]
    h = norm(x, w["blocks.0.norm1.gamma"])
    q = turn((h @ w["blocks.0.attn.W_Q"]).reshape(-1, 2, 4))
    k = turn((h @ w["blocks.0.attn.W_K"]).reshape(-1, 1, 4)).repeat(2, axis=1)
    v = (h @ w["blocks.0.attn.W_V"]).reshape(-1, 1, 4).repeat(2, axis=1)
    scores = np.einsum("ihd,jhd->hij", q, k) / 2
    scores[:, np.triu(np.ones(scores.shape[1:], dtype=bool), 1)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("hij,jhd->ihd", p / p.sum(-1, keepdims=True), v).reshape(-1, 8)
    x = x + mixed @ w["blocks.0.attn.W_O"]
    h = norm(x, w["blocks.0.norm2.gamma"])
    gate = h @ w["blocks.0.ffn.W1"]
    x = x + (gate / (1 + np.exp(-gate)) * (h @ w["blocks.0.ffn.W3"])) @ w["blocks.0.ffn.W2"]
    return norm(x, w["norm_f.gamma"]) @ w["E"].T


def test_logits_are_glassllms(tmp_path):
    path = write(tmp_path / "tiny.npz")
    ids = [3, 1, 4, 1, 5]
    model = load_model(path, task="causal-lm").eval()
    np.testing.assert_allclose(model(np.array([ids])).data[0], reference(np.load(path), ids), rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "folder")
    again = load_model(tmp_path / "folder", task="causal-lm").eval()
    np.testing.assert_array_equal(again(np.array([ids])).data, model(np.array([ids])).data)


def test_the_tokenizer(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path / "tiny.npz"))
    assert tokenizer.ids("ab ab  b") == [7, 8, 6, 6, 5]
    assert tokenizer.decode([7, 8, 6, 6, 5]) == "ab ab  b"
    assert tokenizer.ids("z") == [1]
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 3)
    assert load_model(write(tmp_path / "bare.npz", tokenizer=False), task="causal-lm").tokenizer is None
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(tmp_path / "bare.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("__config__"), "not a model of glassllm"),
        (lambda a: a.update(__config__=np.array("{}")), "not a model of glassllm"),
        (lambda a: a.update(__config__=np.array("{")), "not a model of glassllm"),
        (lambda a: a.pop("E"), r"missing 1 \(embed\.word\.weight\)"),
        (lambda a: a.update(F=a["E"]), "'F' is no part of a model of glassllm"),
        (lambda a: a.update(E=a["E"][:-1]), r"embed\.word\.weight has shape \(8, 8\) in the file, \(9, 8\) here"),
        (lambda a: a.update(E=np.array([{}], dtype=object)), "not a whole .npz file of arrays"),
    ],
)
def test_a_damaged_file_is_a_user_error(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_model(write(tmp_path / "tiny.npz", change), task="causal-lm")


def test_what_is_no_archive(tmp_path):
    path = write(tmp_path / "tiny.npz")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="not a whole"):
        load_model(path, task="causal-lm")
    path.with_name("tiny.tokenizer.json").write_text('{"merges": 1}')
    with pytest.raises(UserError, match="not a tokenizer of glassllm"):
        glass.read_glass_tokenizer(path)


@pytest.mark.asset
def test_the_real_one(asset):
    model = load_model(asset("glassllm"), task="causal-lm").eval()
    ids = model.tokenizer.ids(
        "Alice was beginning to get very tired of sitting by her sister on the bank, and of having"
    )
    with mp.no_grad():
        loss = functional.cross_entropy(model(np.array([ids[:-1]])), np.array([ids[1:]])).item()
    assert loss < 4.2, "its own record says 4.19 on held-out text, and this sentence was in the training part"
    block = 2 * 128 + 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 341
    assert sum(p.numel() for p in model.parameters()) == 1024 * 128 + 4 * block + 128

"""GGUF files: small ones written here with the `gguf` package, and SmolLM2 itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minipeft as mp
from minipeft.autograd import functional
from minipeft.errors import UserError
from minipeft.models import Llama, Sampling, generate, gguf_file, load_model, load_tokenizer
from minipeft.models.llama import half_split

gguf = pytest.importorskip("gguf", reason="reading GGUF files needs the extra `gguf`")

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh", "Ġ", "1", "2", "ab", "Ġab"]
SHAPE = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 20,
    "rope_theta": 500.0,
    "rms_norm_eps": 1e-5,
}
IDS = np.random.default_rng(0).integers(0, len(TOKENS), (2, 9))


def model_of(tied: bool = True, seed: int = 1) -> Llama:
    mp.seed(0)
    model = Llama({**SHAPE, "tie_word_embeddings": tied}, "causal-lm").eval()
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data[...] = rng.standard_normal(p.shape) * 0.3
    return model


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k, (out, in)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, model: Llama, kind: Any = None, arch: str = "llama", pre: str = "smollm", **extra: Any) -> Path:
    """The model as llama.cpp would keep it, with linear weights quantised as `kind`."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(20)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(500.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    back = {f"blocks.{n}.{ours}": f"blk.{n}.{theirs}" for n in range(2) for theirs, ours in gguf_file.BLOCK.items()}
    for name, array in model.state_dict().items():
        part, _, leaf = name.rpartition(".")
        theirs = {ours: t for t, ours in gguf_file.PARTS.items()}.get(name, f"{back.get(part, 'output')}.{leaf}")
        if part.endswith("_proj") or part == "head":
            array = array.T
        if part.endswith(("q_proj", "k_proj")):
            array = interleaved(array, 4 if "q_proj" in part else 2)
        array = np.ascontiguousarray(array)
        if kind is not None and part.endswith("_proj"):
            writer.add_tensor(theirs, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, array)
    for name, array in extra.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_gives_the_model_that_was_written(tmp_path, tied):
    model = model_of(tied)
    again = load_model(write(tmp_path / "tiny.gguf", model), task="causal-lm").eval()
    np.testing.assert_allclose(again(IDS).data, model(IDS).data, atol=1e-5)
    assert again.head.tied == tied
    assert again.config.max_positions == 20
    (tmp_path / "folder").mkdir()
    (tmp_path / "tiny.gguf").rename(tmp_path / "folder" / "tiny.gguf")
    in_folder = load_model(tmp_path / "folder", task="causal-lm").eval()
    np.testing.assert_array_equal(in_folder(IDS).data, again(IDS).data)


def test_the_rows_of_q_and_k_go_back_where_they_were():
    weight = np.random.default_rng(0).standard_normal((24, 5))
    np.testing.assert_array_equal(half_split(interleaved(weight, 3), 3), weight)
    assert not np.array_equal(interleaved(weight, 3), weight)


@pytest.mark.parametrize("kind", ["Q8_0", "F16", "Q4_1"])
def test_quantised_weights_are_near(tmp_path, kind):
    model = model_of()
    quantised = load_model(
        write(tmp_path / "tiny.gguf", model, getattr(gguf.GGMLQuantizationType, kind)), task="causal-lm"
    )
    off = max(
        np.abs(a - b).max() for a, b in zip(model.state_dict().values(), quantised.state_dict().values(), strict=True)
    )
    assert 0 < off < {"Q8_0": 0.01, "F16": 0.001, "Q4_1": 0.1}[kind]


def test_the_tokenizer_in_the_file(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path / "tiny.gguf", model_of()))
    ids = tokenizer.ids("ab ab12<|im_end|>h")
    assert [TOKENS[i] for i in ids] == ["ab", "Ġab", "1", "2", "<|im_end|>", "h"]
    assert tokenizer.decode(ids) == "ab ab12h"
    assert (tokenizer.eos_id, tokenizer.pad_id) == (2, 2)


def test_saved_as_a_folder_it_is_the_same_model(tmp_path):
    model = load_model(write(tmp_path / "tiny.gguf", model_of()), task="causal-lm").eval()
    model.save_pretrained(tmp_path / "new")
    again = load_model(tmp_path / "new", task="causal-lm").eval()
    np.testing.assert_array_equal(again(IDS).data, model(IDS).data)
    assert again.tokenizer.ids("ab ab12<|im_end|>h") == model.tokenizer.ids("ab ab12<|im_end|>h")


def test_a_quantisation_that_is_not_known_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "tiny.gguf", model_of(), gguf.GGMLQuantizationType.Q8_0)
    monkeypatch.delitem(gguf.quants._type_traits, gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(UserError, match=r"'blk\.0\.attn_q\.weight' is quantised as Q8_0.*Take another file"):
        load_model(path, task="causal-lm")


def test_a_number_that_stands_for_no_quantisation(tmp_path):
    path = write(tmp_path / "tiny.gguf", model_of())
    data = path.read_bytes()
    name = b"blk.0.attn_q.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # after the name: the number of axes, two of them, the type
    path.write_bytes(data[:at] + (99).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(UserError, match=r"a quantisation that the package gguf does not know.*99.*Take another file"):
        load_model(path, task="causal-lm")


@pytest.mark.parametrize(("dimensions", "scaling"), [(8, "linear"), (4, None)])
def test_other_rotary_positions_are_refused(tmp_path, monkeypatch, dimensions, scaling):
    path = write(tmp_path / "tiny.gguf", model_of())
    fields = {"llama.rope.dimension_count": dimensions, "llama.rope.scaling.type": scaling}
    ours = gguf_file.GGUFFile._field
    monkeypatch.setattr(gguf_file.GGUFFile, "_field", lambda self, name, *d: fields.get(name) or ours(self, name, *d))
    with pytest.raises(UserError, match="rotary positions"):
        load_model(path, task="causal-lm")
    fields.update({"llama.rope.dimension_count": 8, "llama.rope.scaling.type": "none"})
    assert load_model(path, task="causal-lm").config.max_positions == 20


@pytest.mark.parametrize("tied", [True, False])
def test_a_classifier_and_features_of_a_file(tmp_path, tied):
    model = model_of(tied)
    path = write(tmp_path / "tiny.gguf", model)
    assert load_model(path, labels=["no", "yes"]).eval()(IDS).shape == (2, 2)
    features = load_model(path, task="features").eval()
    np.testing.assert_allclose(model.head(features(IDS)).data, model(IDS).data, atol=1e-5)


def test_other_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds a 'gemma' model"):
        load_model(write(tmp_path / "gemma.gguf", model_of(), arch="gemma"), task="causal-lm")
    with pytest.raises(UserError, match="its tokenizer is 'gpt2' / 'tekken'; known: gpt2 / default, gpt-2, smollm"):
        load_model(write(tmp_path / "pre.gguf", model_of(), pre="tekken"), task="causal-lm")
    path = write(tmp_path / "more.gguf", model_of(), **{"blk.0.ssm.weight": np.zeros(2, "float32")})
    with pytest.raises(UserError, match=r"'blk\.0\.ssm\.weight' is no part of a Llama"):
        load_model(path, task="causal-lm")
    for content in (b"", b"GGUF", path.read_bytes()[:3000], b"x" * 100):
        (tmp_path / "broken.gguf").write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.gguf"):
            load_model(tmp_path / "broken.gguf", task="causal-lm")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'minipeft\[gguf\]'"):
        load_model(path.rename(tmp_path / "not read yet.gguf"), task="causal-lm")


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    path = write(tmp_path / "tiny.gguf", model_of(seed=0))
    first, again = (load_model(path, task="causal-lm").eval()(IDS).data for _ in range(2))
    np.testing.assert_array_equal(again, first)
    path.unlink()
    other = load_model(write(path, model_of(seed=1)), task="causal-lm").eval()
    assert np.abs(other(IDS).data - first).max() > 1e-3


# ---- SmolLM2

ENGLISH = """The old lighthouse stands at the end of a narrow road, where the fields stop and the sea begins. For more than
a hundred years a keeper lived there with his family, and every evening he climbed the stairs to light the lamp. The work
was simple, but it could not wait: a ship that passed in a storm at night had nothing else to tell it how close the rocks
were. When electricity came to the coast, the lamp was changed, and a machine took over the duty of the man. The last keeper
moved to the village, where he opened a small shop and told stories to the children who came to buy sweets. Today the tower
is a museum. Visitors can see the old lens, which is taller than a person and made of hundreds of pieces of glass, and the
diary in which each keeper wrote down the weather, the ships he had seen, and sometimes what he thought about. One of them
wrote in the winter of 1893 that he had not spoken to anybody for three weeks, and that he did not miss it. Another
complained about the food, the wind and the price of oil on nearly every page. From the balcony at the top you can look far
over the water on a clear day, and it is easy to understand why someone would want to stay."""


def cross_entropy(model: Any) -> tuple[float, int]:
    ids = np.array([model.tokenizer.ids(ENGLISH.replace("\n", " "))])
    with mp.no_grad():
        return functional.cross_entropy(model(ids[:, :-1]), ids[:, 1:]).item(), ids.shape[1] - 1


@pytest.mark.slow
@pytest.mark.asset
def test_smollm2_reads_english(asset):
    """One load for all that is asked of it: the file is read in ten seconds."""
    model = load_model(asset("smollm2"), task="causal-lm").eval()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    with mp.no_grad():
        logits = model(np.array([model.tokenizer.ids("The capital of France is")])).data[0, -1]
    assert model.tokenizer.decode([int(logits.argmax())]) == " Paris"
    (made,) = generate(model, ["The capital of France is"], Sampling(4))
    assert made.text.startswith(" Paris.")
    loss, tokens = cross_entropy(model)
    assert tokens >= 249
    assert 2.5 < loss < 3.7, loss
    for block in model.blocks:  # as the file has them
        for linear, heads in ((block.q_proj, 9), (block.k_proj, 3)):
            linear.weight.data[...] = interleaved(linear.weight.data.T, heads).T
    wrong, _ = cross_entropy(model)
    assert wrong > loss + 1, wrong

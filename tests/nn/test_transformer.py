"""The transformer: names, gradients of whole blocks, and what must not have an influence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minipeft.autograd import Tensor, functional, gradcheck
from minipeft.backend import random
from minipeft.errors import UserError
from minipeft.nn import Block, ClassificationHead, Transformer, TransformerConfig

TINY = TransformerConfig(vocab_size=11, d_model=6, layers=2, heads=2, d_ff=10, max_positions=7, type_vocab=2)
IDS = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
PARTS = ["q_proj", "k_proj", "v_proj", "o_proj", "attn_norm", "up_proj", "down_proj", "mlp_norm"]

both_orders = pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])


def shaken(model, scale=0.5):
    """Random numbers in every parameter, biases and norms as well, so that none can be forgotten unseen."""
    draw = np.random.default_rng(0)
    for p in model.parameters():
        p.data[...] = draw.standard_normal(p.shape) * scale
    return model


def tiny(head=True, **changes):
    config = replace(TINY, **changes)
    return Transformer(config, ClassificationHead(config.d_model, 3, config.dropout) if head else None)


# ---- names


@both_orders
def test_the_names_that_targets_and_files_rely_on(norm_first):
    model = tiny(norm_first=norm_first)
    names = {name for name, _ in model.named_modules()}
    blocks = {f"blocks.{n}.{part}" for n in range(2) for part in PARTS}
    assert blocks | {"embed", "embed.word", "embed.position", "embed.segment"} <= names
    assert {"head", "head.pooler", "head.classifier"} <= names
    assert ("final_norm" in names) == norm_first
    assert ("embed.norm" in names) != norm_first
    norms = {"final_norm"} if norm_first else {"embed.norm"}
    with_bias = [*(f"{b}" for b in blocks), *norms, "head.pooler", "head.classifier"]
    expected = {f"{m}.{leaf}" for m in with_bias for leaf in ("weight", "bias")}
    assert {name for name, _ in model.named_parameters()} == expected | {
        "embed.word.weight",
        "embed.position.weight",
        "embed.segment.weight",
    }


def test_the_number_of_parameters_is_the_formula():
    model, d, f = tiny(), 6, 10
    block = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
    expected = (11 + 7 + 2) * d + 2 * d + 2 * block + (d * d + d) + (d * 3 + 3)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert tiny(type_vocab=0).embed.segment is None


def test_shapes_with_and_without_a_head():
    assert tiny()(IDS, MASK).shape == (2, 3)
    assert tiny(head=False)(IDS, MASK).shape == (2, 5, 6)
    assert tiny()(IDS[:1, :1]).shape == (1, 3)


def test_state_dict_round_trip_gives_the_same_logits():
    a, b = shaken(tiny()), tiny()
    assert not np.allclose(a(IDS, MASK).data, b(IDS, MASK).data)
    b.load_state_dict(a.state_dict())
    np.testing.assert_array_equal(a(IDS, MASK).data, b(IDS, MASK).data)


# ---- gradients


@both_orders
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gradients_of_a_block_and_of_all_its_parameters(norm_first, causal, activation):
    config = replace(TINY, norm_first=norm_first, causal=causal, activation=activation, norm_eps=1e-5)
    block = shaken(Block(config).astype("float64"))
    names = [name for name, _ in block.named_parameters()]
    x = Tensor(np.random.default_rng(1).standard_normal((2, 5, 6)), requires_grad=True)

    def f(x, *parameters):
        for name, p in zip(names, parameters, strict=True):
            module, _, leaf = name.rpartition(".")
            setattr(block.get_submodule(module), leaf, p)
        return block(x, MASK)

    gradcheck(f, x, *block.parameters(), directions=2, rtol=1e-5)


@both_orders
def test_gradients_of_a_whole_model(norm_first):
    model = shaken(tiny(norm_first=norm_first, norm_eps=1e-5).astype("float64"))
    names = [name for name, _ in model.named_parameters()]

    def f(*parameters):
        for name, p in zip(names, parameters, strict=True):
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, p)
        return functional.cross_entropy(model(IDS, MASK, np.array([[0, 0, 1, 1, 1]] * 2)), np.array([0, 2]))

    gradcheck(f, *model.parameters(), directions=1, rtol=1e-5)


@both_orders
def test_every_parameter_gets_a_gradient(norm_first):
    model = shaken(tiny(norm_first=norm_first))
    functional.cross_entropy(model(IDS, MASK), np.array([0, 2])).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert np.abs(p.grad).max() > 0, name


# ---- what a block is


def norm(x, module):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(x.var(axis=-1, keepdims=True) + module.eps) * module.weight.data + module.bias.data


@both_orders
def test_where_the_norms_stand(norm_first):
    """With attention and the feed-forward part replaced by x -> 2x and x -> 3x, a block is a formula of its norms."""
    block = shaken(Block(replace(TINY, norm_first=norm_first)).astype("float64"))
    block.attend = lambda x, *rest: x * 2.0
    block.feed_forward = lambda x: x * 3.0
    x = np.random.default_rng(1).standard_normal((2, 5, 6))
    if norm_first:
        y = x + 2 * norm(x, block.attn_norm)
        expected = y + 3 * norm(y, block.mlp_norm)
    else:
        expected = norm(4 * norm(3 * x, block.attn_norm), block.mlp_norm)
    np.testing.assert_allclose(block(Tensor(x)).data, expected, rtol=1e-10)


def test_gelu_tanh_is_another_function():
    exact, tanh = shaken(tiny()), shaken(tiny(activation="gelu_tanh"))
    assert not np.array_equal(exact(IDS).data, tanh(IDS).data)


# ---- padding, causality, segments


@both_orders
def test_logits_do_not_depend_on_padding(norm_first):
    model = shaken(tiny(norm_first=norm_first).astype("float64")).eval()
    alone = model(IDS[1:, :3]).data
    np.testing.assert_allclose(model(IDS, MASK).data[1:], alone, rtol=1e-12)
    other = IDS.copy()
    other[1, 3:] = [9, 10]
    np.testing.assert_array_equal(model(other, MASK).data, model(IDS, MASK).data)
    wider = np.pad(IDS, ((0, 0), (0, 2))), np.pad(MASK, ((0, 0), (0, 2)))
    np.testing.assert_allclose(model(*wider).data, model(IDS, MASK).data, rtol=1e-12)
    assert not np.allclose(model(IDS).data[1:], alone), "without the mask the padding counts"


def test_a_mask_of_ones_is_no_mask():
    model = shaken(tiny()).eval()
    np.testing.assert_array_equal(model(IDS, np.ones_like(IDS)).data, model(IDS).data)


def test_rows_of_a_batch_do_not_see_each_other():
    model = shaken(tiny().astype("float64")).eval()
    np.testing.assert_allclose(model(IDS, MASK).data[:1], model(IDS[:1]).data, rtol=1e-12)


@both_orders
def test_a_causal_model_does_not_see_the_future(norm_first):
    model = shaken(tiny(head=False, causal=True, norm_first=norm_first).astype("float64")).eval()
    hidden = model(IDS).data
    changed = IDS.copy()
    changed[:, 3] = 9
    np.testing.assert_array_equal(model(changed).data[:, :3], hidden[:, :3])
    assert not np.allclose(model(changed).data[:, 3:], hidden[:, 3:])


def test_positions_and_segments_count():
    model = shaken(tiny()).eval()
    swapped = IDS[:1, [0, 2, 1, 3, 4]]
    assert not np.allclose(model(IDS[:1]).data, model(swapped).data)
    zeros, ones = np.zeros_like(IDS), np.ones_like(IDS)
    np.testing.assert_array_equal(model(IDS, MASK, zeros).data, model(IDS, MASK).data)
    assert not np.allclose(model(IDS, MASK, ones).data, model(IDS, MASK).data)


def test_lists_and_small_integers_are_ids_too():
    model = shaken(tiny()).eval()
    expected = model(IDS, MASK).data
    np.testing.assert_array_equal(model(IDS.tolist(), MASK.tolist()).data, expected)
    np.testing.assert_array_equal(model(IDS.astype("uint8"), MASK.astype(bool)).data, expected)


# ---- dropout


@pytest.mark.parametrize("which", ["dropout", "attention_dropout"])
def test_dropout_is_on_in_training_and_off_in_evaluation(which):
    model, plain = shaken(tiny(**{which: 0.3})), shaken(tiny())
    random.at_step(0)
    first = model(IDS, MASK).data
    assert not np.allclose(first, plain(IDS, MASK).data)
    assert not np.allclose(model(IDS, MASK).data, first), "another mask at each pass"
    random.at_step(0)
    np.testing.assert_array_equal(model(IDS, MASK).data, first)
    model.eval()
    np.testing.assert_array_equal(model(IDS, MASK).data, plain(IDS, MASK).data)


# ---- refusals


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((np.array([[1, 11]]),), "token id 11 is out of range; valid ones are 0 to 10"),
        ((np.array([[1, -1]]),), "token id -1 is out of range"),
        ((np.ones((1, 8), dtype=int),), r"8 tokens; this model reads at most 7"),
        ((np.array([1, 2]),), r"input_ids is an integer array \(batch, seq\), not int64 of shape \(2,\)"),
        ((np.array([[1.0, 2.0]]),), "input_ids is an integer array .* not float64"),
        ((IDS, MASK[:, :4]), r"attention_mask has shape \(2, 4\), input_ids \(2, 5\)"),
        ((IDS, MASK.astype("float32")), "attention_mask is an integer array"),
        ((IDS, MASK, np.full_like(IDS, 2)), "id 2 is out of range; valid ones are 0 to 1"),
        ((IDS, MASK, IDS[:1]), r"token_type_ids has shape \(1, 5\)"),
    ],
)
def test_refusals_name_what_was_given(inputs, message):
    with pytest.raises(UserError, match=message):
        tiny()(*inputs)


def test_configs_that_make_no_model():
    with pytest.raises(UserError, match="4 heads do not divide"):
        replace(TINY, heads=4)
    with pytest.raises(UserError, match=r"Unknown activation 'relu'\. Known: gelu, gelu_tanh"):
        replace(TINY, activation="relu")
    for name in ("vocab_size", "d_model", "heads", "d_ff", "max_positions"):
        with pytest.raises(UserError, match=f"{name}=0: a transformer needs at least 1"):
            replace(TINY, **{name: 0})
    for name in ("dropout", "attention_dropout"):
        for p in (-0.1, 1.0):
            with pytest.raises(UserError, match=f"{name}={p}: a probability in"):
                replace(TINY, **{name: p})

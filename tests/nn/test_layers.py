"""Linear, Embedding, LayerNorm, Dropout: how they start and what they compute."""

from __future__ import annotations

import numpy as np
import pytest

from minipeft.autograd import Tensor, gradcheck
from minipeft.backend import random
from minipeft.nn import Dropout, Embedding, LayerNorm, Linear


def test_linear_starts_small_with_a_zero_bias():
    layer = Linear(400, 300)
    assert layer.weight.shape == (400, 300)
    assert layer.weight.dtype == np.float32
    assert layer.weight.data.std() == pytest.approx(0.02, rel=0.02)
    assert layer.weight.data.mean() == pytest.approx(0, abs=3e-4)
    assert (layer.bias.data == 0).all()
    assert layer.bias.shape == (300,)
    assert Linear(2, 2, bias=False).bias is None
    assert [n for n, _ in Linear(2, 2, bias=False).named_parameters()] == ["weight"]


def test_linear_is_x_w_plus_b():
    layer = Linear(3, 2)
    layer.bias.data[...] = [1, 2]
    x = np.random.default_rng(0).standard_normal((4, 5, 3)).astype("float32")
    np.testing.assert_allclose(layer(Tensor(x)).data, x @ layer.weight.data + [1, 2], rtol=1e-5)


def test_the_seed_decides_the_start_and_nothing_else_does():
    random.seed(3)
    first = Linear(5, 5).weight.data, Linear(5, 5).weight.data
    assert not np.array_equal(*first)
    random.seed(3)
    np.random.seed(0)
    random.generator("data").random()
    again = Linear(5, 5).weight.data
    np.testing.assert_array_equal(again, first[0])
    given = [Linear(5, 5, rng=random.generator("mine")).weight.data for _ in range(2)]
    np.testing.assert_array_equal(*given)


def test_embedding_gives_rows():
    table = Embedding(7, 3)
    assert table.weight.data.std() == pytest.approx(0.02, rel=0.5)
    ids = np.array([[6, 0], [2, 2]])
    np.testing.assert_array_equal(table(ids).data, table.weight.data[ids])


def test_layer_norm_starts_as_the_plain_normalisation():
    norm = LayerNorm(64)
    x = np.random.default_rng(0).standard_normal((5, 64)).astype("float32") * 4 + 3
    y = norm(Tensor(x)).data
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(axis=-1), 1, rtol=1e-4)
    norm.weight.data[...], norm.bias.data[...] = 2, 1
    np.testing.assert_allclose(norm(Tensor(x)).data, 2 * y + 1, rtol=1e-5, atol=1e-6)


def test_layer_norm_uses_its_eps():
    x = Tensor(np.array([[1.0, -1.0]], dtype="float32"))
    np.testing.assert_allclose(LayerNorm(2, eps=3.0)(x).data, [[0.5, -0.5]], rtol=1e-6)


def test_dropout_only_while_training():
    layer, x = Dropout(0.5), Tensor(np.ones(1000, dtype="float32"))
    dropped = layer(x).data
    assert set(np.unique(dropped)) == {0, 2}
    assert layer.eval()(x) is x
    layer.train()
    assert (layer(x).data == 0).any()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(lambda: Linear(3, 2), (2, 4, 3)), (lambda: Linear(1, 1), (1, 1)), (lambda: LayerNorm(5), (2, 1, 5))],
    ids=["linear", "one-number", "layer-norm"],
)
def test_gradients_of_input_and_parameters(layer, shape):
    layer = layer()
    layer.astype("float64")
    draw = np.random.default_rng(0)
    for p in layer.parameters():
        p.data[...] = draw.standard_normal(p.shape)
    x = Tensor(draw.standard_normal(shape), requires_grad=True)
    parameters = list(layer.parameters())

    def f(x, weight, bias):
        layer.weight, layer.bias = weight, bias
        return layer(x)

    gradcheck(f, x, *parameters)

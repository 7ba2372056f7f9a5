"""Arrays without values: the shape, the dtype and whose memory it is, exactly as NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from minipeft.autograd.saved import buffer_of
from minipeft.backend import active, random
from minipeft.backend.shape_backend import ShapeArray, empty, shapes_only
from minipeft.errors import UserError

X = np.ones((4, 6, 8), dtype=np.float32)
VIEWS = {
    "reshape": lambda x: x.reshape(24, 8),
    "reshape -1": lambda x: x.reshape(4, -1, 2, 4),
    "reshape of a transpose": lambda x: x.swapaxes(0, 1).reshape(24, 8),
    "reshape of heads": lambda x: x.reshape(4, 6, 2, 4).swapaxes(1, 2).reshape(4, 2, 24),
    "reshape of a cut": lambda x: x[:, 1].reshape(2, 2, 8),
    "T": lambda x: x[0].T,
    "transpose": lambda x: x.transpose(2, 0, 1),
    "an element": lambda x: x[1],
    "slices": lambda x: x[:, 2:5, ::2],
    "dots": lambda x: x[..., None, 3],
    "copy": lambda x: x[1:].copy(),
    "astype": lambda x: x.astype(np.float64),
}
VALUES = {
    "number": lambda x, xp: 0.5 * x + 1,
    "double": lambda x, xp: x * xp.ones((8,), dtype=np.float64),
    "integers": lambda x, xp: xp.arange(5) / 2,
    "power": lambda x, xp: 10000.0 ** (-xp.arange(4) / 4),
    "broadcast": lambda x, xp: x[:, :1] - x[:1],
    "compare": lambda x, xp: x > 0,
    "bool times float": lambda x, xp: x * (x > 0),
    "sum": lambda x, xp: x.sum(),
    "sum of an axis": lambda x, xp: x.sum(axis=-1, keepdims=True),
    "sum of two": lambda x, xp: x.sum(axis=(0, 2)),
    "argmax": lambda x, xp: x.argmax(axis=-1),
    "matmul": lambda x, xp: xp.matmul(x, x.swapaxes(1, 2)),
    "matmul, broadcast": lambda x, xp: xp.matmul(x[:, None], x.swapaxes(1, 2)[None]),
    "inner": lambda x, xp: x[0, 0] @ x[1, 1],
    "exp": lambda x, xp: xp.exp(x),
    "sqrt of integers": lambda x, xp: xp.sqrt(xp.arange(3)),
    "maximum": lambda x, xp: xp.maximum(x, 0),
    "where": lambda x, xp: xp.where(x > 0, x, xp.zeros_like(x)),
    "concatenate": lambda x, xp: xp.concatenate([x, x[:1]], axis=0),
    "concatenate, last": lambda x, xp: xp.concatenate([x, x], axis=-1),
    "stack": lambda x, xp: xp.stack([x, x], axis=1),
    "stack, last": lambda x, xp: xp.stack([x, x], axis=-1),
    "expand": lambda x, xp: xp.expand_dims(x, (0, 2)),
    "broadcast_to": lambda x, xp: xp.broadcast_to(x[0], (3, 6, 8)),
    "rows": lambda x, xp: x[xp.asarray([[0, 1, 1]])],
    "full": lambda x, xp: xp.full((2,), 1.0, dtype=np.float32),
}


def pair(expression, *names):
    """The result on NumPy and on shapes."""
    with shapes_only() as backend:
        ours = expression(backend.xp.asarray(X), *[backend.xp] * len(names))
    return expression(X.copy(), *[np] * len(names)), ours


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_a_view_and_a_copy_a_copy(name: str) -> None:
    x = X.copy()
    theirs = VIEWS[name](x)
    shape = empty(X.shape, X.dtype)
    ours = VIEWS[name](shape)
    assert (ours.shape, ours.dtype, ours.nbytes) == (theirs.shape, theirs.dtype, theirs.nbytes)
    assert (buffer_of(ours) is shape) == np.may_share_memory(theirs, x)


@pytest.mark.parametrize("name", VALUES)
def test_an_operation_gives_numpys_shape_and_dtype(name: str) -> None:
    theirs, ours = pair(VALUES[name], "xp")
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


def test_writing_writes_nothing_and_checks_the_shape() -> None:
    x = empty((3, 4), "float32")
    x += 1.0
    x *= empty((4,), "float32")
    x[1:] = 5
    with pytest.raises((AssertionError, ValueError)):
        x += empty((2, 3, 4), "float32")
    with pytest.raises(ValueError, match="broadcast"):
        x * empty((3,))
    with pytest.raises(ValueError, match="reshape"):
        x.reshape(5, 2)
    with pytest.raises(AssertionError):
        x @ x


@pytest.mark.parametrize("use", [float, int, bool, lambda x: active().to_numpy(x), range])
def test_a_value_cannot_be_had(use) -> None:
    with shapes_only(), pytest.raises(UserError, match="no values"):
        use(empty(()))


def test_generators_draw_shapes_inside_and_numbers_again_after_it() -> None:
    random.seed(3)
    expected = [random.stream("a").standard_normal(2).tolist() for _ in range(2)]
    random.seed(3)
    first = random.stream("a").standard_normal(2).tolist()
    with shapes_only():
        assert isinstance(random.stream("a").standard_normal((5, 2)), ShapeArray)
        assert isinstance(random.generator("b", 1).uniform(-1, 1, (5, 2)), ShapeArray)
    assert [first, random.stream("a").standard_normal(2).tolist()] == expected


def test_the_backend_comes_back_after_an_error() -> None:
    before = active()
    with pytest.raises(RuntimeError), shapes_only():
        raise RuntimeError
    assert active() is before

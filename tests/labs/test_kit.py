"""What tests of labs are written with, and how values travel."""

from __future__ import annotations

import numpy as np
import pytest

from minipeft.labs.kit import close, draw, held, kind, numerical_gradient, refuses, same, softmax, value
from minipeft.labs.wire import WireError, from_line, pack, plain, to_line, unpack


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_close_allows_rounding_and_nothing_more(dtype):
    want = draw(50, 40, seed=1) @ draw(40, 30, seed=2)
    got = draw(50, 40, seed=1, dtype=dtype) @ draw(40, 30, seed=2, dtype=dtype)
    close(got, want, "a product in the dtype is as good as the dtype")
    i, j = np.unravel_index(abs(want).argmax(), want.shape)
    wrong = got.copy()
    wrong[i, j] *= 1 + 1000 * np.finfo(dtype).eps
    with pytest.raises(AssertionError, match=rf"hint \[got .* at \[{i}, {j}\]\]"):
        close(wrong, want, "hint")


@pytest.mark.parametrize("got", [None, "1", True, {}, object(), [[1], [2, 3]], [float("nan")] * 2, [1.0], [1j, 2j]])
def test_close_refuses_what_is_no_array_of_that_shape(got):
    with pytest.raises(AssertionError, match="hint"):
        close(got, [1.0, 2.0], "hint")


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (True, 1),
        (1, True),
        (1.0, 1),
        ("a", b"a"),
        ((1, 2), [1, 2]),
        ({"a": [1]}, {"a": [1]}),
    ],
)
def test_same_knows_a_number_from_a_truth(got, want):
    right = not (isinstance(got, bool) or isinstance(want, bool | bytes))
    if right:
        same(got, want, "hint")
    else:
        with pytest.raises(AssertionError, match="hint"):
            same(got, want, "hint")


def test_same_compares_every_bit():
    x = draw(3)
    same(x.copy(), x, "hint")
    for other in (x.astype("float32"), np.nextafter(x, 9), x[:2], -x):
        with pytest.raises(AssertionError):
            same(other, x, "hint")
    with pytest.raises(AssertionError):
        same(np.array([-0.0]), np.array([0.0]), "hint")


def test_refuses_wants_the_error_that_is_named():
    def fail(error):
        raise error

    refuses(lambda: fail(ValueError("x")), "ValueError", "hint")
    refuses(lambda: fail(UnicodeError("x")), "ValueError", "a class below it will do")
    with pytest.raises(AssertionError, match="it raised KeyError"):
        refuses(lambda: fail(KeyError("x")), "ValueError", "hint")
    with pytest.raises(AssertionError, match="nothing was raised"):
        refuses(lambda: None, "ValueError", "hint")
    with pytest.raises(NotImplementedError):  # a task that is not written has not refused anything
        refuses(lambda: fail(NotImplementedError("x")), "RuntimeError", "hint")


def test_references_of_the_kit():
    z = draw(4, 5)
    np.testing.assert_allclose(softmax(z).sum(axis=-1), 1)
    np.testing.assert_allclose(numerical_gradient(lambda x: float((x**3).sum()), z), 3 * z**2, rtol=1e-6)


def test_held_is_the_same_array_each_time():
    import types

    x = draw(3)
    kept = held(types.ModuleType("lab"), x)
    kept += 1
    assert (value(kept) == x + 1).all()
    assert kind(kept) == "ndarray"


VALUES = [
    None,
    True,
    0,
    -1.5,
    float("inf"),
    "ä",
    [],
    (1, [2, (3,)]),
    {"a": 1, 2: [None]},
    draw(2, 3),
    draw(2, dtype="float32"),
]
VALUES += [np.float32(0.1), np.array([True, False]), np.zeros((0, 3)), np.arange(6).reshape(2, 3).T]


@pytest.mark.parametrize("sent", VALUES, ids=lambda v: repr(v)[:20])
def test_values_arrive_as_they_were(sent):
    got = unpack(from_line(to_line({"value": pack(sent, None)}))["value"], None)
    if isinstance(sent, np.ndarray | np.generic):
        assert got.dtype == sent.dtype
        assert got.shape == sent.shape
        assert got.tobytes() == sent.tobytes()
        got[...] = 0  # it is ours to write into
    else:
        assert got == sent
        assert type(got) is type(sent)


def test_other_things_stay_where_they_are():
    things = [object(), np.array([None]), 1j]
    numbers = iter(range(9))
    packed = pack(things, lambda thing: {"id": next(numbers)})
    assert unpack(from_line(to_line({"v": packed}))["v"], lambda held: things[held["id"]]) == things


@pytest.mark.parametrize(
    "value",
    [
        {"array": "AAAA", "dtype": "object", "shape": [1]},
        {"array": "AAAA", "dtype": "float64", "shape": [1]},
        {"array": "AAAAAAAAAAA=", "dtype": "float64", "shape": [-5]},
        {"array": 5, "dtype": "float64", "shape": []},
        {"dict": [[1]]},
        {"dict": [[{"list": []}, 1]]},
        {"tuple": 5},
        {"array": "AAAA", "dtype": "float64", "shape": [float("inf")]},
        {"dict": [[i, i] for i in range(10_001)]},
        {},
        [1],
    ],
)
def test_what_is_not_of_the_form_is_refused(value):
    with pytest.raises(WireError):
        unpack(value, None)


def test_a_held_thing_of_an_infinite_number_is_refused():
    with pytest.raises(WireError):
        unpack({"held": {"id": float("inf")}}, lambda held: int(held["id"]))


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"5", b'{"a": [' + b"[]," * 2_000_000 + b"0]}"]
)
def test_lines_that_are_no_message_are_refused(line):
    with pytest.raises(WireError):
        from_line(line)


def test_text_from_over_there_is_plain():
    assert plain("a\x1b[31m\x00\ud800é\n", 7) == "a?[31m?"
    assert plain("\ud800é\n", 9) == "?é\n"

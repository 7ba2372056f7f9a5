"""`Tensor` and the tape: what is added up, what is kept, what is refused."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from minipeft.autograd import Tensor, concatenate, functional, no_grad
from minipeft.autograd.saved import count_nodes, saved_arrays
from minipeft.autograd.tape import Partial, backward
from minipeft.autograd.tensor import grad_enabled, record
from minipeft.backend import active
from minipeft.errors import UserError


def leaf(value, dtype="float64") -> Tensor:
    return Tensor(np.array(value, dtype=dtype), requires_grad=True)


def holds(arrays, array) -> bool:
    """Whether the very memory of `array` is among them."""
    return any(np.shares_memory(a, array) for a in arrays)


# ---- making one


@pytest.mark.numpy_only(reason="an array of the host is taken as it is; CuPy uploads it")
def test_numbers_and_lists_become_float32_and_arrays_keep_their_dtype():
    assert Tensor(1.5).dtype == np.float32
    assert Tensor([[1.0, 2.0]]).shape == (1, 2)
    for dtype in ("float64", "float32", "int64", "bool"):
        array = np.zeros(3, dtype=dtype)
        assert Tensor(array).data is array
    assert Tensor([1, 2]).dtype.kind == "i"


@pytest.mark.numpy_only(reason="numpy() gives the very array; CuPy downloads it")
def test_shape_and_friends():
    x = Tensor(np.zeros((2, 3), dtype="float32"))
    assert (x.shape, x.ndim, x.numel(), len(x), x.dtype) == ((2, 3), 2, 6, 2, np.float32)
    assert x.numpy() is x.data
    assert Tensor(np.array([[7.0]])).item() == 7.0
    assert repr(leaf([1.0])) == "Tensor(array([1.]), requires_grad=True)"


def test_what_a_tensor_cannot_be_made_of():
    with pytest.raises(UserError, match=r"use \.detach\(\)"):
        Tensor(Tensor(1.0))
    for dtype in ("int64", "bool"):
        with pytest.raises(UserError, match=f"Only float tensors can require a gradient; this one is {dtype}"):
            Tensor(np.zeros(2, dtype=dtype), requires_grad=True)
    with pytest.raises(UserError, match=r"one element; this one has shape \(2,\)"):
        Tensor([1.0, 2.0]).item()


# ---- adding up


def test_two_uses_add_up():
    x = leaf(3.0)
    (x * x + x).backward()
    assert x.grad == 7


def test_a_leaf_used_twice_by_one_op():
    x = leaf([1.0, 2.0])
    (x - x).sum().backward()
    assert x.grad.tolist() == [0, 0]
    y = leaf([1.0, 2.0])
    concatenate([y, y, y]).sum().backward()
    assert y.grad.tolist() == [3, 3]


def test_backward_adds_to_what_is_there_and_the_same_array_is_kept():
    x = leaf([1.0, 2.0])
    (x * 3).sum().backward()
    first = x.grad
    (x * 4).sum().backward()
    assert x.grad is first
    assert x.grad.tolist() == [7, 7]


def test_a_diamond():
    x = leaf(2.0)
    a = x * 3  # a = 6
    b, c = a * a, a + 1
    (b * c + a).backward()  # a³ + a² + a, times da/dx = 3
    assert x.grad == 3 * (3 * 36 + 2 * 6 + 1)


def test_a_chain_of_diamonds_takes_one_visit_a_node():
    """60 doublings: a walk over paths instead of nodes would take 2⁶⁰ steps."""
    x = y = leaf(1.0)
    for _ in range(60):
        y = y + y
    assert count_nodes(y) == 60
    y.backward()
    assert x.grad == 2.0**60


def test_a_short_and_a_long_way_to_the_same_node():
    x = leaf(2.0)
    a = x * x
    long = a
    for _ in range(5):
        long = long * 1.0
    (a + long).backward()
    assert x.grad == 8


def test_gradients_of_two_parents_do_not_share_memory():
    x, y = leaf([1.0, 1.0]), leaf([2.0, 2.0])
    s = x + y
    (s * 1.0 + s).sum().backward()
    assert not np.shares_memory(x.grad, y.grad)
    x.grad += 100
    assert y.grad.tolist() == [2, 2]


def test_the_gradient_that_was_given_is_neither_kept_nor_changed():
    x, g = leaf([1.0, 1.0]), np.array([1.0, 2.0])
    y = x + x
    y.backward(g)
    assert g.tolist() == [1, 2]
    leaf_of_its_own = leaf([1.0, 1.0])
    leaf_of_its_own.backward(g)
    leaf_of_its_own.grad += 1
    assert g.tolist() == [1, 2]


def test_parts_of_a_tensor_add_up_whatever_the_order():
    """x[...] sends a `Partial`; it meets whole gradients and other parts, of the node and of the leaf."""
    expected = [1 + 10, 1 + 10 + 100, 1 + 100, 1]
    for order in range(6):
        for through_a_node in (False, True):
            x = leaf([1.0, 2.0, 3.0, 4.0])
            y = x * 1.0 if through_a_node else x
            terms = [lambda y=y: y.sum(), lambda y=y: (y[:2] * 10).sum(), lambda y=y: (y[1:3] * 100).sum()]
            a, b = divmod(order, 2)
            first = terms.pop(a)
            second = terms.pop(b)
            (first() + second() + terms[0]()).backward()
            assert x.grad.tolist() == expected


def test_deep_chains_do_not_recurse():
    x = y = leaf(1.0)
    for _ in range(5000):
        y = y + 0.001
    assert count_nodes(y) == 5000
    assert saved_arrays(y) == []
    y.backward()
    assert x.grad == 1


def test_a_deep_chain_is_dropped_without_recursion():
    y = leaf(1.0)
    for _ in range(100_000):
        y = y * 1.0
    del y


def test_several_roots_at_once_share_the_graph_below():
    x, y = leaf(2.0), leaf(5.0)
    shared = x * y
    frozen = Tensor(np.array(1.0))
    gradients = [active().asarray(np.array(g)) for g in (1.0, 10.0, 7.0, 100.0)]
    backward([shared * 3.0, shared * shared, frozen, x], gradients)
    through = 3 + 10 * 2 * 10  # what reaches `shared`
    assert x.grad == 5 * through + 100
    assert y.grad == 2 * through


def test_a_sink_gets_the_gradients_instead_of_the_leaves():
    x, got = leaf([1.0, 2.0]), []
    y = x * 3.0 + x[:1]
    backward([y], [np.ones(2)], sink=lambda target, g: got.append((target, g)))
    assert x.grad is None
    assert all(target is x for target, _ in got)
    total = np.zeros(2)
    for _, g in got:
        if isinstance(g, Partial):
            total[g.index] += g.value
        else:
            total += g
    assert total.tolist() == [5, 3]  # x[:1] is used for both elements


# ---- once only


def test_a_second_backward_is_an_error():
    x = leaf(2.0)
    y = x * x
    y.backward()
    with pytest.raises(UserError, match="differentiated already"):
        y.backward()
    assert x.grad == 4


def test_a_graph_that_shares_a_used_part_is_an_error():
    shared = leaf(2.0) * 3.0
    a, b = shared * 1.0, shared * 2.0
    a.backward()
    with pytest.raises(UserError, match="run the forward pass again"):
        b.backward()


def test_backward_frees_what_the_graph_held():
    class Big(np.ndarray):
        """An array that can be watched."""

    x = leaf([1.0, 2.0])
    kept = np.ones(2).view(Big)
    watch = weakref.ref(kept)
    y = record(x.data * 1.0, (x, lambda g, kept=kept: g * np.asarray(kept)))
    del kept
    gc.collect()
    assert watch() is not None
    loss = y.sum()
    loss.backward()
    gc.collect()
    assert watch() is None
    assert saved_arrays(loss) == []


def test_where_backward_cannot_start():
    with pytest.raises(UserError, match=r"starts from a scalar; this tensor has shape \(2,\)"):
        (leaf([1.0, 2.0]) * 2).backward()
    with pytest.raises(UserError, match="Nothing below this tensor requires a gradient"):
        Tensor(1.0).backward()
    x = leaf([1.0, 2.0])
    for g in (np.ones((5, 2)), np.ones(1), np.ones(3)):  # the first could be summed to (2,), silently
        with pytest.raises(UserError, match=r"shape .* of shape \(2,\)"):
            (x * 2).backward(g)
    assert x.grad is None


def test_backward_from_one_element_of_any_rank():
    x = leaf([[3.0]])
    (x * x).backward()
    assert x.grad.tolist() == [[6]]


# ---- what is recorded


def test_no_grad_records_nothing_and_ends():
    x = leaf(2.0)
    with no_grad():
        assert not grad_enabled()
        y = x * x
        with no_grad():
            pass
        assert not grad_enabled()
    assert grad_enabled()
    assert not y.requires_grad
    assert count_nodes(y) == 0
    with pytest.raises(RuntimeError), no_grad():
        raise RuntimeError
    assert (x * x).requires_grad


def test_detach_shares_the_data_and_forgets_the_rest():
    x = leaf([1.0, 2.0])
    y = (x * 2).detach()
    assert not y.requires_grad
    assert count_nodes(y) == 0
    z = x.detach()
    assert z.data is x.data
    (x * x.detach()).sum().backward()
    assert x.grad.tolist() == [1, 2]


def test_constants_are_not_recorded():
    frozen = Tensor(np.ones(3))
    y = (frozen * 2 + 1).exp().sum()
    assert not y.requires_grad
    assert count_nodes(y) == 0
    mixed = (frozen * 2).exp() * leaf([1.0, 1.0, 1.0])
    assert count_nodes(mixed) == 1, "only the op that touches a leaf"


def test_a_frozen_leaf_gets_no_gradient():
    x, w = leaf([1.0]), Tensor(np.ones(1))
    (x * w + w).sum().backward()
    assert w.grad is None


# ---- what is kept


def test_linear_with_a_frozen_weight_does_not_keep_its_input():
    x, w = leaf(np.ones((4, 3))), Tensor(np.ones((3, 2)))
    hidden = x * 1.0
    frozen = functional.linear(hidden, w)
    assert not holds(saved_arrays(frozen), hidden.data)
    assert holds(saved_arrays(frozen), w.data)
    trained = functional.linear(hidden, leaf(np.ones((3, 2))))
    assert holds(saved_arrays(trained), hidden.data)


@pytest.mark.parametrize(
    ("f", "kept"),
    [
        (lambda x: functional.linear(x, Tensor(np.ones((3, 2)))), False),
        (lambda x: functional.linear(x, leaf(np.ones((3, 2)))), True),
        (functional.gelu, False),
        (functional.softmax, False),
        (lambda x: functional.layer_norm(x, Tensor(np.ones(3)), None), False),
        (lambda x: x + 1.0, False),
        (lambda x: x * x, True),
    ],
)
def test_the_input_is_really_gone_when_it_is_not_kept(f, kept):
    """Not what the tape says of itself, but what Python still holds."""
    hidden = leaf(np.ones((4, 3))) * 1.0
    watch = weakref.ref(hidden.data)
    out = f(hidden)
    del hidden
    gc.collect()
    assert (watch() is not None) == kept
    assert out.requires_grad


def test_linear_of_a_frozen_input_does_not_keep_the_weight():
    x, w = Tensor(np.ones((4, 3))), leaf(np.ones((3, 2)))
    saved = saved_arrays(functional.linear(x, w))
    assert holds(saved, x.data)
    assert not holds(saved, w.data)


def test_a_trained_bias_alone_keeps_nothing():
    out = functional.linear(Tensor(np.ones((4, 3))), Tensor(np.ones((3, 2))), leaf([0.0, 0.0]))
    assert saved_arrays(out) == []
    assert count_nodes(out) == 1


def test_add_keeps_nothing_and_multiply_the_other_side():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    assert saved_arrays(x + y) == []
    assert saved_arrays(x * 2.0) == []
    frozen = Tensor(np.ones(2))
    assert not holds(saved_arrays(x * frozen), x.data)
    assert holds(saved_arrays(x * frozen), frozen.data)
    assert len(saved_arrays(x * y)) == 2


def test_fused_functions_keep_one_array():
    x = leaf(np.ones((4, 6)))
    hidden = x * 1.0
    for f in (functional.gelu, functional.silu, functional.softmax):
        (kept,) = saved_arrays(f(hidden))
        assert kept.shape == (4, 6)
        assert not holds([kept], hidden.data)
    normed = functional.layer_norm(hidden, Tensor(np.ones(6)), Tensor(np.zeros(6)))
    assert sorted(a.size for a in saved_arrays(normed)) == [4, 6, 24]  # 1/√(var + ε), the frozen w, x̂


def test_embedding_and_cross_entropy_keep_no_logits_and_no_table():
    table = leaf(np.ones((50, 4)))
    ids = np.array([[1, 2, 3]])
    assert not holds(saved_arrays(functional.embedding(table, ids)), table.data)
    logits = leaf(np.ones((5, 3))) * 1.0
    assert not holds(saved_arrays(functional.cross_entropy(logits, np.zeros(5, dtype=int))), logits.data)


def test_attention_keeps_q_k_v_and_the_probabilities():
    q, k, v = (leaf(np.ones((2, 5, 4))) for _ in range(3))
    assert sorted(a.size for a in saved_arrays(functional.attention(q, k, v, 2))) == [40, 40, 40, 2 * 2 * 5 * 5]


def test_saved_arrays_counts_a_buffer_once():
    x = leaf(np.ones(6))
    hidden = x.exp()  # keeps its own result
    both = hidden.reshape(2, 3) * hidden.reshape(2, 3)  # keeps two views of it
    assert len(saved_arrays(both)) == 1
    assert len(saved_arrays(both, hidden)) == 1


# ---- dtypes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_python_number_never_changes_the_dtype(dtype):
    for shape in ((), (1,), (2, 3)):
        x = Tensor(np.full(shape, 0.5, dtype=dtype), requires_grad=True)
        y = ((2.0 * x + 1) / 3.0 - 0.1) ** 2 * 1e-3 - 1
        y = (1 - y).mean() / 7 + y.sum() * 0.5 + y.max()
        assert y.dtype == dtype
        y.backward()
        assert x.grad.dtype == dtype


def test_an_array_beside_a_tensor_gives_a_tensor():
    """NumPy would make an object array of Tensors here if it were let."""
    a, x = np.array([1.0, 2.0]), leaf([3.0, 4.0])
    for out, expected in [(a + x, [4, 6]), (a - x, [-2, -2]), (a * x, [3, 8]), (a / x, [1 / 3, 0.5]), (x + a, [4, 6])]:
        assert isinstance(out, Tensor)
        assert out.requires_grad
        np.testing.assert_allclose(out.data, expected)
    scalar = np.float64(2.0) * x
    assert isinstance(scalar, Tensor)
    scalar.sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_a_mixture_of_dtypes_is_refused_where_it_happens():
    x = Tensor(np.ones(3, dtype="float32"), requires_grad=True)
    mask = np.ones(3, dtype="int64")  # float32 times int64 is float64 in NumPy
    for op in (
        lambda: x * np.ones(3),
        lambda: np.float64(2.0) * x,
        lambda: x * mask,
        lambda: concatenate([x, leaf([1.0])]),
    ):
        with pytest.raises(UserError, match=r"a float32 tensor into float64.*astype\('float32'\)"):
            op()


# ---- record, the contract of an op


def test_record_undoes_broadcasting():
    x = leaf([[1.0], [2.0]])
    record(x.data + np.zeros((5, 2, 3)), (x, lambda g: g)).backward(np.ones((5, 2, 3)))
    assert x.grad.tolist() == [[15], [15]]


def test_record_refuses_a_gradient_of_the_wrong_shape_or_dtype():
    for g, message in [(np.ones(3), r"shape \(3,\) for a parent of shape \(2,\)"), (np.ones(2, "float32"), "float32")]:
        x = leaf([1.0, 2.0])
        with pytest.raises(AssertionError, match=message):
            record(x.data * 2, (x, lambda _, g=g: g)).backward(np.ones(2))


def test_record_with_a_joint_vjp_and_a_partial():
    x, y, frozen = leaf([1.0, 2.0]), leaf([3.0, 4.0]), Tensor(np.ones(2))
    out = record(x.data, ((x, frozen, y), lambda g: (g, None, Partial(slice(1), 5 * g[:1]))))
    out.sum().backward()
    assert x.grad.tolist() == [1, 1]
    assert y.grad.tolist() == [5, 0]
    assert frozen.grad is None

"""The hidden tests of lab 1."""

import math

from minipeft.labs.kit import array, close, draw, held, numerical_gradient, same, softmax, task, value, whole, zeros


@task(1)
def test_two_batches(lab):
    a, b, g = draw(2, 5, 3, 4, seed=21), draw(2, 5, 4, 6, seed=22), draw(2, 5, 3, 6, seed=23)
    da, db = lab.matmul_vjp(g, a, b)
    close(da, g @ b.swapaxes(-1, -2), "transpose the last two axes alone")
    close(db, a.swapaxes(-1, -2) @ g, "with leading axes on both sides nothing is summed")


@task(1)
def test_one_row_and_one_column(lab):
    a, b, g = draw(1, 4, seed=24), draw(4, 1, seed=25), draw(1, 1, seed=26)
    da, db = lab.matmul_vjp(g, a, b)
    close(da, g * b.T, "(1, 4) @ (4, 1)")
    close(db, g * a.T, "(1, 4) @ (4, 1)")


@task(1)
def test_the_inputs_stay_and_the_dtype_too(lab):
    arrays = [draw(3, 3, seed=s, dtype="float32") for s in (27, 28, 29)]
    given = [held(lab, array) for array in arrays]
    da, db = lab.matmul_vjp(*given)
    for now, then in zip(given, arrays, strict=True):
        same(value(now), then, "the inputs are left as they are")
    same([str(da.dtype), str(db.dtype)], ["float32", "float32"], "float32 in, float32 out")


@task(2)
def test_many_axes_at_once(lab):
    g = draw(2, 3, 4, 5, seed=31)
    close(lab.unbroadcast(g, (3, 1, 5)), g.sum(axis=(0, 2)).reshape(3, 1, 5), "an added axis and a repeated one")
    close(lab.unbroadcast(g, (1, 1)), g.sum().reshape(1, 1), "everything was repeated")
    close(lab.unbroadcast(g, ()), g.sum(), "a single number was repeated everywhere: its shape is ()")


@task(2)
def test_nothing_was_repeated(lab):
    g = draw(3, 1, seed=32)
    close(lab.unbroadcast(g, (3, 1)), g, "an axis that has length 1 in both was not repeated")


@task(2)
def test_both_are_broadcast(lab):
    a, b, g = draw(3, 1, seed=33), draw(1, 4, seed=34), draw(3, 4, seed=35)
    da, db = lab.multiply_vjp(g, a, b)
    close(da, (g * b).sum(axis=1, keepdims=True), "a of (3, 1) against b of (1, 4)")
    close(db, (g * a).sum(axis=0, keepdims=True), "b of (1, 4) against a of (3, 1)")


@task(3)
def test_very_unlikely_targets(lab):
    z = array([[0.0, 0.0, -2000.0]] * 2)
    loss, gradient = lab.cross_entropy(z, whole(2, 3, 2))
    close(loss, 2000 + math.log(2), "log softmax is z - max - log Σ exp(z - max); log(softmax) would be log 0")
    close(gradient, array([[0.25, 0.25, -0.5]] * 2), "(softmax - one-hot) / n")


@task(3)
def test_many_classes(lab):
    z, t = 3 * draw(7, 11, seed=41), whole(0, 11, 7, seed=42)
    given = held(lab, z)
    loss, gradient = lab.cross_entropy(given, t)
    p = softmax(z)
    close(loss, sum(-math.log(p[i, t[i]]) for i in range(7)) / 7, "the mean over 7 rows")
    want = p.copy()
    for i in range(7):
        want[i, t[i]] -= 1
    close(gradient, want / 7, "(softmax - one-hot) / n; n is the number of rows")
    same(value(given), z, "the logits are left as they are")


@task(3)
def test_a_row_sums_to_zero(lab):
    _, gradient = lab.cross_entropy(draw(5, 4, seed=43), whole(0, 4, 5, seed=44))
    worst = float(abs(gradient.sum(axis=1)).max())
    close(worst + 1, 1.0, "adding one number to all logits of a row changes nothing, so each row sums to zero")


@task(4)
def test_a_long_chain(lab):
    x = lab.Var(draw(1, seed=51))
    root = _chain(x, 3000)
    lab.backward(root.sum())
    close(x.grad, zeros(1) + 3001, "x + x + ... + x, 3001 times: each use adds 1; recursion ends near 1000")


@task(4)
def test_the_order_matters(lab):
    x, y = lab.Var(draw(4, seed=52)), lab.Var(draw(4, seed=53))
    early = x * y
    late = early * early
    lab.backward(((early + late) * x).sum())
    X, Y = draw(4, seed=52), draw(4, seed=53)
    value = lambda X, Y: float((((X * Y) ** 2 + X * Y) * X).sum())
    hint = "a Var hands its gradient on only when all of it has arrived: newest first"
    close(x.grad, numerical_gradient(lambda v: value(v, Y), X), hint, ulps=1e7)
    close(y.grad, numerical_gradient(lambda v: value(X, v), Y), hint, ulps=1e7)


@task(4)
def test_shared_gradients_are_not_written_into(lab):
    x, y = lab.Var(draw(3, seed=54)), lab.Var(draw(3, seed=55))
    both = x + y
    lab.backward((both + x).sum())
    close(y.grad, zeros(3) + 1, "both parents of a + get the very same array: add to a copy of it, not to it")
    close(x.grad, zeros(3) + 2, "x is used twice")


def _chain(x, length):
    root = x
    for _ in range(length):
        root = root + x
    return root

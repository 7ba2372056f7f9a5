"""The public tests of lab 1: `minipeft lab check .`, or `pytest`, or `pytest -m lab1_2` for task 2 alone."""

import math

from minipeft.labs.kit import array, close, draw, numerical_gradient, softmax, task, whole, zeros


@task(1)
def test_two_matrices(lab):
    a, b, g = draw(3, 4, seed=1), draw(4, 2, seed=2), draw(3, 2, seed=3)
    da, db = lab.matmul_vjp(g, a, b)
    close(da, numerical_gradient(lambda a: float((g * (a @ b)).sum()), a), "dL/da = g bᵀ", ulps=1e6)
    close(db, numerical_gradient(lambda b: float((g * (a @ b)).sum()), b), "dL/db = aᵀ g", ulps=1e6)


@task(1)
def test_a_batch_and_a_weight(lab):
    a, b, g = draw(5, 3, 4, seed=1), draw(4, 2, seed=2), draw(5, 3, 2, seed=3)
    da, db = lab.matmul_vjp(g, a, b)
    close(da, g @ b.T, "dL/da has the shape of a, (5, 3, 4)")
    close(db, sum(a[i].T @ g[i] for i in range(5)), "every row of the batch used the weight: its gradients add up")


@task(2)
def test_an_axis_on_the_left_was_added(lab):
    g = draw(3, 4, seed=4)
    close(lab.unbroadcast(g, (4,)), g.sum(axis=0), "(4,) was repeated 3 times: sum over the axis it does not have")


@task(2)
def test_an_axis_of_length_one_was_repeated(lab):
    g = draw(3, 4, seed=5)
    hint = "(3, 1) was repeated along axis 1: sum over it, and keep it with length 1"
    close(lab.unbroadcast(g, (3, 1)), g.sum(axis=1, keepdims=True), hint)


@task(2)
def test_a_row_times_a_matrix(lab):
    a, b, g = draw(4, seed=6), draw(3, 4, seed=7), draw(3, 4, seed=8)
    da, db = lab.multiply_vjp(g, a, b)
    close(da, (g * b).sum(axis=0), "dL/da = g ⊙ b, summed to the shape of a")
    close(db, g * a, "dL/db = g ⊙ a")


@task(3)
def test_the_loss(lab):
    loss, _ = lab.cross_entropy(zeros(1, 2), whole(0, 2, 1))
    close(loss, 0.6931471805599453, "two classes that are equally likely: the loss is ln 2")


@task(3)
def test_the_gradient(lab):
    z, t = draw(4, 3, seed=10), whole(0, 3, 4, seed=11)
    loss, gradient = lab.cross_entropy(z, t)
    close(loss, nll(z, t), "the mean over the rows of -log softmax(logits)[target]")
    close(gradient, numerical_gradient(lambda z: nll(z, t), z), "dL/dlogits = (softmax - one-hot) / n", ulps=1e6)


@task(3)
def test_large_logits(lab):
    z = array([[1000.0, 0.0, -1000.0]] * 2)
    z[1] -= 3000
    loss, gradient = lab.cross_entropy(z, whole(0, 1, 2))
    close(loss, 0.0, "before exp, take the largest logit of each row away from all of that row")
    close(gradient, zeros(2, 3), "and the gradient is finite too")


@task(4)
def test_a_product_and_a_sum(lab):
    x, y = lab.Var(draw(3, seed=12)), lab.Var(draw(3, seed=13))
    lab.backward((x * y + x).sum())
    close(x.grad, y.value + 1, "x is used twice: in x * y and by itself, so its gradient is y + 1")
    close(y.grad, x.value, "d(x * y)/dy = x")


@task(4)
def test_every_vjp_is_called_once(lab):
    x = lab.Var(draw(2, seed=14))
    for _ in range(30):
        x = x + x
    root = x.sum()
    lab.backward(root)
    close(x.grad, zeros(2) + 1, "30 doublings have 2³⁰ ways back: visit each Var once, not each way")
    close(root.grad, 1.0, "the root's own gradient is 1")


def nll(z, t):
    """The reference, plainly: the mean of -log p[target]."""
    return sum(-math.log(p[target]) for p, target in zip(softmax(z), t, strict=True)) / len(t)

"""The public tests of lab 5: `minipeft lab check .`, or `pytest`, or `pytest -m lab5_2` for task 2 alone."""

from minipeft.labs.kit import array, close, draw, refuses, same, task, zeros


@task(1)
def test_two_arrays(lab):
    a, b, M = draw(2, 3, seed=1), draw(4, seed=2), draw(2, 10, seed=3)
    got = lab.to_weights([a, b], array([1.0, -2.0]), M)
    change = M[0] - 2 * M[1]
    close(got[0], a + change[:6].reshape(2, 3), "the first 6 numbers of θ_d M belong to the first array, row by row")
    close(got[1], b + change[6:], "and the next 4 to the second")


@task(1)
def test_it_starts_at_theta_0(lab):
    a, M = draw(2, 3, seed=4), draw(5, 6, seed=5)
    close(lab.to_weights([a], zeros(5), M)[0], a, "with θ_d = 0 the model is the pre-trained one")


@task(1)
def test_the_gradient(lab):
    g, h, M = draw(2, 2, seed=6), draw(3, seed=7), draw(4, 7, seed=8)
    want = [sum(row[:4] * g.reshape(-1)) + sum(row[4:] * h) for row in M]
    close(lab.to_gradient([g, h], M), want, "dL/dθ_d = M g, one number for each row of M")


@task(2)
def test_hadamard_of_four(lab):
    H = array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    x = draw(3, 4, seed=9)
    close(lab.hadamard(x), x @ H, "H_4, along the last axis")


@task(2)
def test_a_length_of_six(lab):
    refuses(lambda: lab.hadamard(zeros(2, 6)), "ValueError", "6 is not a power of two")


@task(2)
def test_forward_and_backward_belong_together(lab):
    M = lab.Fastfood(5, 21, 3)
    x, g = draw(5, seed=10), draw(21, seed=11)
    y, back = M.forward(x), M.backward(g)
    same([len(y), len(back)], [21, 5], "forward gives D numbers, backward d")
    close(
        float((y * g).sum()),
        float((x * back).sum()),
        "(θ_d M) · g = θ_d · (M g): backward is forward's transpose",
        4096,
    )


@task(3)
def test_the_first_step(lab):
    X, y, theta_0, M = draw(6, 4, seed=12), draw(6, seed=13), draw(4, seed=14), draw(2, 4, seed=15)
    theta_d, losses = lab.train(X, y, theta_0, M, 0.1, 1)
    error = X @ theta_0 - y
    close(losses[0], float((error**2).mean()) / 2, "the first loss is the pre-trained model's: θ_d = 0")
    close(theta_d, -0.1 * M @ (X.T @ error) / 6, "one step from zero, against the gradient M g")


@task(3)
def test_the_loss_falls(lab):
    X, y, theta_0, M = draw(20, 8, seed=16), draw(20, seed=17), draw(8, seed=18), draw(3, 8, seed=19)
    _, losses = lab.train(X, y, theta_0, M, 0.02, 10)
    same(len(losses), 11, "the loss before the first step, and after each of 10")
    same(list(losses), sorted(losses, reverse=True), "with a small learning rate, every step makes the loss smaller")


@task(4)
def test_the_smallest_d_that_is_enough(lab):
    scores = {1000: [0.82], 10: [0.61], 100: [0.73]}
    same(lab.d90(scores, 0.80), 100, "0.9 · 0.80 = 0.72, and d = 100 reaches it")


@task(4)
def test_the_strengths(lab):
    a, b, M = draw(2, 2, seed=20), draw(3, seed=21), draw(2, 7, seed=22)
    x = draw(2, seed=23)
    got = lab.structure_aware([a, b], x, array([2.0, 0.5]), M)
    close(got[0], a + 2.0 * (x @ M)[:4].reshape(2, 2), "the change of the first array times its strength")
    close(got[1], b + 0.5 * (x @ M)[4:], "the change of the second times its own")

"""The hidden tests of lab 5."""

from minipeft.labs.kit import array, close, draw, held, refuses, same, task, value, zeros


def hadamard_matrix(n):
    H = zeros(1, 1) + 1
    while len(H) < n:
        size = len(H)
        bigger = zeros(2 * size, 2 * size)
        bigger[:size, :size] = bigger[:size, size:] = bigger[size:, :size] = H
        bigger[size:, size:] = -H
        H = bigger
    return H


@task(1)
def test_many_shapes(lab):
    shapes = [(3, 2), (1,), (2, 2, 2), (5,)]
    arrays, M, x = [draw(*s, seed=30 + i) for i, s in enumerate(shapes)], draw(3, 20, seed=35), draw(3, seed=36)
    got, change, start = lab.to_weights(arrays, x, M), x @ M, 0
    same(len(got), 4, "as many arrays as in theta_0")
    for given, weight in zip(arrays, got, strict=True):
        piece = change[start : start + given.size].reshape(given.shape)
        close(weight, given + piece, f"the piece of shape {given.shape}")
        start += given.size


@task(1)
def test_theta_0_does_not_move(lab):
    a, b, M, x = draw(2, 2, seed=39), draw(3, seed=40), draw(2, 7, seed=42), draw(2, seed=41)
    theta_0 = [held(lab, a), held(lab, b)]
    got = lab.to_weights(theta_0, x, M)
    close(got[1], b + (x @ M)[4:], "θ₀ + θ_d M")
    same(
        [value(theta_0[0]).tolist(), value(theta_0[1]).tolist()],
        [a.tolist(), b.tolist()],
        "θ₀ must not be written into",
    )


@task(1)
def test_the_gradient_of_a_loss(lab):
    a, b, M, x = draw(2, 2, seed=43), draw(2, seed=44), draw(3, 6, seed=45), draw(3, seed=46)
    weights = lab.to_weights([a, b], x, M)
    got = lab.to_gradient([2 * weights[0], 2 * weights[1]], M)  # of Σ θ²
    theta = _flat([a, b]) + x @ M
    close(got, 2 * M @ theta, "of L = Σ θ² it is 2 M θ")


@task(2)
def test_hadamard_of_every_size(lab):
    for n in (1, 2, 8, 64):
        x = draw(2, 3, n, seed=n)
        given = held(lab, x)
        close(lab.hadamard(given), x @ hadamard_matrix(n), f"n = {n}, any number of leading axes")
        same(value(given), x, "x stays as it is")
    x = draw(16, seed=50)
    close(lab.hadamard(lab.hadamard(x)), 16 * x, "H H = n · 1")
    for n in (3, 12):
        refuses(lambda n=n: lab.hadamard(zeros(n)), "ValueError", f"{n} is not a power of two")


@task(2)
def test_fastfood_as_a_matrix(lab):
    d, D = 3, 10
    M = lab.Fastfood(d, D, 7)
    want = dense(M, d, D)
    for i in range(d):
        unit = zeros(d)
        unit[i] = 1
        close(M.forward(unit), want[i], f"row {i} of M: block by block H G Π H B", 4096)
    g = draw(D, seed=51)
    close(M.backward(g), want @ g, "M g with the same M as forward", 4096)


@task(2)
def test_d_is_a_power_of_two_and_D_fits(lab):
    M = lab.Fastfood(4, 8, 1)
    want, x, g = dense(M, 4, 8), draw(4, seed=52), draw(8, seed=53)
    close(M.forward(x), x @ want, "nothing to pad, nothing to cut", 4096)
    close(M.backward(g), want @ g, "nothing to pad, nothing to cut", 4096)


@task(2)
def test_a_large_one(lab):
    M = lab.Fastfood(100, 50_000, 2)
    x, g = draw(100, seed=54), draw(50_000, seed=55)
    y = M.forward(x)
    close(float((y * g).sum()), float((x * M.backward(g)).sum()), "(θ_d M) · g = θ_d · (M g)", 1e6)


@task(3)
def test_against_least_squares(lab):
    X, y, theta_0, M = draw(30, 6, seed=56), draw(30, seed=57), draw(6, seed=58), draw(2, 6, seed=59) / 3
    theta_d, losses = lab.train(X, y, theta_0, M, 0.5, 400)
    P = X @ M.T
    a, b, c = float((P[:, 0] ** 2).sum()), float((P[:, 0] * P[:, 1]).sum()), float((P[:, 1] ** 2).sum())
    r = P.T @ (y - X @ theta_0)
    best = [float(c * r[0] - b * r[1]) / (a * c - b * b), float(a * r[1] - b * r[0]) / (a * c - b * b)]
    close(theta_d, best, "after many steps θ_d is the best one in the subspace", 1e6)
    error = X @ (theta_0 + best @ M) - y
    close(losses[-1], float((error**2).mean()) / 2, "the last loss belongs to the last θ_d", 1e6)


@task(3)
def test_no_steps(lab):
    theta_d, losses = lab.train(draw(3, 2, seed=60), draw(3, seed=61), draw(2, seed=62), draw(1, 2, seed=63), 1.0, 0)
    close(theta_d, zeros(1), "without a step θ_d is zero")
    same(len(losses), 1, "and there is one loss")


@task(3)
def test_seven_steps(lab):
    X, y, t, M = draw(5, 4, seed=68), draw(5, seed=69), draw(4, seed=70), draw(3, 4, seed=71)
    theta_0 = held(lab, t)
    theta_d, losses = lab.train(X, y, theta_0, M, 0.05, 7)
    same(value(theta_0), t, "θ₀ must not be written into")
    z, want = zeros(3), []
    for step in range(8):
        error = X @ (t + z @ M) - y
        want.append(float((error**2).mean()) / 2)
        if step < 7:
            z = z - 0.05 * M @ (X.T @ error) / 5
    close(theta_d, z, "θ_d <- θ_d - lr · M Xᵀ (X θ - y) / n", 4096)
    close(losses, want, "the loss before the first step and after each", 4096)


@task(4)
def test_d90_at_the_edges(lab):
    same(lab.d90({10: [0.5], 20: [0.6]}, 0.9), None, "when no d is enough it is None")
    same(lab.d90({30: [0.45, 0.55], 20: [0.4, 0.9], 10: [0.1, 0.6]}, 0.5), 20, "the mean over the seeds counts")
    same(lab.d90({64: [0.9], 128: [0.2], 32: [0.45]}, 0.5), 32, "exactly 90 % is enough; later ones may be worse")
    same(lab.d90({}, 0.5), None, "no scores, no d")


@task(4)
def test_strengths_of_one_and_zero(lab):
    arrays, M, x = [draw(2, seed=72), draw(1, 3, seed=73)], draw(2, 5, seed=74), draw(2, seed=75)
    got = lab.structure_aware(arrays, x, array([1.0, 0.0]), M)
    close(got[0], arrays[0] + (x @ M)[:2], "a strength of 1 is the plain form")
    close(got[1], arrays[1], "a strength of 0 leaves the array at θ₀")


@task(4)
def test_what_does_not_fit(lab):
    arrays, M = [draw(2, seed=76), draw(3, seed=77)], draw(2, 5, seed=78)
    hint = "two arrays need two strengths, and M's two rows two numbers"
    refuses(lambda: lab.structure_aware(arrays, zeros(2), zeros(3), M), "ValueError", hint)
    refuses(lambda: lab.structure_aware(arrays, zeros(3), zeros(2), M), "ValueError", hint)


def dense(M, d, D):
    """The matrix of a Fastfood, formed from its parts."""
    H, n = hadamard_matrix(M.n), M.n
    B, order, G = M.B, M.order, M.G
    rows = zeros(d, M.blocks * n)
    for i in range(d):
        for k in range(M.blocks):
            x = zeros(n)
            x[i] = B[k, i]
            x = (x @ H)[order[k]] * G[k]
            rows[i, k * n : (k + 1) * n] = x @ H
    return rows[:, :D]


def _flat(arrays):
    total = zeros(sum(a.size for a in arrays))
    start = 0
    for a in arrays:
        total[start : start + a.size] = a.reshape(-1)
        start += a.size
    return total

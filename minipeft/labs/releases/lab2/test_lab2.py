"""The public tests of lab 2: `minipeft lab check .`, or `pytest`, or `pytest -m lab2_2` for task 2 alone."""

from minipeft.labs.kit import close, draw, refuses, same, softmax, task, zeros


@task(1)
def test_without_a_mask(lab, mp):
    q, k, v = (draw(2, 3, 4, 5, seed=s) for s in (1, 2, 3))
    got = lab.attention(mp.Tensor(q), mp.Tensor(k), mp.Tensor(v)).data
    close(got, softmax(q @ k.swapaxes(-1, -2) / 5**0.5) @ v, "softmax(Q Kᵀ / √d_h) V, with the d_h of one head")


@task(1)
def test_padding_is_not_seen(lab, mp):
    q, k, v = (draw(2, 1, 3, 4, seed=s) for s in (4, 5, 6))
    mask = zeros(2, 3) + 1
    mask[1, 2] = 0
    got = lab.attention(mp.Tensor(q), mp.Tensor(k), mp.Tensor(v), mask=mask).data
    scores = q @ k.swapaxes(-1, -2) / 2.0
    close(got[0], softmax(scores[0]) @ v[0], "row 0 has no padding")
    close(got[1], softmax(scores[1][..., :2]) @ v[1][:, :2], "row 1 has 2 tokens: its third key counts for nothing")


@task(1)
def test_a_causal_model_does_not_see_the_future(lab, mp):
    q, k, v = (draw(1, 2, 4, 3, seed=s) for s in (7, 8, 9))
    got = lab.attention(mp.Tensor(q), mp.Tensor(k), mp.Tensor(v), causal=True).data
    close(got[:, :, 0], v[:, :, 0], "position 0 sees itself alone, so it gets its own value")
    scores = q @ k.swapaxes(-1, -2) / 3**0.5
    close(got[:, :, 2:3], softmax(scores[:, :, 2:3, :3]) @ v[:, :, :3], "position 2 sees the keys 0, 1 and 2")


@task(2)
def test_every_head_has_its_columns(lab, mp):
    x = draw(2, 3, 8, seed=10)
    got = lab.split_heads(mp.Tensor(x), 2).data
    same(got.shape, (2, 2, 3, 4), "(batch, seq, d) -> (batch, heads, seq, d / heads)")
    close(got[:, 1], x[:, :, 4:], "head 1 of 2 has the columns 4 to 8 of every position")


@task(2)
def test_there_and_back(lab, mp):
    x = draw(2, 3, 8, seed=11)
    close(lab.merge_heads(mp.Tensor(x.reshape(2, 3, 4, 2).swapaxes(1, 2).copy())).data, x, "merge_heads undoes it")


@task(3)
def test_the_mean_is_0_and_the_variance_1(lab, mp):
    x = draw(4, 6, seed=12)
    y = lab.layer_norm(mp.Tensor(x), mp.Tensor(zeros(6) + 1), mp.Tensor(zeros(6)), eps=0.0).data
    close(1 + y.mean(axis=-1), zeros(4) + 1, "along the last axis the mean is 0")
    close((y * y).mean(axis=-1), zeros(4) + 1, "and the variance, divided by d, is 1")


@task(3)
def test_scale_and_shift(lab, mp):
    x, w, b = draw(2, 3, 5, seed=13), draw(5, seed=14), draw(5, seed=15)
    got = lab.layer_norm(mp.Tensor(x), mp.Tensor(w), mp.Tensor(b), eps=0.1).data
    centred = x - x.mean(axis=-1, keepdims=True)
    want = centred / (centred.var(axis=-1, keepdims=True) + 0.1) ** 0.5 * w + b
    close(got, want, "x̂ ⊙ weight + bias; eps is added to the variance, under the root")


@task(4)
def test_pre_norm(lab, mp):
    block, reference = blocks(lab, mp, norm_first=True)
    x = draw(2, 3, 4, seed=16)
    close(block(mp.Tensor(x)).data, reference(x), "x + f(norm(x)), twice")


@task(4)
def test_post_norm(lab, mp):
    block, reference = blocks(lab, mp, norm_first=False)
    x = draw(2, 3, 4, seed=17)
    close(block(mp.Tensor(x)).data, reference(x), "norm(x + f(x)), twice")


@task(4)
def test_the_parameters_of_a_block(lab):
    same(lab.count_block(768, 3072), 7_087_872, "for d_ff = 4 d it is 12 d² + 13 d")


@task(2)
def test_heads_that_do_not_divide_the_width(lab, mp):
    refuses(lambda: lab.split_heads(mp.Tensor(draw(1, 2, 6)), 4), "ValueError", "4 heads do not divide a width of 6")


def blocks(lab, mp, norm_first, d=4, d_ff=6):
    """A block of the student's over known parts, and a function of arrays that computes the same."""
    import math

    W, U, D = draw(d, d, seed=20), draw(d, d_ff, seed=21), draw(d_ff, d, seed=22)
    n1, n2 = draw(d, seed=23), draw(d, seed=24)
    attend, up, down = mp.nn.Linear(d, d, False), mp.nn.Linear(d, d_ff, False), mp.nn.Linear(d_ff, d, False)
    attend.weight.data, up.weight.data, down.weight.data = W.copy(), U.copy(), D.copy()
    norms = mp.nn.RMSNorm(d), mp.nn.RMSNorm(d)
    norms[0].weight.data, norms[1].weight.data = n1.copy(), n2.copy()
    block = lab.Block(attend, up, down, norms[0], norms[1], norm_first)

    def gelu(z):
        flat = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in z.reshape(-1).tolist()]
        return (zeros(len(flat)) + flat).reshape(z.shape)

    def norm(x, weight):
        return x / ((x * x).mean(axis=-1, keepdims=True) + 1e-5) ** 0.5 * weight

    def mlp(x):
        return gelu(x @ U) @ D

    def reference(x):
        if norm_first:
            x = x + norm(x, n1) @ W
            return x + mlp(norm(x, n2))
        x = norm(x + x @ W, n1)
        return norm(x + mlp(x), n2)

    return block, reference

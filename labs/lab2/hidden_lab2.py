"""The hidden tests of lab 2. References are minipeft's own, in the grader's process."""

from minipeft import Tensor, functional
from minipeft.labs.kit import array, close, draw, same, softmax, task, that, zeros


def heads_of(x):
    """(batch, heads, seq, d_h) -> (batch, seq, heads · d_h), for minipeft's own attention."""
    b, h, n, d = x.shape
    return x.swapaxes(1, 2).reshape(b, n, h * d)


@task(1)
def test_both_masks_and_another_length(lab, mp):
    q, k, v = draw(2, 2, 4, 3, seed=31), draw(2, 2, 4, 3, seed=32), draw(2, 2, 4, 3, seed=33)
    mask = zeros(2, 4).astype("int64") + 1
    mask[0, 3] = 0
    mask[1, 1] = 0
    got = lab.attention(mp.Tensor(q), mp.Tensor(k), mp.Tensor(v), mask=mask, causal=True).data
    want = functional.attention(*(Tensor(heads_of(x)) for x in (q, k, v)), heads=2, mask=mask, causal=True).data
    close(heads_of(got), want, "a key is seen if the mask and the order allow it", ulps=2048)
    k2, v2 = draw(2, 2, 6, 3, seed=34), draw(2, 2, 6, 3, seed=35)
    got = lab.attention(mp.Tensor(q), mp.Tensor(k2), mp.Tensor(v2)).data
    close(got, softmax(q @ k2.swapaxes(-1, -2) / 3**0.5) @ v2, "keys and values may have another seq than queries")


@task(1)
def test_the_gradients(lab, mp):
    arrays = [draw(1, 2, 3, 4, seed=s) for s in (36, 37, 38)]
    g = draw(1, 2, 3, 4, seed=39)
    mine = [mp.Tensor(a.copy(), True) for a in arrays]
    lab.attention(*mine, causal=True).backward(g.copy())
    theirs = [Tensor(heads_of(a).copy(), True) for a in arrays]
    functional.attention(*theirs, heads=2, causal=True).backward(heads_of(g).copy())
    for name, a, b in zip("qkv", mine, theirs, strict=True):
        close(heads_of(a.grad), b.grad, f"dL/d{name}: keep to Tensors all the way", ulps=4096)


@task(1)
def test_large_scores_and_float32(lab, mp):
    q = 200 * draw(1, 1, 3, 4, seed=40, dtype="float32")
    got = lab.attention(mp.Tensor(q), mp.Tensor(q), mp.Tensor(q), causal=True).data
    same(str(got.dtype), "float32", "float32 in, float32 out: give the constants the dtype of q")
    that(bool((abs(got) < 1e4).all()), "large scores must not overflow: functional.softmax takes care of it")


@task(1)
def test_a_masked_value_does_not_leak(lab, mp):
    q, k, v = (draw(1, 1, 3, 2, seed=s) for s in (41, 42, 43))
    mask = array([[1, 1, 0]])
    before = lab.attention(mp.Tensor(q), mp.Tensor(k), mp.Tensor(v), mask=mask).data
    k[0, 0, 2], v[0, 0, 2] = 50.0, 1e6
    after = lab.attention(mp.Tensor(q), mp.Tensor(k), mp.Tensor(v), mask=mask).data
    same(after, before, "whatever stands at a padded place, the output is the same to the last bit")


@task(2)
def test_more_heads_than_positions(lab, mp):
    x = draw(3, 2, 12, seed=44)
    got = lab.split_heads(mp.Tensor(x), 6).data
    same(got.shape, (3, 6, 2, 2), "(batch, heads, seq, d / heads)")
    close(got[2, 5, 1], x[2, 1, 10:], "head 5, position 1")
    back = lab.merge_heads(mp.Tensor(got)).data
    close(back, x, "merge_heads(split_heads(x)) is x")


@task(2)
def test_one_head(lab, mp):
    x = draw(1, 3, 4, seed=45)
    close(lab.split_heads(mp.Tensor(x), 1).data[:, 0], x, "one head has all columns")


@task(3)
def test_the_gradients_of_the_norm(lab, mp):
    x, w, b, g = draw(3, 4, seed=46), draw(4, seed=47), draw(4, seed=48), draw(3, 4, seed=49)
    mine = [mp.Tensor(a.copy(), True) for a in (x, w, b)]
    lab.layer_norm(*mine, eps=1e-5).backward(g.copy())
    theirs = [Tensor(a.copy(), True) for a in (x, w, b)]
    functional.layer_norm(*theirs, eps=1e-5).backward(g.copy())
    for name, a, c in zip(("x", "weight", "bias"), mine, theirs, strict=True):
        close(a.grad, c.grad, f"dL/d{name}: the mean and the variance depend on x as well", ulps=4096)


@task(3)
def test_a_row_that_is_constant(lab, mp):
    y = lab.layer_norm(mp.Tensor(zeros(2, 3) + 7), mp.Tensor(zeros(3) + 1), mp.Tensor(zeros(3) + 2)).data
    close(y, zeros(2, 3) + 2, "a variance of zero: eps keeps the root away from zero")


@task(4)
def test_the_feed_forward_part(lab, mp):
    from minipeft.nn import Linear

    U, c, D, e = draw(4, 9, seed=50), draw(9, seed=51), draw(9, 4, seed=52), draw(4, seed=53)
    up, down = mp.nn.Linear(4, 9), mp.nn.Linear(9, 4)
    up.weight.data, up.bias.data, down.weight.data, down.bias.data = U.copy(), c.copy(), D.copy(), e.copy()
    block = lab.Block(mp.nn.Linear(4, 4), up, down, mp.nn.RMSNorm(4), mp.nn.RMSNorm(4), True)
    x = draw(2, 3, 4, seed=54)
    first, second = Linear(4, 9), Linear(9, 4)
    first.weight.data, first.bias.data, second.weight.data, second.bias.data = U, c, D, e
    want = second(functional.gelu(first(Tensor(x)))).data
    close(block.feed_forward(mp.Tensor(x)).data, want, "GELU between the two layers, with both biases", ulps=2048)


@task(4)
def test_with_sublayers_of_zero_the_block_is_the_identity(lab, mp):
    first, second = mp.nn.RMSNorm(4), mp.nn.RMSNorm(4)
    first.weight.data, second.weight.data = zeros(4) + 1, zeros(4) + 1
    block = lab.Block(*linears(mp, 0.0), first, second, True)
    x = draw(1, 2, 4, seed=55)
    close(block(mp.Tensor(x)).data, x, "pre-norm: what is added is zero, and the residual carries x through")


@task(4)
def test_the_norms_are_not_exchanged(lab, mp):
    for norm_first in (True, False):
        first, second = mp.nn.RMSNorm(4), mp.nn.RMSNorm(4)
        first.weight.data, second.weight.data = zeros(4) + 1, zeros(4) + 3
        block = lab.Block(*linears(mp, 0.0), first, second, norm_first)
        x = draw(1, 2, 4, seed=56)
        y = block(mp.Tensor(x)).data
        hint = "attn_norm belongs to attention, mlp_norm to the feed-forward part, the last one in post-norm"
        unit = x / ((x * x).mean(axis=-1, keepdims=True) + 1e-5) ** 0.5
        again = unit / ((unit * unit).mean(axis=-1, keepdims=True) + 1e-5) ** 0.5
        close(y, x if norm_first else 3 * again, hint)


@task(4)
def test_other_widths(lab):
    same(lab.count_block(384, 1536), 1_774_464, "MiniLM's block (d 384, d_ff 1536)")
    same(lab.count_block(2, 3), 4 * 6 + 9 + 8 + 8, "d 2, d_ff 3: count weights, biases and norms by hand")


def linears(mp, value):
    """attend, up and down with all weights of one value."""
    layers = mp.nn.Linear(4, 4, False), mp.nn.Linear(4, 5, False), mp.nn.Linear(5, 4, False)
    for layer in layers:
        layer.weight.data = zeros(*layer.weight.shape) + value
    return layers

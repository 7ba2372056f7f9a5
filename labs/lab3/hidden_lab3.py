"""The hidden tests of lab 3."""

from minipeft.labs.kit import close, draw, kind, refuses, same, task, that, zeros


def layer_with(lab, mp, d_in=5, d_out=4, r=2, alpha=6, dtype="float64", bias=True):
    W, b = draw(d_in, d_out, seed=11, dtype=dtype), draw(d_out, seed=12, dtype=dtype)
    A, B = draw(d_in, r, seed=13, dtype=dtype), draw(r, d_out, seed=14, dtype=dtype)
    linear = mp.nn.Linear(d_in, d_out, bias)
    linear.weight.data = W.copy()
    if bias:
        linear.bias.data = b.copy()
    layer = lab.LoRALinear(linear, mp.nn.Parameter(A.copy()), mp.nn.Parameter(B.copy()), alpha)
    return layer, W, b if bias else 0.0, A, B


def tiny(mp):
    config = mp.nn.TransformerConfig(vocab_size=20, d_model=8, layers=3, heads=2, d_ff=12, max_positions=6)
    return mp.nn.Transformer(config)


@task(1)
def test_any_leading_axes_and_no_bias(lab, mp):
    layer, W, b, A, B = layer_with(lab, mp, d_in=3, d_out=7, r=1, alpha=0.5, bias=False)
    X = draw(2, 4, 3, seed=15)
    close(layer(mp.Tensor(X)).data, X @ W + b + 0.5 * X @ A @ B, "(batch, seq, in) works as (rows, in) does")


@task(1)
def test_the_gradients_of_A_and_B(lab, mp):
    layer, _, _, A, B = layer_with(lab, mp, r=3, alpha=6)
    X, G = draw(4, 5, seed=16), draw(4, 4, seed=17)
    layer(mp.Tensor(X)).backward(G)
    close(layer.A.grad, 2.0 * X.T @ G @ B.T, "dL/dA = s · Xᵀ G Bᵀ")
    close(layer.B.grad, 2.0 * A.T @ X.T @ G, "dL/dB = s · (X A)ᵀ G")


@task(1)
def test_the_gradient_reaches_the_input(lab, mp):
    layer, W, _, A, B = layer_with(lab, mp)
    x, G = mp.Tensor(draw(2, 5, seed=18), True), draw(2, 4, seed=19)
    layer(x).backward(G)
    close(x.grad, G @ (W + 3.0 * A @ B).T, "layers below need dL/dX = G (W + s · A B)ᵀ")


@task(1)
def test_the_product_of_A_and_B_is_never_formed(lab, mp):
    layer, *_ = layer_with(lab, mp, d_in=64, d_out=64, r=1, alpha=1)
    kept = mp.autograd.saved.saved_arrays(layer(mp.Tensor(draw(2, 64), True)))
    large = [a for a in kept if a.size >= 64 * 64]
    that(len(large) <= 1, "X A first, (rows, r), then times B; A B would be as large as W")


@task(2)
def test_A_has_the_numbers_that_are_asked_for(lab, mp):
    layer = lab.lora_from(mp.nn.Linear(7, 5), r=4, alpha=4, seed=3)
    close(layer.A.data, draw(7, 4, seed=3) / 4, "A ~ N(0, 1/r²): standard_normal((in, r)) divided by r")
    same(str(layer.A.data.dtype), "float32", "A is float32")


@task(2)
def test_the_base_is_not_touched(lab, mp):
    linear = mp.nn.Linear(6, 4, False)
    W = linear.weight.data.copy()
    layer = lab.lora_from(linear, r=2, alpha=4, seed=0)
    same(layer.linear.weight.data, W, "the pre-trained weight is kept as it is")
    same(layer.linear.weight.requires_grad, False, "and frozen, also where there is no bias")


@task(2)
def test_freeze_reaches_all_below(lab, mp):
    model = tiny(mp)
    lab.freeze(model)
    left = [name for name, p in model.named_parameters() if p.requires_grad]
    same(left, [], "freeze() goes through every parameter of the module, at any depth")


@task(2)
def test_the_first_gradient_moves_B_alone(lab, mp):
    layer = lab.lora_from(mp.nn.Linear(4, 3), r=2, alpha=2, seed=1)
    X, G = mp.Tensor(draw(5, 4, dtype="float32")), draw(5, 3, seed=1, dtype="float32")
    mp.functional.linear(mp.functional.linear(X, layer.A), layer.B).backward(G)
    same(layer.A.grad, zeros(4, 2).astype("float32"), "with B = 0 the gradient of A is exactly zero")
    that(float(abs(layer.B.grad).min()) > 0, "B must get a gradient: with A = 0 as well, nothing would ever move")


@task(3)
def test_merging_twice_adds_once(lab, mp):
    layer, W, _, A, B = layer_with(lab, mp)
    layer.merge()
    layer.merge()
    close(layer.linear.weight.data, W + 3.0 * A @ B, "a second merge() must not add A B again")


@task(3)
def test_unmerging_an_unmerged_layer_does_nothing(lab, mp):
    layer, W, b, A, B = layer_with(lab, mp)
    layer.unmerge()
    same(layer.linear.weight.data, W, "unmerge() without merge() leaves W as it is")
    layer.merge()
    layer.unmerge()
    layer.unmerge()
    same(layer.linear.weight.data, W, "a second unmerge() leaves W as it is")
    X = draw(2, 5, seed=20)
    close(layer(mp.Tensor(X)).data, X @ W + b + 3.0 * X @ A @ B, "after unmerge() the branch is computed again")


@task(3)
def test_merging_again_after_training_on(lab, mp):
    layer, W, _, A, B = layer_with(lab, mp, dtype="float32")
    layer.merge()
    layer.unmerge()
    layer.B.data = 2 * B
    layer.merge()
    close(layer.linear.weight.data, W.astype("float64") + 6.0 * A.astype("float64") @ B, "merge() uses A and B of now")
    layer.unmerge()
    same(layer.linear.weight.data, W, "and unmerge() gives back W, every time")


@task(3)
def test_merging_leaves_A_and_B(lab, mp):
    layer, _, _, A, B = layer_with(lab, mp)
    layer.merge()
    same(layer.A.data, A, "merge() leaves A as it is")
    same(layer.B.data, B, "merge() leaves B as it is")
    same(bool(layer.merged), True, "merge() sets `merged`")


@task(4)
def test_the_count_of_the_paper(lab):
    same(
        lab.count_lora([(768, 768)] * 24, r=8), 294_912, "RoBERTa-base, 24 matrices, r = 8 (arXiv 2106.09685, table 2)"
    )
    same(lab.count_lora([(384, 1536), (1536, 384)], r=3), 11_520, "in and out may differ")
    same(lab.count_lora([], r=3), 0, "no weights, no parameters")


@task(4)
def test_only_linear_layers_of_that_name(lab, mp):
    model = tiny(mp)
    names = lab.apply_lora(model, ["up_proj"], r=2, alpha=4)
    same(list(names), [f"blocks.{i}.up_proj" for i in range(3)], "every block has an up_proj")
    refuses(lambda: lab.apply_lora(tiny(mp), ["proj"], r=2, alpha=4), "ValueError", "'proj' is no layer's whole name")
    refuses(lambda: lab.apply_lora(tiny(mp), ["attn_norm"], r=2, alpha=4), "ValueError", "a norm is no Linear")


@task(4)
def test_a_refusal_leaves_the_model_as_it_was(lab, mp):
    model = tiny(mp)
    refuses(lambda: lab.apply_lora(model, ["q_proj", "nothing"], 2, 4), "ValueError", "'nothing' names no layer")
    still = all(p.requires_grad for p in model.parameters())
    kinds = {kind(m) for name, m in model.named_modules() if name.endswith("q_proj")}
    that(still and kinds == {"Linear"}, "look for every target first, and change the model after that")


@task(4)
def test_every_layer_has_a_seed_of_its_own(lab, mp):
    model = tiny(mp)
    lab.apply_lora(model, ["q_proj", "o_proj"], r=2, alpha=4, seed=5)
    A = [p.data for name, p in model.named_parameters() if name.endswith(".A")]
    that(len(A) == 6, "2 targets in 3 blocks are 6 layers")
    close(A[3], draw(8, 2, seed=8) / 2, "the i-th replaced layer gets the seed `seed + i`")

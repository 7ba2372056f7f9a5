"""The public tests of lab 3: `minipeft lab check .`, or `pytest`, or `pytest -m lab3_2` for task 2 alone."""

from minipeft.labs.kit import close, draw, refuses, same, task, zeros


def layer_with(lab, mp, d_in=5, d_out=4, r=2, alpha=6, dtype="float64"):
    """A LoRALinear whose matrices are all known, and NumPy copies of them: (layer, W, b, A, B)."""
    W, b = draw(d_in, d_out, seed=1, dtype=dtype), draw(d_out, seed=2, dtype=dtype)
    A, B = draw(d_in, r, seed=3, dtype=dtype), draw(r, d_out, seed=4, dtype=dtype)
    linear = mp.nn.Linear(d_in, d_out)
    linear.weight.data, linear.bias.data = W.copy(), b.copy()
    layer = lab.LoRALinear(linear, mp.nn.Parameter(A.copy()), mp.nn.Parameter(B.copy()), alpha)
    return layer, W, b, A, B


@task(1)
def test_it_computes_the_formula(lab, mp):
    layer, W, b, A, B = layer_with(lab, mp)
    X = draw(3, 5, seed=5)
    hint = "Y = X W + b + s · X A B; look at each of the three terms"
    close(layer(mp.Tensor(X)).data, X @ W + b + 3.0 * X @ A @ B, hint)


@task(1)
def test_the_scale_is_alpha_over_r(lab, mp):
    layer, W, b, A, B = layer_with(lab, mp, r=2, alpha=1)
    X = draw(2, 5, seed=6)
    close(layer(mp.Tensor(X)).data - (X @ W + b), 0.5 * X @ A @ B, "s = α / r: with α = 1 and r = 2 it is 0.5", 4096)


@task(2)
def test_B_starts_at_zero(lab, mp):
    layer = lab.lora_from(mp.nn.Linear(6, 4), r=3, alpha=3, seed=0)
    same(layer.B.data, zeros(3, 4).astype("float32"), "B is zero at the start, float32, of shape (r, out)")
    same(layer.A.shape, (6, 3), "A has shape (in, r)")


@task(2)
def test_it_is_frozen_but_for_A_and_B(lab, mp):
    layer = lab.lora_from(mp.nn.Linear(4, 4), r=2, alpha=2, seed=0)
    flags = {name: p.requires_grad for name, p in layer.named_parameters()}
    wanted = {"linear.weight": False, "linear.bias": False, "A": True, "B": True}
    same(flags, wanted, "linear.weight and linear.bias are frozen, A and B are Parameters that need a gradient")


@task(3)
def test_merging_changes_the_weight_and_not_the_output(lab, mp):
    layer, W, b, A, B = layer_with(lab, mp)
    X = draw(3, 5, seed=7)
    layer.merge()
    close(layer.linear.weight.data, W + 3.0 * A @ B, "after merge(), the weight is W + s · A B")
    hint = "after merge(), the output is the same as before; do not add the change twice"
    close(layer(mp.Tensor(X)).data, X @ W + b + 3.0 * X @ A @ B, hint)


@task(3)
def test_unmerging_restores_every_bit(lab, mp):
    layer, W, _, _, _ = layer_with(lab, mp, dtype="float32")
    layer.merge()
    layer.unmerge()
    same(layer.linear.weight.data, W, "W + D - D is not W in floating point: keep a copy of W")


@task(4)
def test_the_count_of_two_layers(lab):
    same(lab.count_lora([(768, 768), (768, 768)], r=8), 24_576, "A has in · r numbers, B has r · out")


@task(4)
def test_the_targets_are_replaced(lab, mp):
    model = tiny(mp)
    names = lab.apply_lora(model, ["q_proj", "v_proj"], r=2, alpha=4)
    expected = [f"blocks.{i}.{p}" for i in range(2) for p in ("q_proj", "v_proj")]
    same(list(names), expected, "the names of what was replaced, in the order of named_modules()")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    hint = "freeze the model; then only A and B of the replaced layers are trained"
    same(sorted(trained), sorted(f"{name}.{m}" for name in expected for m in "AB"), hint)


@task(4)
def test_a_target_that_names_nothing_is_refused(lab, mp):
    call = lambda: lab.apply_lora(tiny(mp), ["q_proj", "query"], r=2, alpha=4)
    refuses(call, "ValueError", "'query' names no layer: silence here trains less than the user believes")


def tiny(mp):
    """A transformer of two blocks."""
    config = mp.nn.TransformerConfig(vocab_size=20, d_model=8, layers=2, heads=2, d_ff=16, max_positions=6)
    return mp.nn.Transformer(config)

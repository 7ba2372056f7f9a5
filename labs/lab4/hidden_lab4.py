"""The hidden tests of lab 4. References are minipeft's own, in the grader's process."""

import minipeft
from minipeft.cost.memory import activation_bytes
from minipeft.labs.kit import close, draw, kind, refuses, same, task, that, whole, zeros
from minipeft.peft import TopKConfig, get_peft_model


def model_of(mp, layers=3, norm_first=False, head=True):
    mp.seed(3)
    config = mp.nn.TransformerConfig(
        vocab_size=12, d_model=8, layers=layers, heads=2, d_ff=16, max_positions=6, norm_first=norm_first
    )
    return mp.nn.Transformer(config, mp.nn.ClassificationHead(8, 3) if head else None)


def batch():
    return whole(0, 12, 4, 6, seed=11), whole(0, 3, 4, seed=12)


def trained(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


def wanted(k, **options):
    """What minipeft trains, by name."""
    peft = get_peft_model(model_of(minipeft, **options), TopKConfig(k))
    return [name.removeprefix("model.") for name in peft.trainable_parameters()]


@task(1)
def test_the_gradients_of_an_adapter(lab, mp):
    down, up = mp.nn.Linear(5, 2), mp.nn.Linear(2, 5)
    W, U, G = draw(5, 2, seed=13), draw(2, 5, seed=14), draw(3, 5, seed=15)
    down.weight.data, up.weight.data = W.copy(), U.copy()
    down.bias.data, up.bias.data = zeros(2), zeros(5)
    h = mp.Tensor(draw(3, 5, seed=16), True)
    lab.Adapter(down, up)(h).backward(G.copy())
    mine = minipeft.Tensor(draw(3, 5, seed=16), True)
    W_, U_ = minipeft.Tensor(W, True), minipeft.Tensor(U, True)
    (mine + minipeft.functional.gelu(mine @ W_) @ U_).backward(G.copy())
    close(h.grad, mine.grad, "the gradient reaches h along both ways: the residual and the bottleneck", ulps=2048)
    close(down.weight.grad, W_.grad, "dL/dW_down", ulps=2048)
    close(up.weight.grad, U_.grad, "dL/dW_up", ulps=2048)


@task(1)
def test_the_numbers_of_a_new_adapter(lab, mp):
    adapter = lab.new_adapter(4, 3, seed=5)
    close(adapter.down.weight.data, 0.02 * draw(4, 3, seed=5), "W_down = 0.02 · standard_normal((d, R))")
    same(str(adapter.down.weight.data.dtype), "float32", "weights are float32")
    for p, shape in ((adapter.up.weight, (3, 4)), (adapter.up.bias, (4,)), (adapter.down.bias, (3,))):
        same(p.data, zeros(*shape).astype("float32"), "W_up, b_up and b_down are zero")


@task(1)
def test_the_model_with_adapters_starts_as_the_base(lab, mp):
    model, (ids, _) = model_of(mp), batch()
    before = model(ids).data
    lab.add_adapters(model, R=3, seed=0)
    same(model(ids).data, before, "new adapters change nothing, to the last bit")
    close(model.blocks[1].down_proj.second.down.weight.data, 0.02 * draw(8, 3, seed=3), "block 1, down_proj: seed + 3")
    close(model.blocks[2].o_proj.second.down.weight.data, 0.02 * draw(8, 3, seed=4), "block 2, o_proj: seed + 4")
    same(kind(model.blocks[0].o_proj.first), "Linear", "Sequence(block.o_proj, adapter): the layer first")


@task(1)
def test_nothing_else_is_trained(lab, mp):
    model = model_of(mp)
    lab.add_adapters(model, R=3, seed=0)
    frozen = [name for name in trained(model) if not ("second" in name or name.startswith("head"))]
    same(frozen, [], "only adapters and the head are trained")


@task(2)
def test_every_k(lab, mp):
    model = model_of(mp)
    for k in (2, 0, 3, 1):
        lab.train_top(model, k)
        same(trained(model), wanted(k), f"k = {k}, after other calls on the same model: each call stands for itself")


@task(2)
def test_the_final_norm_of_a_pre_norm_model(lab, mp):
    model = model_of(mp, norm_first=True)
    lab.train_top(model, 1)
    same(trained(model), wanted(1, norm_first=True), "final_norm lies above the top block, so it is trained")


@task(2)
def test_a_refusal_changes_nothing(lab, mp):
    model = model_of(mp)
    refuses(lambda: lab.train_top(model, -1), "ValueError", "k is 0 or more")
    refuses(lambda: lab.train_top(model, 4), "ValueError", "the model has 3 blocks")
    that(all(p.requires_grad for p in model.parameters()), "check k before anything is frozen")


@task(3)
def test_an_earlier_batch_does_not_count(lab, mp):
    model, (ids, labels) = model_of(mp), batch()
    first = lab.gradient_norms(model, ids, labels)
    again = lab.gradient_norms(model, ids, labels)
    same(list(again), list(first), "clear parameter.grad first: gradients add up from batch to batch")
    for p in model.parameters():
        p.requires_grad = False
    model.head.classifier.weight.requires_grad = True
    got = lab.gradient_norms(model, ids, labels)
    same([norm is None for norm in got], [True] * 4 + [False], "gradients of before the freeze are gone as well")


@task(3)
def test_the_sizes(lab, mp):
    model, (ids, labels) = model_of(mp), batch()
    got = lab.gradient_norms(model, ids, labels)
    mine = model_of(minipeft)
    minipeft.functional.cross_entropy(mine(ids), labels).backward()
    want = []
    for part in [mine.embed, *mine.blocks, mine.head]:
        squares = [(p.grad.astype("float64") ** 2).sum() for p in part.parameters() if p.grad is not None]
        want.append(float(sum(squares)) ** 0.5)
    close(got, want, "one number a part: the root of the sum over all its parameters", ulps=1e11)


@task(4)
def test_every_k_keeps_less(lab, mp):
    ids, labels = batch()
    for k in range(4):
        peft = get_peft_model(model_of(minipeft), TopKConfig(k))
        want = activation_bytes(minipeft.functional.cross_entropy(peft(ids), labels), peft)
        model = model_of(mp)
        names = set(wanted(k))
        for name, p in model.named_parameters():
            p.requires_grad = name in names
        got = lab.kept_bytes(mp.functional.cross_entropy(model(ids), labels), model)
        same(got, want, f"top-{k}: every buffer that is held, without the model's own parameters")


@task(4)
def test_a_parameter_that_is_a_view_is_still_a_parameter(lab, mp):
    model, x = mp.nn.Linear(6, 6), mp.Tensor(draw(5, 6, seed=17, dtype="float32"), True)
    mp.optim.SGD(model.parameters(), 0.1)  # now weight and bias are pieces of one vector
    got = lab.kept_bytes(model(x).sum(), model)
    same(got, 5 * 6 * 4, "buffer_of(parameter.data) is what the tape holds of a parameter")


@task(4)
def test_frozen_parameters_cost_no_optimizer(lab, mp):
    model = model_of(mp)
    same(lab.training_bytes(model), 12 * sum(p.data.size for p in model_of(minipeft).parameters()), "all are trained")
    for name, p in model.named_parameters():
        p.requires_grad = name == "head.classifier.bias"
    same(lab.training_bytes(model), 12 * 3, "three trained numbers, 4 bytes each, three times")
    model.astype("float64")
    same(lab.training_bytes(model), 24 * 3, "in float64 each number takes 8 bytes")


@task(4)
def test_other_widths(lab):
    same(lab.count_adapters(384, 16, 6), 6 * 2 * (2 * 384 * 16 + 16 + 384), "2 d R + R + d, two in a block")
    same(lab.count_adapters(5, 1, 1), 2 * 16, "d 5, R 1: 5 + 1 + 5 + 5, twice")

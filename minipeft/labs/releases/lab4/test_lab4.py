"""The public tests of lab 4: `minipeft lab check .`, or `pytest`, or `pytest -m lab4_2` for task 2 alone."""

import minipeft
from minipeft.labs.kit import close, draw, refuses, same, task, that, whole


def model_of(mp, layers=4):
    """A post-norm encoder of four blocks with two classes. The same weights every time."""
    mp.seed(7)
    config = mp.nn.TransformerConfig(vocab_size=12, d_model=8, layers=layers, heads=2, d_ff=16, max_positions=5)
    return mp.nn.Transformer(config, mp.nn.ClassificationHead(8, 2))


def batch():
    """Three rows of five tokens, and their classes."""
    return whole(0, 12, 3, 5, seed=1), whole(0, 2, 3, seed=2)


def trained(model):
    """The names of what is trained."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


@task(1)
def test_it_computes_the_formula(lab, mp):
    W, b, U, c = draw(6, 3, seed=3), draw(3, seed=4), draw(3, 6, seed=5), draw(6, seed=6)
    down, up = mp.nn.Linear(6, 3), mp.nn.Linear(3, 6)
    down.weight.data, down.bias.data, up.weight.data, up.bias.data = W.copy(), b.copy(), U.copy(), c.copy()
    h = draw(2, 4, 6, seed=7)
    want = h + minipeft.functional.gelu(minipeft.Tensor(h @ W + b)).data @ U + c
    close(lab.Adapter(down, up)(mp.Tensor(h)).data, want, "h + gelu(h W_down + b_down) W_up + b_up")


@task(1)
def test_it_starts_as_the_identity(lab, mp):
    adapter = lab.new_adapter(6, 2, seed=0)
    h = draw(3, 6, seed=8, dtype="float32")
    same(adapter(mp.Tensor(h)).data, h, "W_up = 0 and b_up = 0: the adapter gives back h, to the last bit")
    that(bool((adapter.down.weight.data != 0).all()), "W_down is not zero, or nothing would ever move")


@task(1)
def test_two_adapters_in_every_block(lab, mp):
    model = model_of(mp)
    lab.add_adapters(model, R=2, seed=0)
    names = trained(model)
    hint = "behind o_proj and down_proj of each block: weight and bias of down and up; and the head"
    same(len([name for name in names if name.startswith("blocks.")]), 4 * 2 * 4, hint)
    same([name for name in names if not name.startswith("blocks.")], HEAD, hint)


@task(2)
def test_the_last_blocks_are_trained(lab, mp):
    model = model_of(mp)
    lab.train_top(model, 1)
    names = trained(model)
    that(any(name.startswith("blocks.3.") for name in names), "the top block is the last one, blocks.3")
    that(
        not any(name.startswith(("blocks.0", "blocks.1", "blocks.2", "embed")) for name in names),
        "the others are frozen",
    )
    same([name for name in names if name.startswith("head")], HEAD, "the head is always trained")


@task(2)
def test_more_blocks_than_there_are(lab, mp):
    refuses(lambda: lab.train_top(model_of(mp), 5), "ValueError", "the model has 4 blocks")


@task(3)
def test_with_everything_trained_it_goes_all_the_way(lab, mp):
    got = lab.gradient_norms(model_of(mp), *batch())
    same(len(got), 6, "the embeddings, four blocks, and the head")
    close(got, reference(), "√(Σ g²) over all gradients of a part", ulps=1e11)  # of float32 gradients


@task(3)
def test_below_the_cut_there_is_none(lab, mp):
    model = model_of(mp)
    freeze(model, ("embed", "blocks.0", "blocks.1"))
    got = lab.gradient_norms(model, *batch())
    same([norm is None for norm in got], [True, True, True, False, False, False], "None where no gradient has arrived")


@task(4)
def test_the_parameters_of_adapters(lab):
    same(lab.count_adapters(768, 64, 12), 2_379_264, "BERT-base with R = 64 (arXiv 1902.00751); biases count too")


@task(4)
def test_the_bytes_of_the_optimizer(lab, mp):
    model = mp.nn.Linear(10, 5)
    same(lab.training_bytes(model), 3 * 4 * 55, "gradient, m and v: three float32 numbers for each of 55 parameters")


@task(4)
def test_what_the_tape_keeps(lab, mp):
    model, x = mp.nn.Linear(6, 2), mp.Tensor(draw(5, 6, seed=9, dtype="float32"))
    same(lab.kept_bytes(model(x).sum(), model), 5 * 6 * 4, "for dW the tape keeps x: (5, 6) float32, and nothing else")
    model.weight.requires_grad = False
    same(lab.kept_bytes(model(x).sum(), model), 0, "W is frozen, so x is not needed any more")


HEAD = ["head.pooler.weight", "head.pooler.bias", "head.classifier.weight", "head.classifier.bias"]


def freeze(model, parts):
    for name, p in model.named_parameters():
        if name.startswith(parts):
            p.requires_grad = False


def reference():
    """The norms, by minipeft here."""
    model = model_of(minipeft)
    ids, labels = batch()
    minipeft.functional.cross_entropy(model(ids), labels).backward()
    norms = []
    for part in [model.embed, *model.blocks, model.head]:
        squares = [float((p.grad.astype("float64") ** 2).sum()) for p in part.parameters() if p.grad is not None]
        norms.append(sum(squares) ** 0.5)
    return norms

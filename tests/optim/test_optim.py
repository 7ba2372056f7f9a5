"""Optimizers, schedules and clipping, against torch and transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minipeft.autograd import Tensor
from minipeft.backend import active
from minipeft.errors import UserError
from minipeft.nn import Parameter
from minipeft.optim import SCHEDULES, SGD, AdamW, FlatParameters, clip_grad_norm, constant, cosine, linear

SHAPES = [(3, 4), (4,), (), (2, 1, 5), (1,)]


def parameters(dtype="float64", shapes=SHAPES):
    rng = np.random.default_rng(0)
    return [Parameter(np.asarray(rng.standard_normal(shape)).astype(dtype)) for shape in shapes]


def gradients(step, dtype="float64", shapes=SHAPES):
    """Of very different sizes, so that ε has its say in some places."""
    rng = np.random.default_rng(step + 1)
    return [
        np.asarray(rng.standard_normal(shape) * 10.0 ** -rng.integers(0, 10, shape)).astype(dtype) for shape in shapes
    ]


def give(ps, gs):
    for p, g in zip(ps, gs, strict=True):
        p.grad[...] = g


def run(optimizer, ps, steps, start=0):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        give(ps, gradients(step, ps[0].dtype))
        optimizer.step()


# ---- against torch

ADAMW = [{}, {"lr": 3e-2, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.3}, {"lr": 0.1, "weight_decay": 0.0}]
SGDS = [{}, {"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 0.1}, {"weight_decay": 0.1}]


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [(AdamW, "AdamW", o) for o in ADAMW] + [(SGD, "SGD", {"lr": 0.05, **o}) for o in SGDS],
    ids=str,
)
def test_ten_steps_are_torchs(torch, ours, theirs, options):
    ps = parameters()
    references = [torch.nn.Parameter(torch.tensor(p.numpy())) for p in ps]
    mine, torchs = ours(ps, **options), getattr(torch.optim, theirs)(references, **options)
    rates = [None, None, 1e-2, 0.0, *np.linspace(0.1, 0.01, 6)]  # the constructor's, then those of a schedule
    for step, rate in enumerate(rates):
        if rate is not None:
            torchs.param_groups[0]["lr"] = float(rate)
        give(ps, gradients(step))
        for r, g in zip(references, gradients(step), strict=True):
            r.grad = torch.tensor(g)
        mine.step(rate)
        torchs.step()
        for p, r in zip(ps, references, strict=True):
            np.testing.assert_allclose(p.data, r.detach().numpy(), rtol=1e-12, atol=1e-13)
        mine.zero_grad()


def test_the_first_step_of_adam_is_lr_times_the_sign():
    """m̂ / √v̂ = g / |g| at the first step, whatever the size of g: both biases must be corrected."""
    p = Parameter(np.array([1.0, 1.0, 1.0]))
    optimizer = AdamW([p], lr=0.5, eps=0.0, weight_decay=0.0)
    p.grad[...] = [1e-12, -5, 1e12]
    optimizer.step()
    np.testing.assert_allclose(p.data, [0.5, 1.5, 0.5], rtol=1e-12)


def test_weight_decay_pulls_where_there_is_no_gradient():
    p = Parameter(np.array([2.0]))
    AdamW([p], lr=0.1, weight_decay=0.5).step()
    np.testing.assert_allclose(p.data, [2 * (1 - 0.05)], rtol=1e-15)


# ---- frozen parameters


@pytest.mark.parametrize("optimizer", [AdamW, SGD])
def test_frozen_parameters_do_not_move_a_bit_and_have_no_state(optimizer):
    ps = parameters("float32")
    ps[0].requires_grad = ps[3].requires_grad = False
    before = [p.data.copy() for p in ps]
    o = optimizer(ps, lr=0.1, weight_decay=0.5)
    trained = [p for p in ps if p.requires_grad]
    count = sum(p.numel() for p in trained)
    assert o.flat.theta.size == count
    assert all(v.size == count for v in o.state.values())
    assert o.state_bytes() == 4 * count * len(o.state)
    for _ in range(3):
        for p in trained:
            p.grad[...] = 1
        o.step()
    for p, then in zip(ps, before, strict=True):
        assert (p.data.tobytes() == then.tobytes()) == (not p.requires_grad)
    assert ps[0].grad is None


@pytest.mark.parametrize("optimizer", [AdamW, SGD])
def test_a_parameter_frozen_later_stops_and_the_others_go_on_as_if_nothing_had_happened(optimizer):
    options = {"lr": 0.1, "weight_decay": 0.1} | ({"momentum": 0.9} if optimizer is SGD else {})
    ps, reference = parameters(), parameters()
    a, b = optimizer(ps, **options), optimizer(reference, **options)
    run(a, ps, 3)
    run(b, reference, 3)
    frozen = ps[1]
    frozen.requires_grad = False
    then = frozen.data.tobytes()
    others = [i for i in range(len(ps)) if i != 1]
    for step in range(3, 6):
        gs = gradients(step)
        give([ps[i] for i in others], [gs[i] for i in others])
        give(reference, gs)
        a.step()
        b.step()
    assert frozen.data.tobytes() == then, "neither weight decay nor old moments move it"
    for i in others:
        np.testing.assert_array_equal(ps[i].data, reference[i].data)
    count = sum(ps[i].numel() for i in others)
    assert a.flat.theta.size == count
    assert all(v.size == count for v in a.state.values()), "its moments are dropped"
    assert frozen.grad is None


def test_nothing_to_train_is_an_error():
    ps = parameters()
    for p in ps:
        p.requires_grad = False
    for make in (AdamW, FlatParameters):
        with pytest.raises(UserError, match="every parameter is frozen"):
            make(ps)
    with pytest.raises(UserError, match="nothing to train"):
        AdamW([])


# ---- the flat vectors


def test_parameters_and_gradients_are_views_of_the_flat_vectors():
    ps = parameters()
    values = [p.data.copy() for p in ps]
    flat = FlatParameters(ps)
    assert flat.theta.shape == flat.grad.shape == (sum(p.numel() for p in ps),)
    np.testing.assert_array_equal(flat.theta, np.concatenate([v.reshape(-1) for v in values]))
    for p, value, cut in zip(ps, values, flat.cuts(), strict=True):
        assert p.shape == value.shape
        np.testing.assert_array_equal(p.data, value)
        flat.theta[cut], flat.grad[cut] = 7, 8
        assert (p.data == 7).all()
        assert (p.grad == 8).all()
        p.data[...], p.grad[...] = 5, 6
        assert (flat.theta[cut] == 5).all()
        assert (flat.grad[cut] == 6).all()


def test_backward_adds_into_the_flat_gradient():
    ps = parameters()
    o = SGD(ps, lr=1.0)
    for _ in range(2):
        sum(((p * p).sum() for p in ps), start=Tensor(np.array(0.0))).backward()
    np.testing.assert_allclose(o.flat.grad, 4 * o.flat.theta, rtol=1e-15)
    assert all(np.shares_memory(p.grad, o.flat.grad) for p in ps)


def test_a_parameter_given_twice_is_trained_once():
    p = Parameter(np.array([1.0]))
    o = SGD([p, p], lr=0.1)
    assert o.flat.theta.size == 1
    p.grad[...] = 1
    o.step()
    np.testing.assert_allclose(p.data, [0.9])


def test_a_gradient_that_somebody_set_is_taken_over():
    p, q = parameters(shapes=[(2,), (2,)])
    o = SGD([p, q], lr=1.0)
    before = p.data.copy(), q.data.copy()
    p.grad, q.grad = np.array([1.0, 2.0]), None
    o.step()
    np.testing.assert_array_equal(p.data, before[0] - [1, 2])
    np.testing.assert_array_equal(q.data, before[1])
    assert np.shares_memory(p.grad, o.flat.grad)


def test_zero_grad_clears_every_gradient():
    ps = parameters()
    o = SGD(ps, lr=1.0)
    before = o.flat.theta.copy()
    give(ps, gradients(0))
    ps[1].grad = np.ones(4)  # somebody set it: it is cleared like the others
    o.zero_grad()
    assert all((p.grad == 0).all() for p in ps)
    o.step()
    np.testing.assert_array_equal(o.flat.theta, before)


def test_data_that_was_replaced_is_an_error_and_not_a_silent_standstill():
    for replace in (lambda p: setattr(p, "data", p.data.copy()), lambda p: SGD([p], lr=0.1)):
        p = Parameter(np.array([1.0, 2.0]))
        o = SGD([p], lr=0.1)
        replace(p)
        with pytest.raises(UserError, match="make the optimizer"):
            o.step()


def test_mixed_dtypes_are_refused():
    with pytest.raises(UserError, match="differ in dtype"):
        AdamW([*parameters("float32"), *parameters("float64")])


# ---- checkpoints


@pytest.mark.parametrize(("optimizer", "options"), [(AdamW, {}), (SGD, {"momentum": 0.9})])
def test_going_on_from_a_saved_state_is_the_same_as_never_having_stopped(optimizer, options):
    ps = parameters("float32")
    o = optimizer(ps, lr=0.1, **options)
    run(o, ps, 3)
    saved = {name: array.copy() for name, array in o.state_dict().items()}
    assert saved.keys() == {"theta", *o.state}
    run(o, ps, 4, start=3)

    again = [Parameter(np.zeros_like(p.data)) for p in ps]
    resumed = optimizer(again, lr=0.1, **options)
    resumed.load_state_dict(saved, steps=3)
    run(resumed, again, 4, start=3)
    for p, q in zip(ps, again, strict=True):
        assert p.data.tobytes() == q.data.tobytes()


def test_a_state_of_other_parameters_or_another_optimizer_is_refused():
    o = AdamW(parameters())
    before = o.flat.theta.copy()
    good = {name: array + 1 for name, array in o.state_dict().items()}
    bad = [
        {k: v for k, v in good.items() if k != "v"},
        good | {"u": good["m"]},
        good | {"v": good["v"][:-1]},
        SGD(parameters(), lr=0.1).state_dict(),
    ]
    for state in bad:
        with pytest.raises(UserError, match="saved for other parameters or another optimizer"):
            o.load_state_dict(state, 1)
        np.testing.assert_array_equal(o.flat.theta, before)
        assert o.steps == 0


# ---- refusals


@pytest.mark.parametrize("lr", [0.0, -1e-3, math.nan])
@pytest.mark.parametrize("optimizer", [AdamW, SGD])
def test_a_rate_that_is_not_positive(optimizer, lr):
    with pytest.raises(UserError, match=f"lr={lr}: a learning rate is a positive number"):
        optimizer(parameters(), lr=lr)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9)])
def test_betas_out_of_range(betas):
    with pytest.raises(UserError, match="betas"):
        AdamW(parameters(), betas=betas)


# ---- schedules


@pytest.mark.parametrize(("total", "warmup"), [(10, 3), (10, 0), (1, 0), (5, 5), (7, 6), (100, 10)])
@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_schedules_are_those_of_transformers(torch, name, total, warmup):
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if name == "constant":
        scheduler = transformers.get_constant_schedule_with_warmup(optimizer, warmup)
    else:
        scheduler = getattr(transformers, f"get_{name}_schedule_with_warmup")(optimizer, warmup, total)
    for step in range(total + 1):
        assert SCHEDULES[name](step, total, warmup) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_schedules_start_at_zero_peak_after_the_warmup_and_end_at_zero_for_good(schedule):
    assert schedule(0, 100, 10) == 0
    assert schedule(10, 100, 10) == 1
    assert [schedule(step, 100, 10) for step in (100, 101, 500)] == [0, 0, 0]
    assert all(0 <= schedule(step, 100, 10) <= 1 for step in range(120))
    assert constant(99, 100, 10) == 1


# ---- clipping


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_clipping_is_torchs(torch, max_norm, scale):
    pieces = [g * scale for g in gradients(0)]
    flat = np.concatenate([g.reshape(-1) for g in pieces])
    references = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in pieces]
    for r, g in zip(references, pieces, strict=True):
        r.grad = torch.tensor(g)
    expected = torch.nn.utils.clip_grad_norm_(references, max_norm)
    norm = clip_grad_norm(flat, max_norm)
    assert float(norm) == pytest.approx(float(expected), rel=1e-12)
    clipped = np.concatenate([r.grad.numpy().reshape(-1) for r in references])
    np.testing.assert_allclose(flat, clipped, rtol=1e-12)


def test_a_zero_gradient_stays_zero():
    flat = active().xp.zeros(3, dtype="float32")
    assert float(clip_grad_norm(flat, 1.0)) == 0
    assert flat.tolist() == [0, 0, 0]

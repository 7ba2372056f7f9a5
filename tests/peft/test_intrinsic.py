"""θ = θ₀ + θ_d M: the projections as linear maps, and the method around them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BLOCK, DATA, EMBED, LAYERS, PAD, D, bits, call, disturb, logits, loss_of, take_steps, tiny_model

import minipeft as mp
from minipeft import UserError
from minipeft.backend import active
from minipeft.data import EncodedSet
from minipeft.optim import AdamW
from minipeft.peft import IntrinsicConfig, PeftModel, get_peft_model
from minipeft.peft.projection import PROJECTIONS, Projection
from minipeft.training import Trainer, TrainingConfig, evaluate

KINDS = tuple(PROJECTIONS)
every_kind = pytest.mark.parametrize("kind", KINDS)
BASE = EMBED + LAYERS * BLOCK  # D of the scope "all": everything but the head
TENSORS = 5 + LAYERS * 16  # parameter tensors outside the head


class OnHost:
    """A projection that takes and gives NumPy arrays, whatever the backend."""

    def __init__(self, P: Projection) -> None:
        self.P = P

    def forward(self, theta_d: np.ndarray) -> np.ndarray:
        return active().to_numpy(self.P.forward(active().asarray(theta_d)))

    def backward(self, g: np.ndarray) -> np.ndarray:
        return active().to_numpy(self.P.backward(active().asarray(g)))


def projection(kind: str, d: int, size: int, seed: int = 0) -> OnHost:
    return OnHost(PROJECTIONS[kind](d, size, seed))


def matrix(P: Projection | OnHost, d: int) -> np.ndarray:
    """M, a row at a time: e_i M."""
    return np.stack([OnHost(getattr(P, "P", P)).forward(unit) for unit in np.eye(d)])


# ---- M as a linear map

# d = 1, powers of two and their neighbours; D below, at and beside multiples of n, up to several blocks and chunks
shapes = st.tuples(
    st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 3, 4, 8, 15, 16, 17, 31, 32, 33, 64])), st.integers(1, 300)
)


@every_kind
@given(shape=shapes, seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_forward_is_linear_and_equal_to_the_explicit_matrix(kind: str, shape: tuple[int, int], seed: int) -> None:
    d, size = shape
    P = projection(kind, d, size, seed)
    M = matrix(P, d)
    assert M.shape == (d, size)
    x = np.random.default_rng(seed).standard_normal(d)
    np.testing.assert_allclose(P.forward(x), x @ M, rtol=1e-9, atol=1e-9)


@every_kind
@given(shape=shapes, seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_pitfall_backward_is_the_exact_transpose_of_forward(kind: str, shape: tuple[int, int], seed: int) -> None:
    """⟨x M, y⟩ = ⟨x, M y⟩: Fastfood's backward with another scale than its forward would fail here."""
    d, size = shape
    P = projection(kind, d, size, seed)
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal(d), rng.standard_normal(size)
    left, right = P.forward(x) @ y, x @ P.backward(y)
    assert left == pytest.approx(right, rel=1e-9, abs=1e-9)


@every_kind
def test_the_transpose_also_where_M_is_made_of_several_chunks(kind: str) -> None:
    d, size = 3, 200_001
    P = projection(kind, d, size)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(d), rng.standard_normal(size)
    assert P.forward(x) @ y == pytest.approx(x @ P.backward(y), rel=1e-9)
    np.testing.assert_allclose(P.backward(y), matrix(P, d) @ y, rtol=1e-9)


@every_kind
def test_no_two_stretches_of_M_are_alike(kind: str) -> None:
    """However long θ is, its pieces are moved independently: nothing is drawn twice."""
    d, size, piece = 2, 200_000, 1 << 16
    M = matrix(projection(kind, d, size), d)
    for start in (2, 1000, piece, 2 * piece):
        a, b = M[:, :piece].ravel(), M[:, start : start + piece].ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


@every_kind
def test_float32_goes_through_as_float32(kind: str) -> None:
    P = projection(kind, 10, 1000)
    assert P.forward(np.ones(10, dtype=np.float32)).dtype == np.float32
    assert P.backward(np.ones(1000, dtype=np.float32)).dtype == np.float32


@every_kind
@pytest.mark.parametrize("d", [1, 2, 50, 64])
def test_rows_have_one_length_and_are_nearly_orthogonal(kind: str, d: int) -> None:
    """The length is √(D/d): a parameter moves about as far as a coordinate of θ_d does, whatever d and D are."""
    size = 20_003
    M = matrix(projection(kind, d, size), d)
    gram = (M @ M.T) * (d / size)
    np.testing.assert_allclose(np.diag(gram), 1, atol=0.05)
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 6 / math.sqrt(size)


@every_kind
def test_the_entries_average_to_zero(kind: str) -> None:
    M = matrix(projection(kind, 40, 5000), 40)
    assert abs(M.mean()) < 5 * M.std() / math.sqrt(M.size)


def test_sparse_rows_have_root_D_entries_of_one_size() -> None:
    M = matrix(projection("sparse", 30, 1000), 30)
    k = math.ceil(math.sqrt(1000))
    assert ((M != 0).sum(axis=1) == k).all()
    np.testing.assert_allclose(np.abs(M[M != 0]), math.sqrt(1000 / (30 * k)), rtol=1e-6)
    assert 0.4 < (M[M != 0] > 0).mean() < 0.6


def test_dense_entries_are_normal_with_variance_one_over_d() -> None:
    M = matrix(projection("dense", 50, 2000), 50)
    assert M.var() * 50 == pytest.approx(1, rel=0.02)
    assert np.mean(np.abs(M) > 2 * M.std()) == pytest.approx(0.0455, abs=0.005)


def test_fastfood_moves_every_parameter_of_a_whole_block_equally_far() -> None:
    d, size = 16, 160
    M = matrix(projection("fastfood", d, size), d)
    np.testing.assert_allclose((M * M).sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose((M * M).sum(axis=1), size / d, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "fastfood"])
@pytest.mark.parametrize("d", [1, 5, 16])
def test_every_entry_of_M_is_there(kind: str, d: int) -> None:
    assert (matrix(projection(kind, d, 777), d) != 0).all()


@every_kind
@pytest.mark.parametrize("d", [1, 3, 8, 21])
def test_the_rows_are_independent(kind: str, d: int) -> None:
    assert np.linalg.matrix_rank(matrix(projection(kind, d, 2000), d)) == d


# ---- its seed


@every_kind
def test_the_same_seed_is_the_same_M_and_another_seed_another(kind: str) -> None:
    first, again, other = (matrix(projection(kind, 9, 500, seed), 9) for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.1


@every_kind
def test_pitfall_the_global_random_state_is_neither_read_nor_written(kind: str) -> None:
    before = np.random.get_state()
    try:
        made = []
        for seed in (1, 2):
            np.random.seed(seed)
            mp.seed(seed)  # nor our own root seed
            state = np.random.get_state()
            m = get_peft_model(tiny_model(), IntrinsicConfig(d=9, projection=kind))
            made.append(matrix(m.method.projection, 9))
            take_steps(m, 1)
            after = np.random.get_state()
            assert np.array_equal(state[1], after[1])
            assert state[2:] == after[2:]
        assert np.array_equal(*made)
    finally:
        np.random.set_state(before)


def test_making_M_takes_nothing_from_the_stream_of_initialisation() -> None:
    draws = []
    for config in (IntrinsicConfig(d=9), IntrinsicConfig(d=30, projection="sparse", seed=3)):
        model = tiny_model()
        mp.seed(0)
        get_peft_model(model, config)
        draws.append(mp.backend.random.stream("init").standard_normal(4))
    assert np.array_equal(*draws)


# ---- the method


def moved(m: PeftModel) -> dict[str, np.ndarray]:
    """θ - θ₀ of each parameter tensor, by merging."""
    before = {name: array.copy() for name, array in m.model.state_dict().items()}
    m.merge_adapter()
    after = {name: array.copy() for name, array in m.model.state_dict().items()}
    m.unmerge_adapter()
    return {name: after[name] - before[name] for name in before}


@pytest.mark.parametrize("kind", ["dense", "fastfood"])
def test_pitfall_every_coordinate_of_theta_d_reaches_every_parameter_tensor(kind: str) -> None:
    m = get_peft_model(tiny_model(), IntrinsicConfig(d=11, projection=kind)).astype("float64")
    for i in range(11):
        m.method.theta_d.data[...] = np.eye(11)[i]
        changes = {name: change for name, change in moved(m).items() if not name.startswith("head.")}
        assert len(changes) == TENSORS
        assert all((change != 0).all() for change in changes.values())


@every_kind
def test_the_weights_are_theta_0_plus_theta_d_M_and_the_head_stays(kind: str) -> None:
    m = get_peft_model(tiny_model(), IntrinsicConfig(d=23, projection=kind, seed=2)).astype("float64")
    disturb(m, std=1.0)
    changes = moved(m)
    assert not any(change.any() for name, change in changes.items() if name.startswith("head."))
    flat = np.concatenate([change.ravel() for name, change in changes.items() if not name.startswith("head.")])
    expected = m.method.theta_d.numpy() @ matrix(projection(kind, 23, BASE, seed=2), 23)
    np.testing.assert_allclose(flat, expected, rtol=1e-6, atol=1e-9)


@every_kind
def test_said_gives_each_tensor_its_own_strength_and_counts_it_in_d(kind: str) -> None:
    d = TENSORS + 7
    m = get_peft_model(tiny_model(), IntrinsicConfig(d=d, projection=kind, structure_aware=True)).astype("float64")
    theta_d, strength = m.method.theta_d, m.method.strength
    assert (theta_d.numel(), strength.numel()) == (7, TENSORS)
    assert not theta_d.numpy().any()
    assert (strength.numpy() == 1).all()
    disturb(m, std=0.5)
    changes = {name: change for name, change in moved(m).items() if not name.startswith("head.")}
    change = theta_d.numpy() @ matrix(projection(kind, 7, BASE), 7)
    start = 0
    for (name, got), factor in zip(changes.items(), strength.numpy(), strict=True):
        piece = factor * change[start : start + got.size].reshape(got.shape)
        np.testing.assert_allclose(got, piece, rtol=1e-6, atol=1e-9, err_msg=name)
        start += got.size
    assert start == BASE


def test_with_all_strengths_one_said_is_did() -> None:
    said = get_peft_model(tiny_model(), IntrinsicConfig(d=TENSORS + 7, structure_aware=True))
    did = get_peft_model(tiny_model(), IntrinsicConfig(d=7))
    for m in (said, did):
        m.method.theta_d.data[...] = np.arange(7)
    assert np.array_equal(logits(said), logits(did))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"d": TENSORS, "structure_aware": True}, rf"d > {TENSORS}"),
        ({"d": 1, "structure_aware": True}, rf"d > {TENSORS}"),
        ({"d": BASE + 1}, f"{BASE:,}"),
        ({"d": 17, "scope": ("blocks.0.q_proj.bias",)}, "blocks.0.q_proj.bias"),
        ({"d": 10, "scope": ("q_prj",)}, "q_proj"),
        ({"d": 10, "scope": ("head",)}, "head"),
        ({"d": 4 * D + 1, "scope": ("0.attn_norm", "1.attn_norm")}, f"{4 * D}"),
    ],
)
def test_a_d_or_a_scope_that_does_not_fit(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_peft_model(tiny_model(), IntrinsicConfig(**config))


@pytest.mark.parametrize(
    ("config", "message"), [({"d": 0}, "d=0"), ({"d": -5}, "d=-5"), ({"d": 5, "projection": "fastfod"}, "fastfood")]
)
def test_settings_that_make_no_sense(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        IntrinsicConfig(**config)


def test_a_dense_M_that_does_not_fit_in_memory() -> None:
    with pytest.raises(UserError, match="fastfood"):
        projection("dense", 1000, 10**13)


@pytest.mark.parametrize(
    ("scope", "prefixes"),
    [
        ("q_proj", tuple(f"blocks.{n}.q_proj." for n in range(LAYERS))),
        (("blocks.1",), ("blocks.1.",)),
        (
            ("blocks.1", "q_proj", "embed.norm"),
            (*(f"blocks.{n}.q_proj." for n in range(LAYERS)), "blocks.1.", "embed.norm."),
        ),
    ],
)
@pytest.mark.parametrize("kind", ["dense", "fastfood"])
def test_the_scope_moves_and_nothing_else(kind: str, scope: Any, prefixes: tuple[str, ...]) -> None:
    m = get_peft_model(tiny_model(), IntrinsicConfig(d=12, projection=kind, scope=scope))
    disturb(m)
    changes = moved(m)
    assert {name for name, change in changes.items() if change.any()} == {n for n in changes if n.startswith(prefixes)}
    assert sum(change.size for name, change in changes.items() if name.startswith(prefixes)) == m.method.D


def test_a_scope_that_names_a_module_twice_moves_it_once() -> None:
    once = get_peft_model(tiny_model(), IntrinsicConfig(d=12, scope=("blocks.1",)))
    twice = get_peft_model(tiny_model(), IntrinsicConfig(d=12, scope=("blocks.1", "1.q_proj")))
    assert once.method.D == twice.method.D == BLOCK


def test_a_tied_parameter_counts_once_and_moves_wherever_it_hangs() -> None:
    model = tiny_model()
    model.blocks[2].q_proj.weight = model.blocks[0].q_proj.weight
    m = get_peft_model(model, IntrinsicConfig(d=12, scope=("0.q_proj",)))
    assert m.method.D == D * D + D
    disturb(m)
    separate = logits(m)
    m.merge_adapter()
    assert np.array_equal(logits(m), separate)
    m.unmerge_adapter()
    assert model.blocks[2].q_proj.weight is model.blocks[0].q_proj.weight


# ---- θ₀ and the forward pass


@every_kind
@pytest.mark.parametrize("structure_aware", [False, True])
def test_pitfall_theta_0_does_not_move(kind: str, structure_aware: bool) -> None:
    m = get_peft_model(tiny_model(), IntrinsicConfig(d=60, projection=kind, structure_aware=structure_aware))
    objects = dict(m.model.named_parameters())
    before = bits(m.model)
    take_steps(m, weight_decay=0.3)
    logits(m)
    m.merge_adapter()
    m.unmerge_adapter()
    after = bits(m.model)
    assert {n for n in before if before[n] != after[n]} == {n for n in before if n.startswith("head.")}
    assert dict(m.model.named_parameters()) == objects  # the very same tensors hang in the model again


def test_theta_0_hangs_in_the_model_again_after_an_error() -> None:
    m = get_peft_model(tiny_model(), IntrinsicConfig(d=12))
    objects = dict(m.model.named_parameters())
    with pytest.raises(UserError):
        m(np.full((2, 3), 10_000))
    assert dict(m.model.named_parameters()) == objects


@pytest.mark.parametrize("structure_aware", [False, True])
def test_the_forward_without_gradients_equals_the_recorded_one_and_follows_theta_d(structure_aware: bool) -> None:
    m = get_peft_model(tiny_model(), IntrinsicConfig(d=60, structure_aware=structure_aware))
    seen = []
    for seed in range(3):
        assert np.array_equal(logits(m), call(m).numpy())
        assert np.array_equal(logits(m), logits(m))
        seen.append(logits(m))
        disturb(m, std=0.5, seed=seed)  # θ_d, and the λ of SAID, in place
    for parameter in (m.method.theta_d, m.method.strength):
        if parameter is not None:
            before = logits(m)
            parameter.data[0] += 1  # one coordinate is enough
            assert not np.array_equal(logits(m), before)
            assert np.array_equal(logits(m), call(m).numpy())
    assert not np.array_equal(seen[0], seen[1])
    take_steps(m, 1)
    assert np.array_equal(logits(m), call(m).numpy())


@pytest.mark.parametrize("structure_aware", [False, True])
def test_after_the_trainer_and_after_an_error_in_it_the_forward_still_uses_theta(structure_aware: bool) -> None:
    m = get_peft_model(tiny_model(), IntrinsicConfig(d=60, structure_aware=structure_aware))
    config = TrainingConfig(lr=0.05, epochs=1, batch_size=8)
    Trainer(m, DATA, PAD, config).run()
    bad = EncodedSet(DATA.encodings, DATA.labels + 1, DATA.lengths)
    with pytest.raises(UserError, match="class"):
        Trainer(m, bad, PAD, config).run()
    with pytest.raises(UserError, match="class"):
        evaluate(m, bad, PAD)
    trained = logits(m)
    assert np.array_equal(call(m).numpy(), trained)
    with m.disable_adapter():
        assert not np.array_equal(logits(m), trained)
    m.merge_adapter()
    assert np.array_equal(logits(m), trained)


def test_an_unchanged_theta_d_is_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    m = get_peft_model(tiny_model(), IntrinsicConfig(d=12))
    calls = []
    forward = m.method.projection.forward
    monkeypatch.setattr(m.method.projection, "forward", lambda theta_d: calls.append(1) or forward(theta_d))
    for _ in range(4):
        logits(m)
    assert len(calls) == 1


@every_kind
def test_merged_logits_equal_the_unmerged_ones_bitwise(kind: str) -> None:
    m = get_peft_model(tiny_model(), IntrinsicConfig(d=60, projection=kind, structure_aware=True))
    take_steps(m)
    before = logits(m)
    m.merge_adapter()
    assert np.array_equal(logits(m), before)


@every_kind
def test_one_step_of_descent_in_theta_d_is_the_projected_step_in_theta(kind: str) -> None:
    """dL/dθ_d = M · dL/dθ, with dL/dθ from full fine-tuning."""
    m = get_peft_model(tiny_model(), IntrinsicConfig(d=14, projection=kind)).astype("float64")
    loss_of(m).backward()
    full = tiny_model().astype("float64")
    loss_of(full).backward()
    g = np.concatenate([p.grad.ravel() for name, p in full.named_parameters() if not name.startswith("head.")])
    expected = matrix(projection(kind, 14, BASE), 14) @ g
    np.testing.assert_allclose(m.method.theta_d.grad, expected, rtol=1e-6, atol=1e-9)


def test_the_optimizer_holds_d_and_the_head_alone() -> None:
    m = get_peft_model(tiny_model(), IntrinsicConfig(d=14))
    head = sum(p.numel() for p in m.model.head.parameters())
    assert AdamW(m.parameters()).flat.theta.size == 14 + head

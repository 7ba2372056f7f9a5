"""The benchmarks: both sides do the same work, and every command runs from start to end on the tiniest settings."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # `benchmarks` is beside the package, not in it

from benchmarks import compare_job, harness, pretrain_job, scaling, steps  # noqa: E402
from benchmarks.cases import inputs, parse_shape, peers_of, widths  # noqa: E402
from benchmarks.ours import Step, build_model  # noqa: E402
from minipeft.models.bert import hf_part  # noqa: E402
from minipeft.models.llama import BLOCK as LLAMA_BLOCK  # noqa: E402

GPT = parse_shape("a/d=32/layers=2/heads=2/d_ff=64/vocab=50/seq=8/batch=4")
BERT = parse_shape("b/d=32/layers=2/heads=2/d_ff=64/vocab=50/seq=8/batch=4")
LLAMA = parse_shape("smollm2/d=32/layers=2/heads=4/kv_heads=2/d_ff=64/vocab=50/seq=8/batch=4")
TIED = parse_shape("smollm2-135m/d=32/layers=2/heads=4/kv_heads=2/d_ff=64/vocab=50/seq=8/batch=4")
METHODS = ["full", "topk:1", "topk:1:cached", "adapter:4", "lora:2", "intrinsic:5"]
QUICK = ["--rounds", "2", "--wait", "0", "--keep-busy"]


@pytest.fixture(autouse=True)
def one_torch_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process with NumPy, torch keeps to a thread: see the fixture `torch` of the suite."""
    if importlib.util.find_spec("torch"):
        from benchmarks import torch_peer

        monkeypatch.setattr(torch_peer, "threads", lambda: 1)


def hf_llama(part: str, leaf: str) -> str:
    """transformers' name for a weight of ours."""
    if part.startswith("blocks."):
        _, n, name = part.split(".")
        return f"model.layers.{n}.{LLAMA_BLOCK[name]}.{leaf}"
    return {"embed.word": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}[part] + f".{leaf}"


def torch_twin(shape: Any) -> tuple[Any, Any]:
    """The model of both sides, with the same weights, far from their start."""
    torch = pytest.importorskip("torch", reason="the peers' side needs torch")
    if shape.kind != "gpt":
        pytest.importorskip("transformers", reason="the peer of this shape needs transformers")
    from benchmarks import torch_peer

    ours, theirs = build_model(shape), torch_peer.build_model(shape)
    rng = np.random.default_rng(0)
    state = {}
    for name, parameter in ours.named_parameters():
        part, _, leaf = name.rpartition(".")
        theirs_name = name
        if shape.kind == "bert":
            theirs_name = f"{hf_part(part, True)}.{leaf}"
        elif shape.kind in ("llama", "tied"):
            theirs_name = hf_llama(part, leaf)
        parameter.data += (0.1 * rng.standard_normal(parameter.shape)).astype(np.float32)
        table = name.startswith("embed.") or parameter.ndim < 2
        state[theirs_name] = torch.from_numpy(parameter.data.copy() if table else parameter.data.T.copy())
    missing, extra = theirs.load_state_dict(state, strict=False)
    assert not extra
    assert all("position_ids" in name or (shape.kind == "tied" and name == "lm_head.weight") for name in missing)
    return ours, theirs


def losses(step: Any, steps: int = 3) -> list[float]:
    with step:
        return [float(step()) for _ in range(steps)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [GPT, LLAMA, TIED, BERT], ids=["gpt", "llama", "tied", "bert"])
def test_both_sides_take_the_same_step(shape: Any, method: str) -> None:
    ours, theirs = torch_twin(shape)
    from benchmarks import torch_peer

    step, peer = Step(shape, method, model=ours), torch_peer.Step(shape, method, model=theirs)
    assert step.count()["trained"] == peer.count()["trained"]
    # The methods' own weights are drawn by each side for itself, but they start from the base's function.
    together = 1 if method.startswith(("adapter", "lora", "intrinsic")) else 3
    np.testing.assert_allclose(losses(step)[:together], losses(peer)[:together], rtol=1e-5)


def test_the_peers_subspace_is_that_of_fastfood() -> None:
    torch = pytest.importorskip("torch", reason="the peers' side needs torch")
    from benchmarks.torch_intrinsic import Subspace

    torch.manual_seed(0)
    model, d = torch.nn.Linear(40, 30), 10
    model.weight.requires_grad_(False)
    subspace = Subspace(model, d)
    M = subspace_matrix(subspace)
    np.testing.assert_allclose(M.norm(dim=1), (1200 / d) ** 0.5, rtol=0.2)  # rows of length √(D/d)
    x = torch.randn(3, 40)
    with torch.no_grad():
        assert torch.equal(subspace.call(model, x), model(x))  # θ_d = 0 is θ₀
        subspace.theta_d += 1
        moved = x @ (model.weight + M.sum(0).view(30, 40)).T + model.bias
        np.testing.assert_allclose(subspace.call(model, x), moved, rtol=1e-4, atol=1e-4)


def subspace_matrix(subspace: Any) -> Any:
    """M (d, D), a row a coordinate: what moving that coordinate by 1 changes."""
    import torch

    rows = []
    with torch.no_grad():
        for i in range(subspace.d):
            subspace.theta_d.zero_()
            subspace.theta_d[i] = 1
            rows.append(subspace.change())
        subspace.theta_d.zero_()
    return torch.stack(rows)


def test_peft_trains_as_many_parameters_from_the_same_loss() -> None:
    pytest.importorskip("peft", reason="the peer peft needs peft")
    ours, theirs = torch_twin(GPT)
    from benchmarks import torch_peer

    step, peer = Step(GPT, "lora:2", model=ours), torch_peer.Step(GPT, "lora:2", "peft", theirs)
    assert step.count()["trained"] == peer.count()["trained"]
    np.testing.assert_allclose(losses(step, 1), losses(peer, 1), rtol=1e-5)


@pytest.mark.parametrize("peer", ["autograd", "mygrad"])
def test_the_small_engines_take_the_same_step(peer: str) -> None:
    pytest.importorskip(peer, reason=f"the peer needs {peer}")
    from benchmarks import others

    shape = parse_shape("mlp/d=8/d_ff=16/batch=10")
    ours = build_model(shape)
    for parameter, value in zip(ours.parameters(), others.parameters(shape), strict=True):
        parameter.data[...] = value
    assert len(widths(shape)) == 4
    np.testing.assert_allclose(
        losses(Step(shape, "full", model=ours)), losses(others.Step(shape, "full", peer)), rtol=1e-5
    )


@pytest.mark.parametrize("peer", ["autograd", "mygrad"])
def test_the_small_engines_compute_the_same_gpt(peer: str) -> None:
    pytest.importorskip(peer, reason=f"the peer needs {peer}")
    from benchmarks import others

    ours = build_model(GPT)
    block = ("attn_norm", "q_proj", "k_proj", "v_proj", "o_proj", "mlp_norm", "up_proj", "down_proj")
    parts = [f"blocks.{i}.{part}" for i in range(GPT.layers) for part in block] + ["final_norm", "head"]
    names = [
        "embed.word.weight",
        "embed.position.weight",
        *(f"{p}.{leaf}" for p in parts for leaf in ("weight", "bias")),
    ]
    own = dict(ours.named_parameters())
    for name, value in zip(names, others.parameters(GPT), strict=True):
        own[name].data[...] = value
    # to the difference between GELU and its tanh form
    np.testing.assert_allclose(losses(Step(GPT, "full", model=ours)), losses(others.Step(GPT, "full", peer)), rtol=1e-4)


def test_the_interval_holds_the_median() -> None:
    median, low, high = harness.median_interval([1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.05])
    assert 0.8 <= low <= median == 1.0 <= high <= 1.2


def test_a_busy_machine_gives_nothing_to_quote() -> None:
    rows = [{"quiet": "0", "round": "0"}, {"quiet": "1", "round": "1"}]
    assert harness.worth_quoting(rows, keep_busy=False) == rows[1:]
    assert harness.worth_quoting(rows, keep_busy=True) == rows
    with pytest.raises(SystemExit, match="--keep-busy"):
        harness.worth_quoting(rows[:1], keep_busy=False)


def test_every_cell_has_its_peers() -> None:
    assert peers_of(GPT, "full") == ("torch", "autograd", "mygrad")
    assert peers_of(BERT, "lora:8") == ("torch", "peft")
    assert peers_of(BERT, "intrinsic:1000") == ("torch",)
    assert peers_of(BERT, "bitfit") == ()
    with pytest.raises(SystemExit, match="Known: a, b"):
        parse_shape("c")
    assert inputs(GPT)[1].shape == (4, 8)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_steps_without_peers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "a/d=32/layers=2/heads=2/d_ff=64/vocab=50/seq=8/batch=4"
    quick = [*QUICK, "--seconds", "0", "--least", "1", "--out", str(tmp_path)]
    steps.main(["--shape", small, "--methods", "topk:1:cached,topk:2:cached", "--peers", "", *quick])
    said = capsys.readouterr().out
    assert "topk:2:cached: ours is left out. There is nothing to cache" in said
    rows = rows_of(tmp_path / "steps.csv")
    assert [(row["method"], row["peer"]) for row in rows] == [("topk:1:cached", "none")] * 2
    assert all(float(row["ours_ms"]) > 0 for row in rows)
    assert "not written" in (tmp_path / "steps.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_steps_with_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the peer needs torch")
    small = "a/d=32/layers=2/heads=2/d_ff=64/vocab=50/seq=8/batch=4"
    quick = [*QUICK, "--seconds", "0", "--least", "1", "--out", str(tmp_path)]
    steps.main(["--shape", f"{small},mlp/d_ff=16", "--methods", "full,lora:2", *quick])
    assert {row["shape"] for row in rows_of(tmp_path / "steps.csv")} >= {small}
    assert (tmp_path / "steps.png").stat().st_size > 10_000


def test_scaling(tmp_path: Path) -> None:
    small = "b/d=32/layers=1/heads=2/d_ff=64/vocab=50/seq=8/batch=4"
    values = ["--batch", "2,4", "--seq", "8", "--layers", "1", "--d", "16"]
    options = ["--methods", "lora:2", "--seconds", "0", "--least", "1", "--rounds", "1", "--wait", "0", "--keep-busy"]
    scaling.main(["--shape", small, *values, *options, "--out", str(tmp_path)])
    rows = rows_of(tmp_path / "scaling.csv")
    two, four = (float(row["gflop"]) for row in rows if row["changed"] == "batch")
    assert four == pytest.approx(2 * two)
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.asset
def test_compare_job(tmp_path: Path, asset: Any) -> None:
    for package in ("torch", "transformers", "peft"):
        pytest.importorskip(package, reason=f"the peer's job needs {package}")
    asset("minilm"), asset("sarcasm")
    sizes = ["--train-size", "32", "--test-size", "32", "--epochs", "1", "--methods", "topk:1,lora:1"]
    compare_job.main([*sizes, "--rounds", "1", "--wait", "0", "--keep-busy", "--out", str(tmp_path)])
    (row,) = rows_of(tmp_path / "compare_job.csv")
    assert 0 <= float(row["peer_accuracy_lora:1"]) <= 1
    assert "whole job" in (tmp_path / "compare_job.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_both_sides_of_a_pre_training_have_the_same_losses(style: str, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("transformers", reason="the peer needs transformers")
    from benchmarks import pretrain_side
    from minipeft.experiments.pretrain import PretrainSettings

    monkeypatch.setattr(pretrain_side, "threads", lambda: 1)
    text = tmp_path / "text.txt"
    rng = np.random.default_rng(0)
    text.write_text("\n".join(" ".join(rng.choice(["a", "cat", "sat", "mat"], size=6)) for _ in range(200)))
    shape = {"vocab_size": 270, "d_model": 16, "layers": 2, "heads": 2, "context": 16, "batch_size": 8, "epochs": 2}
    given = PretrainSettings(corpus=str(text), style=style, lr=0.01, **shape)
    ours, theirs = pretrain_side.ours(given), pretrain_side.peer(given)
    assert len(ours["losses"]) >= 20
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=2e-4)
    assert ours["held_out_loss"] == pytest.approx(theirs["held_out_loss"], rel=2e-4)
    row = {
        f"{side}_{name}": one[name]
        for side, one in (("ours", ours), ("peer", theirs))
        for name in one
        if name != "losses"
    }
    table = pretrain_job.markdown(
        [{name: str(value) for name, value in (row | {"steps": 9, "largest_gap": 1e-6}).items()}]
    )
    assert "held-out loss" in table

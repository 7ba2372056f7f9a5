"""Subspaces: what LoRA learns, and whether full fine-tuning's change has a low rank (arXiv 2106.09685, section 7).

U and V are the left and right singular vectors of a matrix; W ∈ R^{in × out}, ΔW = s · A B, A ∈ R^{in × r}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minipeft.backend import Array, active, random
from minipeft.errors import Diverged
from minipeft.experiments.cell import OnStep, Settings, build
from minipeft.experiments.methods import MethodSpec
from minipeft.experiments.studies.frame import Job, Jobs, Lab, Plan, Row, Study, tuned
from minipeft.nn import Module
from minipeft.peft.lora import LoRALinear

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHOWN = 16  # directions of two large ranks that are compared


def jobs(lab: Lab) -> Jobs:
    """One job a seed: a small rank, a large rank twice from two starts, and full fine-tuning; all of it, or none.

    Each with the best of a few learning rates.
    """
    choices, specs = lab.plan.choices, []
    for method in (f"lora:{choices['small']}", f"lora:{choices['large']}", "full"):
        specs.append((yield from tuned(lab, method, choices["rates"])))
    for seed in lab.seeds:
        yield _job(lab, specs, seed)


def _job(lab: Lab, specs: Sequence[MethodSpec], seed: int) -> Job:
    small, large = lab.plan.choices["small"], lab.plan.choices["large"]

    def run(on_step: OnStep | None) -> Row:
        try:
            return measure(on_step)
        except Diverged:
            return {"seed": seed, "accuracy": None}

    def measure(on_step: OnStep | None) -> Row:
        of_small, of_large, of_full = specs
        accuracies = []

        def trained(spec: MethodSpec, own: int) -> Module:
            cell = lab.run(spec, own, on_step)
            accuracies.append([spec.name, spec.lr, cell.row["accuracy"]])
            return cell.model

        runs = [(of_small, seed), (of_large, seed + 100), (of_large, seed + 200)]
        a, b, c = (lora_layers(trained(spec, own)) for spec, own in runs)
        row: Row = {
            "seed": seed,
            "shapes": {name.rpartition(".")[2]: list(layer.linear.weight.shape) for name, layer in a.items()},
            "phi_ranks": _phi(a, b, small, large),
            "phi_starts": _phi(b, c, min(SHOWN, large), min(SHOWN, large)),
            "amplification": [
                {"rank": rank, "layer": name, **amplification(layer.linear.weight.data, change_of(layer), rank)}
                for rank, layers in ((small, a), (large, b))
                for name, layer in layers.items()
            ],
        }
        del a, b, c
        before = weights(build(lab.settings, lab.problem, of_full, seed))
        changes = {name: W - before[name] for name, W in weights(trained(of_full, seed)).items()}
        row["runs"], row["accuracy"] = accuracies, accuracies[-1][-1]
        row["spectra"] = {
            name: {"change": _rounded(spectrum(dW)), "before": _rounded(spectrum(before[name]))}
            for name, dW in changes.items()
        }
        row["amplification"] += [
            {"rank": 0, "layer": name, **amplification(before[name], dW, small)}  # rank 0: of full fine-tuning
            for name, dW in changes.items()
            if name.endswith(("q_proj", "v_proj"))
        ]
        return row

    return Job(f"seed {seed}", run)


def lora_layers(model: Module) -> dict[str, LoRALinear]:
    """The layers of LoRA, by the name of what they stand for."""
    named = model.named_modules()
    return {name.removeprefix("model."): layer for name, layer in named if isinstance(layer, LoRALinear)}


def weights(model: Module) -> dict[str, Array]:
    """Copies of the weights of the blocks' linear layers, by the name of the layer."""
    named = ((name.removeprefix("model.").removesuffix(".weight"), p) for name, p in model.named_parameters())
    return {name: p.data.copy() for name, p in named if name.startswith("blocks.") and name.endswith(KINDS)}


def change_of(layer: LoRALinear) -> Array:
    """ΔW = s · A B, (in, out)."""
    return layer.scale * (layer.A.data @ layer.B.data)


def similarity(U: Array, V: Array) -> Array:
    """φ(i, j) = ‖U_iᵀ V_j‖²_F / min(i, j) for the first i and j columns: (d, m), (d, n) -> (m, n).

    1 where the smaller subspace lies in the larger, 0 where they are orthogonal; of random ones, max(i, j) / d in the
    mean (equation 4; the columns are orthonormal).
    """
    xp = active().xp
    overlap = ((U.T @ V) ** 2).cumsum(axis=0).cumsum(axis=1)
    i, j = xp.arange(1, overlap.shape[0] + 1)[:, None], xp.arange(1, overlap.shape[1] + 1)[None, :]
    return overlap / xp.minimum(i, j)


def amplification(W: Array, dW: Array, r: int) -> dict[str, float]:
    """‖ΔW_r‖_F / ‖Uᵀ W V‖_F with U, V the top r singular vectors of ΔW: how much it adds to what W does there (table 7).

    ΔW_r is ΔW in its top r directions (all of it for LoRA of rank r). Also ‖Uᵀ W V‖_F along ΔW's own directions, along
    the top r of W, and along random ones.
    """
    xp = active().xp
    U, s, Vt = _svd(dW)
    own_U, _, own_Vt = _svd(W)
    rng = random.generator("directions", root=0)
    noise = [xp.linalg.qr(active().asarray(rng.standard_normal((n, r))))[0] for n in W.shape]
    norm = lambda left, right: float(xp.linalg.norm(left.T @ W.astype("float64") @ right))
    change, along = float(xp.linalg.norm(s[:r])), norm(U[:, :r], Vt[:r].T)
    return {
        "factor": round(change / along, 4),
        "change": round(change, 5),
        "along_change": round(along, 5),
        "along_own": round(norm(own_U[:, :r], own_Vt[:r].T), 5),
        "along_random": round(norm(*noise), 5),
    }


def spectrum(W: Array) -> Array:
    """The singular values in falling order."""
    return _svd(W)[1]


def _phi(a: dict[str, LoRALinear], b: dict[str, LoRALinear], m: int, n: int) -> dict[str, dict[str, list[list[float]]]]:
    """φ of A's left and of B's right singular vectors, by the kind of matrix, mean over the blocks: (m, n) each."""
    sums: dict[str, dict[str, list[Any]]] = {"A": {}, "B": {}}
    for name, layer in a.items():
        kind, other = name.rpartition(".")[2], b[name]
        grids = {
            "A": similarity(_svd(layer.A.data)[0][:, :m], _svd(other.A.data)[0][:, :n]),
            "B": similarity(_svd(layer.B.data)[2][:m].T, _svd(other.B.data)[2][:n].T),
        }
        for side, grid in grids.items():
            sums[side].setdefault(kind, []).append(grid)
    return {
        side: {kind: [_rounded(row) for row in sum(grids) / len(grids)] for kind, grids in kinds.items()}
        for side, kinds in sums.items()
    }


def _svd(W: Array) -> tuple[Array, Array, Array]:
    U, s, Vt = active().xp.linalg.svd(W.astype("float64"), full_matrices=False)
    return U, s, Vt


def _rounded(values: Array) -> list[float]:
    return [float(f"{value:.4g}") for value in active().to_numpy(values).tolist()]


STUDY = Study(
    "subspaces",
    "Do ranks 8 and 64 learn the same directions, and has full fine-tuning's change a low rank?",
    full=Plan(Settings(), 3, {"small": 8, "large": 64, "rates": [6e-5, 3e-4, 1e-3, 3e-3, 1e-2]}),
    quick=Plan(
        Settings("glassllm", train_size=200, test_size=200, epochs=2),
        1,
        {"small": 8, "large": 32, "rates": [1e-3, 1e-2]},
    ),
    jobs=jobs,
)

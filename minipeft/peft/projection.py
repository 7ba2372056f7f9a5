"""The matrix M ∈ R^{d × D} of θ = θ₀ + θ_d M, in three forms. Its rows are nearly orthogonal and have length √(D/d), so
that a parameter moves about as far as a coordinate of θ_d does: a learning rate means the same for every d and D.

Every M is drawn from its own seed, on the host, and never from the global random state: the seed rebuilds it.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import minipeft.backend.random as streams
from minipeft.backend import Array, active
from minipeft.backend.workers import MOST, current_workers
from minipeft.errors import UserError


class Projection(Protocol):
    """A linear map from R^d to R^D and its transpose."""

    def forward(self, theta_d: Array) -> Array:
        """θ_d M: (d,) -> (D,)."""

    def backward(self, g: Array) -> Array:
        """M g: (D,) -> (d,), the gradient with respect to θ_d."""


class Dense:
    """M_ij ~ N(0, 1/d) (Li et al., arXiv 1804.08838, section 2, up to scale): d · D numbers, for small models alone."""

    def __init__(self, d: int, D: int, seed: int) -> None:
        size, memory = 4 * d * D, _physical_memory()
        if size > memory / 2:
            raise UserError(
                f"A dense M of {d:,} × {D:,} takes {size / 1e9:,.0f} GB, and this machine has {memory / 1e9:.0f} GB. "
                "Use projection='fastfood' (a few bytes a parameter), or a smaller scope."
            )
        M = streams.generator("dense", root=seed).standard_normal((d, D), dtype="float32")
        M /= math.sqrt(d)
        self.M = active().asarray(M)

    def forward(self, theta_d: Array) -> Array:
        """θ_d M."""
        return active().matmul(theta_d[None, :], self.M)[0]

    def backward(self, g: Array) -> Array:
        """M g."""
        return active().matmul(self.M, g[:, None])[:, 0]


class Sparse:
    """Each row of M has k = ⌈√D⌉ entries of ±√(D/dk) at random places: the very sparse projection of Li, Hastie and Church
    (KDD 2006), which arXiv 1804.08838 (section S7) uses, with the number of non-zeros made exact.

    Parameters in no row's places do not move at all: with d · √D < D that is most of them.
    """

    def __init__(self, d: int, D: int, seed: int) -> None:
        rng = streams.generator("sparse", root=seed)
        k = math.ceil(math.sqrt(D))
        self.d, self.D = d, D
        places = [rng.choice(D, size=k, replace=False, shuffle=False) for _ in range(d)]
        signs = (2 * rng.integers(0, 2, size=(d, k)).astype("float32") - 1) * math.sqrt(D / (d * k))
        layers, by_row = streams.layers_without_repeats(places)
        asarray = active().asarray
        # A few layers, none of which names a parameter twice: each is added at one stroke, in the order of the memory.
        self.layers = [
            (asarray(places), asarray(rows), asarray(signs.reshape(-1)[entries])) for places, rows, entries in layers
        ]
        self.by_row = asarray(by_row)  # where the layers, end to end, have the entries of row 0, of row 1, ...

    def forward(self, theta_d: Array) -> Array:
        """θ_d M, a layer at a time."""
        out = active().xp.zeros(self.D, dtype=theta_d.dtype)
        for i, (places, rows, signs) in enumerate(self.layers):
            values = theta_d.take(rows) * signs
            out[places] = out.take(places) + values if i else values
        return out

    def backward(self, g: Array) -> Array:
        """M g: gathered and weighted in the order of the layers, then summed row by row."""
        parts = active().xp.concatenate([g.take(places) * signs for places, _, signs in self.layers])
        return parts.take(self.by_row).reshape(self.d, -1).sum(axis=1)


class Fastfood:
    """M as stacked blocks H G Π H B, which are applied and never formed (Le, Sarlós and Smola, arXiv 1408.3060, eq. 7).

    With n = 2^⌈log₂ d⌉, each of ⌈D/n⌉ blocks maps n numbers (θ_d and zeros) to n parameters: B flips signs, H is the
    Hadamard matrix, Π shuffles, G is Gaussian. H = H_a ⊗ H_b is two small products in place of a butterfly. G is scaled
    so that all n parameters of a block move equally far, which makes the paper's last factor S unnecessary.
    Every coordinate of θ_d reaches every block. Memory: 9 bytes a parameter; work: 4 (a + b) multiply-adds.
    """

    def __init__(self, d: int, D: int, seed: int) -> None:
        xp, asarray, shared = active().xp, active().asarray, active().shared
        self.d, self.D = d, D
        self.n = n = 1 << max(1, (d - 1).bit_length())
        bits = n.bit_length() - 1
        self.a, self.b = 1 << (bits // 2), 1 << (bits - bits // 2)
        self.H_a, self.H_b = _hadamard(self.a), _hadamard(self.b)
        self.chunks: list[tuple[slice, Array, Array, Array]] = []  # a piece of θ with its B, Π and G
        width = max(1, active().chunk // n)  # blocks in a chunk
        for i, start in enumerate(range(0, D, width * n)):
            count = min(width, -(-(D - start) // n))
            rng = streams.generator("fastfood", i, root=seed)
            signs = 2 * rng.integers(0, 2, (count, n), dtype="int8") - 1
            G = rng.standard_normal((count, n), dtype="float32")
            G /= math.sqrt(d) * (G * G).sum(axis=1, keepdims=True) ** 0.5  # now the rows of M have length √(D/d)
            source = asarray(streams.permutations(rng, count, n))  # of each block, which entry comes to each place
            place = source // self.b * (count * self.b) + xp.arange(count)[:, None] * self.b + source % self.b
            cut = slice(start, min(start + count * n, D))
            order = self._layout(place).reshape(-1).astype(xp.int32)
            self.chunks.append((cut, self._layout(asarray(signs)), order, self._layout(asarray(G))))
        self.shared_out, self.shared_sums = (
            shared((D,), "float32"),
            shared((MOST, n), "float32"),
        )  # used by several workers

    def _layout(self, blocks: Array) -> Array:
        """(blocks, n) -> (a, blocks, b): now either product with H is one product for the whole chunk."""
        return active().xp.ascontiguousarray(blocks.reshape(-1, self.a, self.b).swapaxes(0, 1))

    def _transform(self, x: Array) -> Array:
        """H along the n entries of each block: (a, blocks, b) -> the same."""
        matmul = active().matmul
        left = matmul(self.H_a, x.reshape(self.a, -1))
        return matmul(left.reshape(-1, self.b), self.H_b).reshape(x.shape)

    def forward(self, theta_d: Array) -> Array:
        """θ_d M, a chunk of blocks at a time; several workers compute some chunks each, and the next call overwrites it."""
        xp, workers = active().xp, current_workers()
        padded = xp.zeros(self.n, dtype=theta_d.dtype)
        padded[: self.d] = theta_d
        padded = padded.reshape(self.a, 1, self.b)
        out = self.shared_out if workers.count > 1 else xp.empty(self.D, dtype=theta_d.dtype)
        for cut, signs, order, gauss in workers.mine(self.chunks):
            x = self._transform(padded * signs)
            x = x.take(order.astype(xp.intp)).reshape(x.shape)  # kept in 4 bytes, used in the 8 that NumPy indexes with
            x *= gauss
            out[cut] = self._transform(x).reshape(-1)[: cut.stop - cut.start]
        workers.barrier()
        return out

    def backward(self, g: Array) -> Array:
        """M g: the transposes in the reverse order; B, G and H are symmetric, Πᵀ puts the entries back."""
        xp, workers = active().xp, current_workers()
        total = xp.zeros((self.a, self.b), dtype=g.dtype)
        for cut, signs, order, gauss in workers.mine(self.chunks):
            x = xp.zeros(order.size, dtype=g.dtype)
            x[: cut.stop - cut.start] = g[cut]
            x = self._transform(x.reshape(signs.shape))
            x *= gauss
            back = xp.empty(order.size, dtype=g.dtype)
            back[order.astype(xp.intp)] = x.reshape(-1)
            back = self._transform(back.reshape(signs.shape))
            back *= signs
            total += back.sum(axis=1)
        if workers.count == 1:
            return total.reshape(-1)[: self.d]
        self.shared_sums[workers.rank] = total.reshape(-1)
        workers.barrier()
        return self.shared_sums[: workers.count].sum(axis=0)[: self.d]


PROJECTIONS: dict[str, type[Dense | Sparse | Fastfood]] = {"dense": Dense, "sparse": Sparse, "fastfood": Fastfood}


def _hadamard(n: int) -> Array:
    """The n × n Hadamard matrix of ±1: H_1 = [1], H_2n = [[H, H], [H, -H]]."""
    xp = active().xp
    H = xp.ones((1, 1), dtype=xp.float32)
    while H.shape[0] < n:
        H = xp.concatenate([xp.concatenate([H, H], axis=1), xp.concatenate([H, -H], axis=1)], axis=0)
    return H


def _physical_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if hasattr(os, "sysconf") else 16e9

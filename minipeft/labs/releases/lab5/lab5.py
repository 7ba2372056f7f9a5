"""Lab 5: intrinsic dimension. Read handout.md first.

All D parameters of a model move, but only inside a random subspace of d dimensions:

    θ = θ₀ + θ_d M,    θ₀ ∈ R^D frozen,  θ_d ∈ R^d trained, zero at the start,  M ∈ R^{d × D} random and fixed

This lab is NumPy; everything of minipeft may be used too, except minipeft.peft.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def to_weights(theta_0: list[Array], theta_d: Array, M: Array) -> list[Array]:
    """Task 1. θ₀ + θ_d M, as a list of arrays of the shapes of `theta_0`, which stays as it is.

    The arrays of theta_0, each read row by row and one after the other, are the vector θ₀; M is (d, D), theta_d is (d,).
    """
    raise NotImplementedError("Lab 5, task 1: project, cut into the shapes, and add θ₀.")


def to_gradient(gradients: list[Array], M: Array) -> Array:
    """Task 1. dL/dθ_d, (d,), from the gradients of the arrays of θ, in the same order: M g."""
    raise NotImplementedError("Lab 5, task 1: the gradient in the coordinates of the subspace.")


def hadamard(x: Array) -> Array:
    """Task 2. x H along the last axis, for the Hadamard matrix H_1 = [1], H_2n = [[H, H], [H, -H]]: (..., n) -> (..., n).

    No matrix is made: log₂ n rounds, each of n additions. A round with step h replaces the pairs (a, b), h apart in each
    piece of 2 h, by (a + b, a - b). x stays as it is.

    Raises:
        ValueError: n is not a power of two.
    """
    raise NotImplementedError("Lab 5, task 2: log₂ n rounds of sums and differences.")


class Fastfood:
    """M as stacked blocks H G Π H B that are applied and never formed (arXiv 1408.3060). The constructor is complete.

    Attributes:
        d: the dimension of the subspace.
        D: the number of parameters.
        n: the smallest power of two that is d or more.
        blocks: ⌈D / n⌉; block i gives the parameters i · n to (i + 1) · n, the last one perhaps fewer.
        B: signs, (blocks, n).
        order: Π, (blocks, n): entry j of a block, after Π, is entry order[j] before.
        G: Gaussian numbers, (blocks, n).
    """

    def __init__(self, d: int, D: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.d, self.D = d, D
        self.n = 1 << (d - 1).bit_length()
        self.blocks = -(-D // self.n)
        shape = (self.blocks, self.n)
        self.B = rng.choice([-1.0, 1.0], shape)
        self.order = rng.permuted(np.broadcast_to(np.arange(self.n), shape), axis=1)
        self.G = rng.standard_normal(shape)
        self.G /= np.sqrt(d) * np.linalg.norm(self.G, axis=1, keepdims=True)

    def forward(self, theta_d: Array) -> Array:
        """Task 2. θ_d M: (d,) -> (D,).

        Pad θ_d with zeros to n numbers. In each block: times B, then `hadamard`, then Π, then times G, then `hadamard`.
        The blocks one after the other, cut to D, are the result.
        """
        raise NotImplementedError("Lab 5, task 2: pad, B, H, Π, G, H, cut.")

    def backward(self, g: Array) -> Array:
        """Task 2. M g: (D,) -> (d,). The transposes, in the reverse order: H, B and G are symmetric, Π goes back."""
        raise NotImplementedError("Lab 5, task 2: every step of forward, transposed, from the last to the first.")


def train(X: Array, y: Array, theta_0: Array, M: Array, lr: float, steps: int) -> tuple[Array, list[float]]:
    """Task 3. Fit y ≈ X θ by gradient descent on θ_d, with θ = θ₀ + θ_d M.

    The loss is mean((X θ - y)²) / 2 over the n rows of X (n, D); its gradient with respect to θ is Xᵀ (X θ - y) / n.
    θ_d starts at zero, every step is θ_d <- θ_d - lr · dL/dθ_d. No input changes.

    Returns:
        θ_d after the last step, and the losses: before the first step, and after each (steps + 1 numbers).
    """
    raise NotImplementedError("Lab 5, task 3: gradient descent in d coordinates.")


def d90(scores: dict[int, list[float]], full: float) -> int | None:
    """Task 4. The smallest d whose mean score reaches 90 % of `full`, full fine-tuning's score; None when no d does.

    `scores` gives the scores of each d, one a seed. The d's come in any order.
    """
    raise NotImplementedError("Lab 5, task 4: the smallest d that reaches 0.9 · full.")


def structure_aware(theta_0: list[Array], theta_d: Array, strength: Array, M: Array) -> list[Array]:
    """Task 4. θ_i = θ₀_i + λ_i · (θ_d M)_i, with a strength λ_i for the i-th array of theta_0 (SAID, arXiv 2012.13255).

    The m strengths are trained too, so they are counted: a budget of d leaves d - m numbers for θ_d, and M is (d - m, D).

    Raises:
        ValueError: there are not as many strengths as arrays, or as many numbers in theta_d as rows of M.
    """
    raise NotImplementedError("Lab 5, task 4: as to_weights, with every array's change times its strength.")

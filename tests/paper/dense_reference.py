"""The paper's methods over again: float64 numpy, agent by agent, straight from the formulas.

Shares no code with the package. Problem of agent i: f_i(x) = (x - b_i)ᵀ A_i (x - b_i) / 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Quadratics:
    """Heterogeneous quadratics of n agents in d dimensions, and a common start; `sigma` is the standard
    deviation of the noise that mini-batches bring."""

    def __init__(self, n: int, d: int = 7, seed: int = 0, sigma: float = 0.0) -> None:
        random = np.random.default_rng(seed)
        half = random.normal(size=(n, d, d))
        self.A: Array = half @ half.transpose(0, 2, 1) / d + 0.1 * np.eye(d)
        self.b: Array = 3 * random.normal(size=(n, d))
        self.start: Array = np.tile(random.normal(size=d), (n, 1))
        self.sigma = sigma

    def gradient(self, i: int, x: Array) -> Array:
        """Of f_i at x: [d]."""
        g: Array = self.A[i] @ (x - self.b[i])
        return g

    def noise(self, t: int, step: int) -> Array:
        """Of the mini-batches of a local step of round t, `[n, d]`."""
        return self.sigma * np.random.default_rng([t, step]).normal(size=self.b.shape)


def ring(n: int) -> Array:
    """1/3 to oneself and either side."""
    identity = np.eye(n)
    return (identity + np.roll(identity, 1, axis=0) + np.roll(identity, -1, axis=0)) / 3


def torus(side: int) -> Array:
    """1/5 to oneself and the four sides of a periodic grid."""
    identity = np.eye(side)
    neighbours = np.roll(identity, 1, axis=0) + np.roll(identity, -1, axis=0)
    return (np.kron(identity, identity) + np.kron(neighbours, identity) + np.kron(identity, neighbours)) / 5


def exponential(n: int) -> list[Array]:
    """Half to oneself, half to the agent that is h behind, h = 2, 4, ..., 1."""
    powers = [2**p for p in range(int(np.log2(n - 1)) + 1)]
    return [(np.eye(n) + np.roll(np.eye(n), -h, axis=1)) / 2 for h in [*powers[1:], powers[0]]]


def complete(n: int) -> Array:
    """11ᵀ/n."""
    return np.full((n, n), 1 / n)


def train(
    name: str,
    problem: Quadratics,
    matrices: Sequence[Array],
    rates: Sequence[Sequence[float]],
    *,
    beta: float = 0.9,
    mu: float | None = None,
    weight_decay: float = 0.0,
) -> list[Array]:
    """Parameters `[n, d]` after each round of the named method; `rates[t]` are those of the local steps of
    round t, whose mixing matrix is `matrices[t % len(matrices)]`."""
    mu = beta if mu is None else mu
    x = [row.copy() for row in problem.start]
    n, buffer = len(x), [np.zeros_like(row) for row in problem.start]
    nesterov, quasi_global = name.endswith("-n"), name.startswith("qg")
    if name in ("dsgd", "sgd"):
        beta = 0.0
    trajectory = []
    for t, etas in enumerate(rates):
        W, before = matrices[t % len(matrices)], [row.copy() for row in x]
        for eta in etas:
            g = [problem.gradient(i, x[i]) + weight_decay * x[i] for i in range(n)]
            if name.startswith("sgd"):
                g = [sum(g) / n for _ in range(n)]
            m = [beta * buffer[i] + g[i] for i in range(n)]
            x = [x[i] - eta * (g[i] + beta * m[i] if nesterov else m[i]) for i in range(n)]
            if not quasi_global:
                buffer = m
        if not name.startswith("sgd"):
            x = [sum(W[i, j] * x[j] for j in range(n)) for i in range(n)]
        if quasi_global:
            buffer = [mu * buffer[i] + (1 - mu) * (before[i] - x[i]) / sum(etas) for i in range(n)]
        trajectory.append(np.array(x))
    return trajectory

"""How fast gossip, with and without quasi-global momentum, brings agents together when nobody trains.

Equation 4 of the paper is Algorithm 1 with zero gradients, heavy-ball momentum and learning rate 1, and
plain gossip is DSGD likewise, so both run through the same definitions as training does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from p2pqg import seeds
from p2pqg.algorithms import Algorithm
from p2pqg.topology import Topology

from .descent import descend
from .evaluation import consensus_distance


def random_start(n: int, d: int = 100, seed: int = 0) -> Tensor:
    """`[n, d]`, standard normal, float64, less its mean: the disagreement does not depend on the mean, but
    could not be measured below its rounding error."""
    x = torch.randn(n, d, dtype=torch.float64, generator=seeds.generator(seed, "consensus"))
    return x - x.mean(0)


def disagreement(algorithm: Algorithm, topology: Topology, start: Tensor, rounds: int) -> list[float]:
    """Consensus distances after 0 .. `rounds` rounds without gradients, relative to `start: [n, d]`."""
    steps = descend(algorithm, topology, start, lambda x, round: torch.zeros_like(x), 1.0)
    distances = [consensus_distance(start), *(consensus_distance(step.x) for step in islice(steps, rounds))]
    return [distance / distances[0] for distance in distances]


def rounds_to(distances: Sequence[float], level: float) -> int | None:
    """The first round at which the distance is at most `level`; None if it never is."""
    return next((round for round, distance in enumerate(distances) if distance <= level), None)


def rounds_to_stay(distances: Sequence[float], level: float) -> int | None:
    """The first round from which on the distance is at most `level`; None if it is above at the end."""
    above = max((round for round, distance in enumerate(distances) if distance > level), default=-1)
    return None if above == len(distances) - 1 else above + 1


def rates(topology: Topology, beta: float, mu: float) -> tuple[float, float]:
    """Factor by which the disagreement shrinks in a round in the long run: of gossip, and of equation 4.

    In the direction of an eigenvalue w of a symmetric W, equation 4 is x' = w (x - beta m),
    m' = mu m + (1 - mu)(x - x'). Its two eigenvalues have the product w (mu + (1 - mu) beta), so where they
    are complex the rate is the square root of that: momentum wins in the long run only where the slowest w
    exceeds mu + (1 - mu) beta, 0.99 for 0.9 and 0.9.
    """
    *others, _ = torch.linalg.eigvalsh(topology.graph(0).matrix()).tolist()  # the largest is the mean's
    eigenvalues = [w for w in others if abs(w) > 1e-12]  # a direction with w = 0 agrees at once
    if not eigenvalues:
        return 0.0, 0.0
    steps = [
        torch.tensor([[w, -w * beta], [(1 - mu) * (1 - w), mu + (1 - mu) * w * beta]], dtype=torch.float64)
        for w in eigenvalues
    ]
    radii = [float(torch.linalg.eigvals(step).abs().max()) for step in steps]
    return max(map(abs, eigenvalues)), max(radii)

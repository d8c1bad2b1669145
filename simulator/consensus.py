"""How fast gossip, with and without quasi-global momentum, brings agents together when nobody trains.

Equation 4 of the paper is Algorithm 1 with zero gradients, heavy-ball momentum and learning rate 1, and
plain gossip is DSGD likewise, so both run through the same definitions as training does. The paper's Figure
3 shows that momentum reaches a rough agreement earlier on a ring. `python -m p2pqg_simulator.consensus`
prints where that holds and where it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from p2pqg import seeds, topology
from p2pqg.algorithms import DSGD, Algorithm, Answer, Effect, Mix, QGDSGDm, drive
from p2pqg.topology import Topology

from .evaluation import consensus_distance
from .mixing import Product, product

LEVELS = (1e-1, 1e-2, 1e-4, 1e-8, 1e-12)

GRAPHS = (
    ("ring", 16), ("ring", 32), ("ring", 48), ("social", 32), ("torus", 16), ("torus", 36),
    ("complete", 16), ("one-peer-exponential", 16),
)  # fmt: skip


def random_start(n: int, d: int = 100, seed: int = 0) -> Tensor:
    """`[n, d]`, standard normal, float64, less its mean: the disagreement does not depend on the mean, but
    could not be measured below its rounding error."""
    x = torch.randn(n, d, dtype=torch.float64, generator=seeds.generator(seed, "consensus"))
    return x - x.mean(0)


def disagreement(algorithm: Algorithm, topology: Topology, start: Tensor, rounds: int) -> list[float]:
    """Consensus distances after 0 .. `rounds` rounds without gradients, relative to `start: [n, d]`."""
    products = [product(graph.matrix(), start.dtype, start.device) for graph in topology.graphs]
    x, state = start, algorithm.init(start)
    distances = [consensus_distance(x)]
    for round in range(rounds):

        def answer(effect: Effect, mix: Product = products[round % topology.period]) -> Answer:
            if isinstance(effect, Mix):
                return tuple(map(mix, effect.vectors))
            return (torch.zeros_like(start),)

        x, state = drive(algorithm.round(x, state, (1.0,)), answer)
        distances.append(consensus_distance(x))
    return [distance / distances[0] for distance in distances]


def rounds_to(distances: Sequence[float], level: float) -> int | None:
    """The first round at which the distance is at most `level`; None if it never is."""
    return next((round for round, distance in enumerate(distances) if distance <= level), None)


def crossing(gossip: Sequence[float], momentum: Sequence[float]) -> float | None:
    """The level (in quarters of a decade) below which plain gossip arrives first at every level that both
    reach; None if momentum is never later at the lowest of them."""
    lowest = max(min(gossip), min(momentum), 1e-30)
    below = None
    for quarter in range(int(-4 * math.log10(lowest)), -1, -1):
        level = 10 ** (-quarter / 4)
        first, second = rounds_to(gossip, level), rounds_to(momentum, level)
        if first is None or second is None or first >= second:
            break
        below = level
    return below


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


def main() -> None:
    """Print the table of docs/consensus.md."""
    beta = mu = 0.9
    print(
        "| topology | " + " | ".join(f"{x:.0e}" for x in LEVELS) + " | gossip first below | rate in the end |"
    )
    print("|---" * (len(LEVELS) + 3) + "|")
    for name, n in GRAPHS:
        graph = topology.build(name, n)
        start = random_start(n)
        gossip, momentum = (
            disagreement(algorithm, graph, start, 8000) for algorithm in (DSGD(), QGDSGDm(beta=beta, mu=mu))
        )
        cells = [f"{rounds_to(gossip, level)} / {rounds_to(momentum, level)}" for level in LEVELS]
        crossed = crossing(gossip, momentum)
        cells.append("-" if crossed is None else f"{crossed:.0e}")
        cells.append("{:.4f} / {:.4f}".format(*rates(graph, beta, mu)) if graph.period == 1 else "-")
        print(f"| {name} {n} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

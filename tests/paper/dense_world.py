"""The package's algorithms in a dense world: stacked float64 agents, requests answered by matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import dense_reference as dense
import numpy as np
import torch
from torch import Tensor

from p2pqg import topology
from p2pqg.algorithms import Algorithm, Answer, Effect, Gradient, Mean, Mix, drive
from p2pqg.schedules import Schedule, constant
from p2pqg.topology import Topology

GRAPHS = {
    "ring of 5": (topology.build("ring", 5), [dense.ring(5)]),
    "torus of 16": (topology.build("torus", 16), [dense.torus(4)]),
    "exponential of 8": (topology.build("one-peer-exponential", 8), dense.exponential(8)),
    "exponential of 6": (topology.build("one-peer-exponential", 6), dense.exponential(6)),
    "complete of 4": (topology.build("complete", 4), [dense.complete(4)]),
    "alone": (topology.build("isolated", 3), [np.eye(3)]),
}
SCHEDULES = {
    "constant": constant(0.05),
    "warm-up and decay": Schedule(0.2, warmup_steps=6, warmup_from=0.01, milestones=(12, 18), decay=0.3),
}


def train(
    algorithm: Algorithm, problem: dense.Quadratics, graphs: Topology, rates: Sequence[Sequence[float]]
) -> list[np.ndarray]:
    """The models `[n, d]` after each round."""
    A, b = torch.from_numpy(problem.A), torch.from_numpy(problem.b)
    x = torch.from_numpy(problem.start).clone()
    state = algorithm.init(x)
    trajectory = []
    for t, lrs in enumerate(rates):
        W = graphs.graph(t).matrix()

        def answer(effect: Effect, W: Tensor = W, t: int = t) -> Answer:
            match effect:
                case Gradient(at, step, full):
                    g = torch.einsum("nij,nj->ni", A, at - b)
                    return (g if full else g + torch.from_numpy(problem.noise(t, step)),)
                case Mix(vectors):
                    return tuple(W @ v for v in vectors)
                case Mean(vectors):
                    return tuple(v.mean(0).expand_as(v) for v in vectors)

        x, state = drive(algorithm.round(x, state, lrs), answer)
        trajectory.append(x.numpy())
    return trajectory


def assert_same(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], tolerance: float = 1e-12) -> None:
    assert len(ours) == len(theirs)
    for t, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()), err_msg=f"{t=}")

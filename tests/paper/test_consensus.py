"""The paper's consensus claim (section 4.1, equation 4, Figures 3 and 10), and where it ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from p2pqg import topology
from p2pqg.algorithms import DSGD, QGDSGDm
from p2pqg_simulator.consensus import disagreement, random_start, rates, rounds_to, rounds_to_stay

MOMENTUM = QGDSGDm(beta=0.9, mu=0.9)


def distances(name: str, n: int, rounds: int) -> tuple[list[float], list[float]]:
    """Of gossip and of equation 4."""
    graph, start = topology.build(name, n), random_start(n)
    gossip, momentum = (disagreement(algorithm, graph, start, rounds) for algorithm in (DSGD(), MOMENTUM))
    return gossip, momentum


@pytest.mark.parametrize(("name", "n"), [("ring", 7), ("ring", 16), ("social", 32), ("torus", 16)])
def test_the_iteration_is_equation_4(name: str, n: int) -> None:
    W, X = topology.build(name, n).graph(0).matrix(), random_start(n, d=5)
    M, expected = torch.zeros_like(X), []
    for _ in range(60):
        expected.append(float((X - X.mean(0)).norm()))
        X_new = W @ (X - 0.9 * M)
        M = 0.9 * M + 0.1 * (X - X_new)
        X = X_new
    found = disagreement(MOMENTUM, topology.build(name, n), random_start(n, d=5), 59)
    assert found == pytest.approx([distance / expected[0] for distance in expected], rel=1e-9)


@pytest.mark.parametrize("n", [16, 32, 48])
def test_on_a_ring_momentum_reaches_a_rough_agreement_first(n: int) -> None:
    gossip, momentum = distances("ring", n, 600)
    for level in (1e-1, 1e-2):
        first, second = rounds_to(momentum, level), rounds_to(gossip, level)
        assert first is not None
        assert second is not None
        assert first < second
    if n > 16:
        assert rounds_to(momentum, 1e-2) < 0.6 * rounds_to(gossip, 1e-2)


@pytest.mark.parametrize(("n", "wins"), [(16, False), (32, False), (48, True)])
def test_but_it_swings_back_and_stays_there_first_on_a_large_ring_only(n: int, wins: bool) -> None:
    gossip, momentum = distances("ring", n, 800)
    stays = rounds_to_stay(momentum, 1e-2)
    assert stays > rounds_to(momentum, 1e-2)
    assert max(momentum[stays:]) <= 1e-2 < momentum[stays - 1]
    assert (stays < rounds_to_stay(gossip, 1e-2)) is wins


def test_and_not_for_a_precise_one_on_the_ring_of_16() -> None:
    gossip, momentum = distances("ring", 16, 900)
    assert rounds_to(gossip, 1e-8) < rounds_to(momentum, 1e-8)


@pytest.mark.parametrize(
    ("name", "n"), [("torus", 16), ("torus", 36), ("social", 32), ("one-peer-exponential", 16)]
)
def test_and_not_on_well_connected_graphs(name: str, n: int) -> None:
    gossip, momentum = distances(name, n, 200)
    assert rounds_to(gossip, 1e-2) < rounds_to(momentum, 1e-2)
    assert rounds_to_stay(gossip, 1e-2) < rounds_to_stay(momentum, 1e-2)


@pytest.mark.parametrize(
    ("name", "n"), [("ring", 16), ("ring", 32), ("ring", 48), ("social", 32), ("torus", 36)]
)
def test_the_end_is_what_the_spectrum_says(name: str, n: int) -> None:
    rounds = 3000
    slowest = rates(topology.build(name, n), 0.9, 0.9)
    for found, rate in zip(distances(name, n, rounds), slowest, strict=True):
        # A straight line through the logarithms, since the way down oscillates; float64 ends near 1e-30.
        last = next((t for t, distance in enumerate(found) if distance < 1e-25), rounds)
        slope = np.polyfit(range(last // 4, last), np.log(found[last // 4 : last]), 1)[0]
        assert slope == pytest.approx(math.log(rate), rel=0.05)


def test_momentum_wins_for_good_only_above_its_own_memory() -> None:
    """mu + (1 - mu) beta = 0.99 lies between the second eigenvalues of the rings of 32 and 48."""
    for n, wins in ((16, False), (32, False), (48, True)):
        gossip, momentum = rates(topology.build("ring", n), 0.9, 0.9)
        assert (momentum < gossip) is wins
        assert (gossip > 0.99) is wins
        assert momentum == pytest.approx(math.sqrt(0.99 * gossip), rel=1e-9)

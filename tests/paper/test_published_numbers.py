"""Numbers of the paper's set-up that follow from the definitions alone (spec/paper-protocol, 2, 3.1, 5)."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

from p2pqg.schedules import Schedule
from p2pqg.tasks import partition
from p2pqg.tasks.partition import dirichlet_lists
from p2pqg.topology import build, second_eigenvalue
from p2pqg_simulator.experiments import EXPERIMENTS
from p2pqg_simulator.experiments.records import SHIPPED
from p2pqg_simulator.report import render


@pytest.mark.parametrize(
    ("name", "n", "expected"),
    [
        ("ring", 16, 0.94925),
        ("ring", 32, 0.98719),
        ("ring", 48, 0.99430),
        ("torus", 16, 0.600),
        ("social", 32, 0.91790),
    ],
)
def test_second_largest_eigenvalue(name: str, n: int, expected: float) -> None:
    assert second_eigenvalue(build(name, n)) == pytest.approx(expected, abs=5e-6)


def test_social_network() -> None:
    graph = build("social", 32).graph(0)
    degrees = [graph.degree(i) for i in range(32)]
    assert sum(degrees) == 2 * 89
    assert (min(degrees), max(degrees)) == (2, 14)
    W = graph.matrix()
    assert W.diagonal().min() == pytest.approx(0.0667, abs=5e-5)
    assert W.diagonal().max() == pytest.approx(0.8564, abs=5e-5)
    assert torch.linalg.eigvalsh(W).min() == pytest.approx(-0.43428, abs=5e-6)
    names = list(nx.davis_southern_women_graph())
    women, events = range(18), range(18, 32)
    assert names[0] == "Evelyn Jefferson"
    assert names[18] == "E1"
    assert all(set(graph.incoming[i]) <= set(events) for i in women)
    assert all(set(graph.incoming[i]) <= set(women) for i in events)


def test_uniform_weights_of_ring_torus_and_complete() -> None:
    for name, n, weight in [("ring", 16, 1 / 3), ("torus", 16, 1 / 5), ("complete", 16, 1 / 16)]:
        W = build(name, n).graph(0).matrix()
        torch.testing.assert_close(W[W > 0], torch.full_like(W[W > 0], weight), rtol=0, atol=1e-15)


def test_one_peer_exponential_hops_begin_with_two_and_average_exactly() -> None:
    topology = build("one-peer-exponential", 16)
    hops = [(0 - topology.graph(t).incoming[0][0]) % 16 for t in range(8)]
    assert hops == [2, 4, 8, 1, 2, 4, 8, 1]
    for n in (8, 16, 32):
        topology = build("one-peer-exponential", n)
        for start in range(topology.period):
            product = torch.eye(n, dtype=torch.float64)
            for t in range(start, start + topology.period):
                product = topology.graph(t).matrix() @ product
            torch.testing.assert_close(product, torch.full_like(product, 1 / n), rtol=0, atol=1e-15)


@pytest.mark.parametrize("n", [2, 8, 32])
def test_hypercube_averages_exactly_after_log2_n_rounds(n: int) -> None:
    topology = build("one-peer-hypercube", n)
    assert topology.period == n.bit_length() - 1
    product = torch.eye(n, dtype=torch.float64)
    for graph in topology.graphs:
        assert graph.symmetric
        product = graph.matrix() @ product
    assert torch.equal(product, torch.full_like(product, 1 / n))


def test_cifar_schedule_of_16_agents() -> None:
    steps_per_epoch = 98
    schedule = Schedule(
        0.05 * 16,
        warmup_steps=5 * steps_per_epoch,
        milestones=(150 * steps_per_epoch, 225 * steps_per_epoch),
    )
    trace = {0: 0.1, 98: 0.24, 489: 0.1 + 0.7 * 489 / 490, 490: 0.8, 14_699: 0.8, 14_700: 0.08, 22_050: 0.008}
    assert {t: schedule(t) for t in trace} == pytest.approx(trace, rel=1e-12)


LABELS = np.repeat(np.arange(10), 5000)


def histograms(shares: list[np.ndarray]) -> np.ndarray:
    """Share of each class in each agent's data, `[n, 10]`."""
    return np.array([np.bincount(LABELS[share], minlength=10) / len(share) for share in shares])


@pytest.mark.parametrize(
    ("n", "alpha", "smallest", "largest", "kept", "top", "classes", "distance"),
    [
        (16, 10, 2677, 3467, 0.94, 0.16, 9.8, 0.13),
        (16, 1, 2113, 4018, 0.82, 0.28, 8.6, 0.36),
        (16, 0.1, 1645, 4884, 0.77, 0.54, 3.9, 0.66),
        (32, 1, 949, 2164, 0.73, 0.29, 8.4, 0.36),
        (32, 0.1, 824, 2585, 0.72, 0.54, 4.1, 0.65),
        (48, 0.1, 532, 1764, 0.74, 0.57, 4.0, 0.67),
    ],
)
def test_statistics_of_the_papers_partition(
    n: int, alpha: float, smallest: float, largest: float, kept: float, top: float, classes: float,
    distance: float,
) -> None:  # fmt: skip
    """Means over seeds 6, 7, 8. The published row was taken with another order of labels, which moves the
    sizes by some percent where alpha = 0.1 makes redraws likely."""
    found = []
    for seed in (6, 7, 8):
        lists = dirichlet_lists(LABELS, n, alpha, seed)
        blocks = partition("dirichlet", LABELS, n, alpha, seed)
        sizes = [len(own) for own in lists]
        still_own = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(lists, blocks, strict=True)]
        h = histograms(list(blocks))
        tv = np.abs(h - 0.1).sum(1).mean() / 2
        found.append(
            [min(sizes), max(sizes), np.mean(still_own), h.max(1).mean(), (h > 0.01).sum(1).mean(), tv]
        )
    mean = np.mean(found, axis=0)
    assert mean[:2] == pytest.approx([smallest, largest], rel=0.01 if alpha >= 1 else 0.06)
    assert mean[2] == pytest.approx(kept, abs=0.01 if alpha >= 1 else 0.03)
    assert mean[3] == pytest.approx(top, abs=0.01)
    assert mean[4] == pytest.approx(classes, abs=0.15)
    assert mean[5] == pytest.approx(distance, abs=0.015)


def test_largest_class_before_the_cut() -> None:
    before = [histograms(list(dirichlet_lists(LABELS, 16, 0.1, seed))) for seed in (6, 7, 8)]
    assert np.mean([h.max(1).mean() for h in before]) == pytest.approx(0.61, abs=0.015)


@pytest.mark.parametrize(("n", "block"), [(16, 3125), (32, 1562), (48, 1041)])
def test_every_client_has_the_same_number_of_cifar_images(n: int, block: int) -> None:
    assert {len(share) for share in partition("dirichlet", LABELS, n, 0.1, 6)} == {block}


def test_the_page_of_results_is_what_the_shipped_records_say(tmp_path: Path) -> None:
    page = render(tuple(EXPERIMENTS), SHIPPED, tmp_path)
    shipped = Path(__file__).parents[2] / "docs" / "results"
    assert page.read_text() == (shipped / "report.md").read_text(), "run `p2pqg report --out docs/results`"
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in shipped.iterdir()}

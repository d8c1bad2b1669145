"""Every algorithm follows its published formulas, step by step, in float64.

Lin et al. 2021: Algorithm 1, equations 2, 3 (decentralised methods), section 4.2 and appendix B.3.1 (QHM).
"""

from __future__ import annotations

import dense_reference as dense
import numpy as np
import pytest
import torch
from dense_world import GRAPHS, SCHEDULES, assert_same, train

from p2pqg import algorithms, topology
from p2pqg.schedules import Schedule


@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    "name", ["dsgd", "dsgdm", "dsgdm-n", "qg-dsgdm", "qg-dsgdm-n", "sgd", "sgdm", "sgdm-n"]
)
def test_trajectory_equals_the_formulas(name: str, graph: str, schedule: str, local_steps: int) -> None:
    graphs, matrices = GRAPHS[graph]
    problem = dense.Quadratics(graphs.n)
    rates = [SCHEDULES[schedule].steps(t, local_steps) for t in range(24 // local_steps)]
    momentum = {} if name in ("dsgd", "sgd") else {"beta": 0.8}
    algorithm = algorithms.build(name, weight_decay=0.03, local_steps=local_steps, **momentum)
    ours = train(algorithm, problem, graphs, rates)
    theirs = dense.train(name, problem, matrices, rates, weight_decay=0.03, **momentum)
    assert_same(ours, theirs)
    assert np.abs(ours[-1] - problem.start).max() > 0.1


@pytest.mark.parametrize("name", ["qg-dsgdm", "qg-dsgdm-n"])
def test_mu_follows_beta_unless_set(name: str) -> None:
    graphs, matrices = GRAPHS["ring of 5"]
    problem, rates = dense.Quadratics(5), [(0.1,)] * 10

    def ours(**hyper_parameters: float) -> list[np.ndarray]:
        return train(algorithms.build(name, **hyper_parameters), problem, graphs, rates)

    assert_same(ours(beta=0.7), dense.train(name, problem, matrices, rates, beta=0.7, mu=0.7))
    assert_same(ours(beta=0.7, mu=0.4), dense.train(name, problem, matrices, rates, beta=0.7, mu=0.4))
    assert np.abs(ours(beta=0.7)[-1] - ours(beta=0.7, mu=0.4)[-1]).max() > 1e-3


@pytest.mark.parametrize(("name", "beta", "nesterov"), [
    ("dsgd", 0.0, False), ("dsgdm", 0.9, False), ("dsgdm-n", 0.9, True),
    ("sgd", 0.0, False), ("sgdm", 0.9, False), ("sgdm-n", 0.9, True),
])  # fmt: skip
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_one_agent_is_torch_sgd(name: str, beta: float, nesterov: bool, weight_decay: float) -> None:
    problem = dense.Quadratics(1)
    schedule = Schedule(0.1, warmup_steps=5, warmup_from=0.02, milestones=(12,))
    rates = [schedule.steps(t, 1) for t in range(20)]
    momentum = {"beta": beta} if beta else {}
    algorithm = algorithms.build(name, weight_decay=weight_decay, **momentum)
    ours = train(algorithm, problem, topology.build("ring", 1), rates)

    x = torch.from_numpy(problem.start[0]).clone().requires_grad_()
    A, b = torch.from_numpy(problem.A[0]), torch.from_numpy(problem.b[0])
    sgd = torch.optim.SGD([x], lr=1.0, momentum=beta, nesterov=nesterov, weight_decay=weight_decay)
    theirs = []
    for (lr,) in rates:
        sgd.param_groups[0]["lr"] = lr
        sgd.zero_grad()
        ((x - b) @ A @ (x - b) / 2).backward()
        sgd.step()
        theirs.append(x.detach().numpy()[None].copy())
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["dsgd", "dsgdm", "dsgdm-n"])
def test_exact_averaging_from_equal_starts_is_centralised(name: str) -> None:
    """With W = 11ᵀ/n the mean of the local buffers is the buffer of the mean gradient."""
    problem, rates = dense.Quadratics(6), [(0.1,)] * 5 + [(0.03,)] * 15
    graphs = topology.build("complete", 6)
    local = train(algorithms.build(name, weight_decay=0.01), problem, graphs, rates)
    central = train(algorithms.build(name.removeprefix("d"), weight_decay=0.01), problem, graphs, rates)
    assert_same(local, central)


@pytest.mark.parametrize("name", ["dsgd", "dsgdm-n", "qg-dsgdm", "qg-dsgdm-n"])
def test_without_edges_everyone_trains_alone(name: str) -> None:
    """W = I: each row is what a network of one agent does with that agent's data."""
    problem, rates = dense.Quadratics(3), [(0.1,)] * 20
    together = train(algorithms.build(name), problem, topology.build("isolated", 3), rates)
    for i in range(3):
        alone = dense.Quadratics(3)
        alone.A, alone.b, alone.start = problem.A[i : i + 1], problem.b[i : i + 1], problem.start[i : i + 1]
        single = train(algorithms.build(name), alone, topology.build("ring", 1), rates)
        assert_same([x[i : i + 1] for x in together], single)


@pytest.mark.parametrize(("beta", "mu"), [(0.9, None), (0.9, 0.5), (0.6, 0.95), (0.5, 0.0)])
def test_one_agent_with_heavy_ball_quasi_global_momentum_is_qhm(beta: float, mu: float | None) -> None:
    """Section 4.2 and equation 5, with m_qhm = m_hat / (1 - mu):

    m' = b m + g,  x' = x - lr ((1 - mu/b) m' + (mu/b) g),  b = mu + (1 - mu) beta.

    The learning rate cancels in d, so this holds for every schedule, not only for a constant rate.
    """
    problem = dense.Quadratics(1)
    rates = [Schedule(0.05, milestones=(10, 20)).steps(t, 1) for t in range(30)]
    algorithm = algorithms.build("qg-dsgdm", beta=beta, mu=mu, weight_decay=0.02)
    ours = train(algorithm, problem, topology.build("ring", 1), rates)

    mu = beta if mu is None else mu
    beta_hat = mu + (1 - mu) * beta
    x, m, theirs = problem.start[0].copy(), np.zeros(7), []
    for (lr,) in rates:
        g = problem.gradient(0, x) + 0.02 * x
        m = beta_hat * m + g
        x = x - lr * ((1 - mu / beta_hat) * m + mu / beta_hat * g)
        theirs.append(x[None])
    assert_same(ours, theirs)


def test_mu_of_zero_alone_is_heavy_ball_sgd() -> None:
    """Appendix B.3.1: SGDm is the special case mu = 0."""
    problem, rates = dense.Quadratics(1), [(0.05,)] * 20
    graph = topology.build("ring", 1)
    quasi_global = train(algorithms.build("qg-dsgdm", mu=0.0), problem, graph, rates)
    assert_same(quasi_global, train(algorithms.build("sgdm"), problem, graph, rates))

"""The keystone: real agents exchanging messages follow the trajectory of the matrix simulation, bit for bit.

Agents run over the in-memory network under virtual time: every message is delayed, some arrive twice, edges
overtake each other. The simulator computes W @ v on the stacked state. Only an exact average (`needs_mean`)
is the sum of all rows there and an exchange here, so that these methods are equal to 1e-12.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from p2pqg.agent import Agent
from p2pqg.algorithms import ALGORITHMS, build, hyper_parameters
from p2pqg.config import RunSettings, SimulationSettings
from p2pqg.errors import ConfigError
from p2pqg.tasks import Task
from p2pqg.tasks.quadratic import QuadraticTask, make_task
from p2pqg.topology import TOPOLOGIES
from p2pqg.topology import build as build_topology
from p2pqg.transport.memory import Faults, MemoryNetwork
from p2pqg_simulator import simulate
from p2pqg_simulator.simulate import make_tasks
from p2pqg_simulator.swarm import in_memory, memory_network

ROUNDS = 12
DELAYS = Faults(delay_s=(0.001, 0.3), duplicate=0.1)


def settings(
    algorithm: str,
    local_steps: int = 1,
    weight_decay: float = 1e-3,
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> RunSettings:
    table = {
        "rounds": ROUNDS,
        "task": {"name": "quadratic", "dtype": "float64", "options": {"noise": 0.1}},
        "algorithm": {
            "name": algorithm,
            "weight_decay": weight_decay,
            "local_steps": local_steps,
            "options": options or {},
        },
        "schedule": {"lr": 0.2, "warmup_steps": 4, "milestones": [9]},
        "finish": {"max_rounds": 6},
    }
    return RunSettings.model_validate(table | changes)


def tasks(run: RunSettings, names: tuple[str, ...]) -> list[QuadraticTask]:
    return [make_task(run.context(name, names)) for name in names]


def agents(run: RunSettings, topology: str, n: int, seed: int) -> list[Agent]:
    memory = MemoryNetwork(seed, DELAYS)
    problems = make_tasks(simulation(run, topology, n))
    return [agent for agent, _ in in_memory(memory_network(topology, n), run, problems, memory)]


def models(run: list[Agent]) -> Tensor:
    return torch.stack([agent.training.x for agent in run])


def simulation(run: RunSettings, topology: str, n: int) -> SimulationSettings:
    return SimulationSettings.model_validate(run.model_dump() | {"agents": n, "topology": topology})


def simulated(run: RunSettings, topology: str, n: int) -> Tensor:
    *_, last = simulate(simulation(run, topology, n))
    return last.x


def cases(
    sizes: range | list[int], topologies: Iterable[str] = TOPOLOGIES, algorithms: Iterable[str] = ALGORITHMS
) -> list[tuple[str, str, int]]:
    """The algorithms on the topologies, where they exist for n agents."""
    found = []
    for topology, n in itertools.product(topologies, sizes):
        try:
            graph = build_topology(topology, n)
        except ConfigError:
            continue
        found += [
            (algorithm, topology, n)
            for algorithm in algorithms
            if graph.complete or not build(algorithm).needs_mean
        ]
    return found


EVERY_ALGORITHM = cases([5], ["ring", "complete"]) + cases([5], ["one-peer-exponential"])
FEW = ("qg-dsgdm-n", "dsgdm-n-gt", "dsgdm-n-buffer-ring")
"""One vector, two in an exchange, two exchanges in a round."""
EVERY_GRAPH = cases([2, 3, 5, 8], algorithms=FEW[:1]) + cases([5], algorithms=FEW[1:])


def assert_equal_to_the_matrix(algorithm: str, topology: str, n: int, seeds: range) -> None:
    run = settings(algorithm, options={"tau": 3} if "tau" in hyper_parameters(algorithm) else {})
    reference = simulated(run, topology, n)
    first = models(agents(run, topology, n, seeds[0]))
    atol = 1e-12 if build(algorithm).needs_mean else 0
    torch.testing.assert_close(first, reference, rtol=0, atol=atol)
    for seed in seeds[1:]:
        assert torch.equal(models(agents(run, topology, n, seed)), first), f"delay seed {seed}"


@pytest.mark.parametrize(("algorithm", "topology", "n"), sorted({*EVERY_ALGORITHM, *EVERY_GRAPH}))
def test_agents_equal_the_simulator(algorithm: str, topology: str, n: int) -> None:
    assert_equal_to_the_matrix(algorithm, topology, n, range(2 if algorithm in FEW else 1))


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "topology", "n"), cases(range(2, 10)))
def test_every_algorithm_on_every_graph(algorithm: str, topology: str, n: int) -> None:
    assert_equal_to_the_matrix(algorithm, topology, n, range(2))


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "topology", "n"), cases(range(2, 10), algorithms=FEW))
def test_agents_equal_the_simulator_under_many_delays(algorithm: str, topology: str, n: int) -> None:
    assert_equal_to_the_matrix(algorithm, topology, n, range(20))


@pytest.mark.parametrize(
    "algorithm", ["dsgd", "qg-dsgdm-n", "dsgdm-n-buffer-ring", "dsgdm-n-gradients-ring", "qg-dadam"]
)
def test_local_steps_are_the_same_in_both(algorithm: str) -> None:
    run = settings(algorithm, local_steps=3)
    assert torch.equal(models(agents(run, "ring", 5, 0)), simulated(run, "ring", 5))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("topology", "n"), [("ring", 5), ("torus", 9)])
@pytest.mark.parametrize("algorithm", ["qg-dsgdm-n", "dsgdm-n", "qg-dadam"])
def test_agents_train_a_network_as_the_simulator_does(
    algorithm: str, topology: str, n: int, dtype: str
) -> None:
    """Models and scores, where gradients are computed agent by agent as agents do."""
    task = {"name": "digits", "dtype": dtype, "alpha": 0.5, "options": {"width": 3}}
    run = settings(algorithm, task=task, rounds=4, finish={"max_rounds": 1})
    found = agents(run, topology, n, 0)
    *_, last = simulate(simulation(run, topology, n), engine="loop")
    assert torch.equal(models(found), last.x)
    assert last.scores is not None
    assert tuple(agent.training.evaluate() for agent in found) == last.scores.local


def test_agents_with_more_samples_count_for_more() -> None:
    task = {"name": "digits", "dtype": "float64", "partition": "dirichlet-plain", "alpha": 0.5}
    weighted = task | {"weighting": "samples", "options": {"width": 1}}
    run = settings("qg-dsgdm-n", task=weighted, rounds=5)
    shares = [task.samples for task in make_tasks(simulation(run, "ring", 3))]
    assert len(set(shares)) == 3, "shares that differ are what is tested"
    found = models(agents(run, "ring", 3, 0))
    assert torch.equal(found, simulated(run, "ring", 3))
    uniform = settings("qg-dsgdm-n", task=weighted | {"weighting": "uniform"}, rounds=5)
    assert not torch.allclose(found, simulated(uniform, "ring", 3))


@pytest.mark.parametrize("lr", [0.1, 1e-5])
def test_a_narrow_wire_keeps_the_mean(lr: float) -> None:
    """float16 on the wire, the own rounded value in the difference: the rounding errors cancel. The mean
    over agents then moves as without rounding, because all gradients here have the same linear part."""
    run = settings("qg-dsgdm-n", weight_decay=0.0, schedule={"lr": lr}, finish={"max_rounds": 0})
    network = memory_network("ring", 5)
    linear = [Linear(task) for task in tasks(run, network.names)]
    ends = {}
    for wire in ("float16", "float64"):
        memory = MemoryNetwork(0, DELAYS)
        ends[wire] = models([a for a, _ in in_memory(network, run, linear, memory, wire=wire)])  # type: ignore[arg-type]
    assert not torch.equal(ends["float16"], ends["float64"])
    torch.testing.assert_close(ends["float16"].mean(0), ends["float64"].mean(0), rtol=0, atol=1e-12)


@dataclass(frozen=True, eq=False)
class Linear:
    """A task whose gradient is the same everywhere, so that the mean of the models is known."""

    task: QuadraticTask

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def gradient(self, x: Tensor, buffers: Any, step: int) -> Any:
        return self.task.gradient(torch.zeros_like(x), buffers, step)


# ---- lost edges: a task without gradients shows what gossip alone does


@dataclass(frozen=True, eq=False)
class Still:
    """A task that starts every agent elsewhere and never moves it."""

    task: QuadraticTask
    start: Tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def init(self, seed: int) -> Tensor:
        return self.start.clone()

    def gradient(self, x: Tensor, buffers: Any, step: int) -> Any:
        local = self.task.gradient(x, buffers, step)
        return type(local)(torch.zeros_like(x), torch.zeros(()), buffers)


def scattered(n: int, d: int = 10) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run_still(algorithm: str, topology: str, n: int, seed: int, faults: Faults) -> list[Agent]:
    run = settings(algorithm, weight_decay=0.0, finish={"max_rounds": 0})
    network = memory_network(topology, n)
    still: list[Task] = [
        Still(task, start)  # type: ignore[misc]
        for task, start in zip(tasks(run, network.names), scattered(n), strict=True)
    ]
    memory = MemoryNetwork(seed, faults)
    return [agent for agent, _ in in_memory(network, run, still, memory, round_timeout_s=2)]


@pytest.mark.parametrize("algorithm", ["dsgd", "dsgdm-n", "qg-dsgdm-n", "dsgdm-n-gt", "dsgdm-n-buffer-ring"])
@pytest.mark.parametrize("topology", ["ring", "one-peer-hypercube", "star"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_lost_exchange_keeps_the_mean(algorithm: str, topology: str, seed: int) -> None:
    run = run_still(algorithm, topology, 8, seed, Faults(delay_s=(0.0, 0.1), exchange_loss=0.3))
    assert any(agent.participation.missing for agent in run)
    torch.testing.assert_close(models(run).mean(0), scattered(8).mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", ["dsgd", "dsgd-gt", "dsgdm-n-buffer-ring"])
@pytest.mark.parametrize("drop", [0.01, 0.1])
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
def test_any_lost_message_keeps_the_mean(drop: float, algorithm: str, seed: int) -> None:
    """Also votes and verdicts: what is in doubt is settled later, and the mean is exact again. Vectors that
    travel beside the model, or before it, are told apart from it."""
    run = run_still(algorithm, "ring", 6, seed, Faults(delay_s=(0.0, 0.1), drop=drop))
    assert not any(agent.gossip.in_doubt for agent in run)
    torch.testing.assert_close(models(run).mean(0), scattered(6).mean(0), rtol=0, atol=1e-12)


def test_lost_exchanges_are_those_of_a_matrix_with_the_weight_at_home() -> None:
    """x' = W_t x, where W_t has the weights of the edges that were lost in round t on its diagonal."""
    run = run_still("dsgd", "ring", 6, 4, Faults(delay_s=(0.0, 0.1), exchange_loss=0.3))
    W = build_topology("ring", 6).graph(0).matrix()
    lost: set[tuple[int, int, int]] = set()
    for i, agent in enumerate(run):
        for span in agent.participation.missing:
            j = agent.names.index(span["peer"])
            lost |= {(round, i, j) for round in range(span["from"], span["to"] + 1)}
    assert lost
    assert lost == {(round, j, i) for round, i, j in lost}, "both ends lose an edge"
    x = scattered(6)
    for round in range(ROUNDS):
        W_t = W.clone()
        for at, i, j in lost:
            if at == round:
                W_t[i, i] += W_t[i, j]
                W_t[i, j] = 0
        x = W_t @ x
    torch.testing.assert_close(models(run), x, rtol=0, atol=1e-12)

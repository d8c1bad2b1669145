"""Real agents over real sockets: the same trajectory as the simulator, with and without TLS."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from p2pqg.agent import Agent
from p2pqg.algorithms import build
from p2pqg.config import AgentTable, NetworkFile, RunSettings, SimulationSettings, agent_names
from p2pqg.security import issue
from p2pqg.tasks import SupervisedTask, TaskContext, TaskFactory, quadratic
from p2pqg.transport.grpc import GrpcTransport
from p2pqg_simulator import simulate
from p2pqg_simulator.swarm import free_ports


def settings(algorithm: str, dtype: str = "float64") -> RunSettings:
    steps = 2 if build(algorithm).multi_step else 1
    return RunSettings.model_validate(
        {
            "rounds": 8,
            "task": {"name": "quadratic", "dtype": dtype, "options": {"noise": 0.1}},
            "algorithm": {"name": algorithm, "weight_decay": 1e-3, "local_steps": steps},
            "schedule": {"lr": 0.1},
            "finish": {"max_rounds": 4},
        }
    )


def over_grpc(
    run: RunSettings,
    topology: str,
    n: int,
    certificates: Path | None = None,
    make_task: TaskFactory = quadratic.make_task,
) -> list[Agent]:
    """Run n agents of one network to their end in this process."""
    names = agent_names(n)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(n)]
    network = NetworkFile.model_validate(
        {
            "name": "test",
            "topology": topology,
            "agents": [{"name": a, "address": b} for a, b in zip(names, addresses, strict=True)],
        }
    )
    files = issue(certificates, names) if certificates else {}

    async def main() -> list[Agent]:
        agents = [
            Agent(
                AgentTable(name=name, listen=address),
                network,
                run,
                make_task(run.context(name, names)),
                GrpcTransport(address, files[name].read() if files else None),
            )
            for name, address in zip(names, addresses, strict=True)
        ]
        await asyncio.gather(*(agent.run() for agent in agents))
        return agents

    return asyncio.run(main())


def models(agents: list[Agent]) -> Tensor:
    return torch.stack([agent.training.x for agent in agents])


def simulated(run: RunSettings, topology: str, n: int) -> Tensor:
    *_, last = simulate(
        SimulationSettings.model_validate(run.model_dump() | {"agents": n, "topology": topology})
    )
    return last.x


@pytest.mark.parametrize(
    ("algorithm", "topology", "n"),
    [
        ("dsgd", "ring", 2),
        ("dsgdm-n", "star", 3),
        ("qg-dsgdm-n", "ring", 5),
        ("qg-dsgdm", "one-peer-exponential", 3),
        ("sgdm-n", "complete", 3),
        ("dsgdm-n-gt", "ring", 3),
        ("dsgdm-n-buffer-ring", "one-peer-exponential", 3),
    ],
)
def test_agents_equal_the_simulator(algorithm: str, topology: str, n: int) -> None:
    run = settings(algorithm)
    atol = 1e-12 if build(algorithm).needs_mean else 0  # see test_agents_equal_the_matrix
    torch.testing.assert_close(
        models(over_grpc(run, topology, n)), simulated(run, topology, n), rtol=0, atol=atol
    )


def test_certificates_change_nothing_but_who_gets_in(tmp_path: Path) -> None:
    run = settings("qg-dsgdm-n")
    first = models(over_grpc(run, "ring", 3, tmp_path / "a"))
    fresh = models(over_grpc(run, "ring", 3, tmp_path / "b"))
    assert torch.equal(first, fresh)
    assert torch.equal(first, simulated(run, "ring", 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    ["dsgd", "dsgdm", "dsgdm-n", "qg-dsgdm", "qg-dsgdm-n", "dsgdm-n-gt", "dsgdm-n-buffer-ring"],
)
@pytest.mark.parametrize(
    ("topology", "n"),
    [(t, n) for t in ("ring", "complete", "star", "one-peer-exponential") for n in (2, 3, 5, 7, 9)]
    + [("one-peer-hypercube", n) for n in (2, 4, 8)]
    + [("torus", n) for n in (4, 6, 9)],
)
def test_every_algorithm_and_graph_equals_the_simulator(algorithm: str, topology: str, n: int) -> None:
    test_agents_equal_the_simulator(algorithm, topology, n)


def test_a_ring_agent_sends_two_models_a_round() -> None:
    """And little else: at most 1.001 times the raw bytes where a message is a megabyte."""
    run = RunSettings.model_validate({"rounds": 5, "finish": {"max_rounds": 0}})

    def make_linear(context: TaskContext) -> SupervisedTask:
        samples = torch.eye(512)[:4], torch.arange(4)
        make = partial(torch.nn.Linear, 512, 512)
        return SupervisedTask(make, samples, samples, agent=context.agent, seed=context.seed)

    for agent in over_grpc(run, "ring", 3, make_task=make_linear):
        assert agent.participation.mixed == dict.fromkeys(agent.gossip.edges, 5)
        raw = 5 * 2 * agent.training.task.spec.d * 4
        assert raw < agent.neighbourhood.traffic[0] < 1.001 * raw

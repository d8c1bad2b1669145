"""Agents that nobody can dial, over gRPC and mutual TLS: they take part, receive a model, and give none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from test_agents_equal_the_matrix import settings
from test_hostile_peers import LONG, Observed

from p2pqg.agent import Agent
from p2pqg.config import AgentTable, NetworkFile, RunSettings, agent_names
from p2pqg.errors import TransportError
from p2pqg.security import issue
from p2pqg.tasks.quadratic import make_task
from p2pqg.transport.grpc import GrpcTransport
from p2pqg_simulator.swarm import free_ports

Start = Callable[..., Agent]


def network_of(
    n: int,
    dial_only: set[int],
    folder: Path,
    story: Callable[[Start], Awaitable[None]],
    run: RunSettings,
) -> Observed:
    """A ring over whoever is alive, in which `story` starts agents by number."""
    names, observed = agent_names(n), Observed()
    files = issue(folder, names)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(n)]
    network = NetworkFile.model_validate(
        {
            "name": "test",
            "membership": "alive",
            "agents": [
                {"name": name} | ({} if i in dial_only else {"address": addresses[i]})
                for i, name in enumerate(names)
            ],
        }
    )

    def start(i: int, start_timeout_s: float = 4.0) -> Agent:
        table = AgentTable(
            name=names[i], listen=addresses[i], round_timeout_s=5.0, start_timeout_s=start_timeout_s
        )
        transport = GrpcTransport(addresses[i], files[names[i]].read())
        task = make_task(run.context(names[i], names))
        return Agent(table, network, run, task, transport, observe=observed.of(names[i]))

    async def main() -> None:
        await story(start)

    asyncio.run(main())
    return observed


async def reached(agent: Agent, round: int) -> None:
    async with asyncio.timeout(20):
        while agent.training.round < round:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_they_take_part_and_are_never_neighbours_of_each_other(tmp_path: Path) -> None:
    agents: list[Agent] = []

    async def story(start: Start) -> None:
        agents.extend(start(i) for i in range(4))
        await asyncio.gather(*(agent.run() for agent in agents))

    network_of(4, {1, 2}, tmp_path, story, settings("qg-dsgdm-n", rounds=30, finish={"max_rounds": 0}))
    mixed = [agent.participation.mixed for agent in agents]
    for i, own in enumerate(mixed):
        assert sum(own.values()) >= 25, f"agent {i} takes part"
    assert "agent-002" not in mixed[1]
    assert "agent-001" not in mixed[2]
    for agent in agents:  # each knows all others, by what they signed, whoever its neighbours are
        members = [m for m in agent.gossip.membership.members.values() if m.name != agent.name]
        assert len(members) == 3
        assert all(m.signature and m.certificate for m in members)


def test_a_newcomer_that_only_dials_out_receives_the_model(tmp_path: Path) -> None:
    async def story(start: Start) -> None:
        agents = [start(0), start(1)]
        running = [asyncio.create_task(agent.run()) for agent in agents]
        await reached(agents[0], 10)
        agents.append(start(2))
        running.append(asyncio.create_task(agents[2].run()))
        async with asyncio.timeout(20):
            while not agents[2].participation.mixed:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        for agent in agents:
            agent.stop()
        await asyncio.gather(*running)

    observed = network_of(3, {2}, tmp_path, story, LONG)
    assert [agent for agent, event, _ in observed.events if event == "fetched"] == ["agent-002"]


@pytest.mark.slow
def test_a_newcomer_whose_only_neighbour_dials_out_is_told_why_it_gets_no_model(tmp_path: Path) -> None:
    async def story(start: Start) -> None:
        first, second = start(0), start(1)
        running = [asyncio.create_task(agent.run()) for agent in (first, second)]
        await reached(first, 10)
        second.stop()
        await running[1]
        with pytest.raises(
            TransportError, match="no neighbour gives its state: agent-000: it only dials out"
        ):
            await start(1, 15.0).run()
        first.stop()
        await running[0]

    network_of(2, {0}, tmp_path, story, LONG)

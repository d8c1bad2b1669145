"""What an agent shows of its links, and how far it says its neighbours are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from test_agents_equal_the_matrix import settings, tasks

from p2pqg.agent import Agent
from p2pqg.config import AgentTable
from p2pqg.telemetry.journal import Link
from p2pqg.transport import virtual_time
from p2pqg.transport.memory import Faults, MemoryNetwork
from p2pqg_simulator.swarm import memory_network

ROUNDS = 60
DELAY_S = 0.05


def run() -> tuple[Agent, list[tuple[Link, ...]], list[Mapping[str, Any]]]:
    """The first agent of a ring of four, its links once a second, its rounds."""
    network, run = memory_network("ring", 4), settings("dsgd", rounds=ROUNDS)
    memory = MemoryNetwork(0, Faults(delay_s=(DELAY_S, DELAY_S)))
    rounds: list[Mapping[str, Any]] = []

    def observe(event: str, details: Mapping[str, Any]) -> None:
        if event == "round":
            rounds.append(details)

    agents = [
        Agent(
            AgentTable.model_validate({"name": name}),
            network,
            run,
            task,
            memory.transport(name),
            **({"observe": observe} if name == "agent-000" else {}),  # type: ignore[arg-type]
        )
        for name, task in zip(network.names, tasks(run, network.names), strict=True)
    ]
    seen: list[tuple[Link, ...]] = []

    async def look() -> None:
        while True:
            seen.append(agents[0].links(lambda peer: 0.5))
            await asyncio.sleep(1)

    async def main() -> None:
        looking = asyncio.create_task(look())
        await asyncio.gather(*(agent.run() for agent in agents))
        looking.cancel()

    virtual_time.run(main())
    return agents[0], seen, rounds


def test_links_are_shown_from_start_to_end() -> None:
    agent, seen, rounds = run()
    first, middle, last = seen[0], seen[len(seen) // 2], agent.links(lambda peer: 0.5)
    assert {link.state for link in first} == {"missing"}
    assert [(link.peer, link.state) for link in middle] == [("agent-001", "live"), ("agent-003", "live")]
    assert all(link.mixed == ROUNDS and link.missed == 0 and link.quality == 0.5 for link in last)
    assert agent.neighbourhood.traffic[0] == sum(link.bytes_sent for link in last) > 0
    assert agent.edges == (
        ("agent-000", "agent-001"),
        ("agent-000", "agent-003"),
        ("agent-001", "agent-002"),
        ("agent-002", "agent-003"),
    )
    distances = [line["disagreement"] for line in rounds]
    assert len(distances) == ROUNDS
    assert 0 < distances[-1] < 10


def test_a_round_trip_has_none_of_the_peers_waiting_in_it() -> None:
    _, seen, _ = run()
    times = [link.round_trip_s for links in seen for link in links if link.round_trip_s is not None]
    assert times
    assert all(time == pytest.approx(2 * DELAY_S) for time in times)

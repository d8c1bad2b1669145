"""An agent's snapshot while it trains, at its end, and after a resume."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from test_agents_equal_the_matrix import settings, tasks

from p2pqg.agent import Agent
from p2pqg.config import AgentTable
from p2pqg.home import Home
from p2pqg.status import Status
from p2pqg.transport import virtual_time
from p2pqg.transport.memory import Faults, MemoryNetwork
from p2pqg_simulator.swarm import memory_network

ROUNDS = 60
DELAY_S = 0.05


def run(folder: Path, **arguments: Any) -> tuple[list[Agent], list[Status]]:
    """A ring of four, with the snapshots of the first agent, one a second."""
    network, run = memory_network("ring", 4), settings("dsgd", rounds=ROUNDS, eval_every=20)
    memory = MemoryNetwork(0, Faults(delay_s=(DELAY_S, DELAY_S)))
    agents = [
        Agent(
            AgentTable.model_validate({"name": name, "start_timeout_s": 30.0}),
            network,
            run,
            task,
            memory.transport(name),
            home=Home(folder / name),
            **arguments,
        )
        for name, task in zip(network.names, tasks(run, network.names), strict=True)
    ]
    seen: list[Status] = []

    async def look() -> None:
        while True:
            seen.append(agents[0].status())
            await asyncio.sleep(1)

    async def main() -> None:
        looking = asyncio.create_task(look())
        await asyncio.gather(*(agent.run() for agent in agents))
        looking.cancel()

    virtual_time.run(main())
    return agents, [*seen, agents[0].status()]


def test_a_snapshot_shows_the_run_from_start_to_end(tmp_path: Path) -> None:
    (agent, *_), seen = run(tmp_path)
    first, middle, last = seen[0], seen[len(seen) // 2], seen[-1]
    assert [first.phase, middle.phase, last.phase] == ["starting", "training", "finished"]
    assert first.round == 0 < middle.round < last.round == ROUNDS
    assert {link.state for link in first.links} == {"missing"}
    assert {(link.peer, link.state) for link in middle.links} == {
        ("agent-001", "live"),
        ("agent-003", "live"),
    }
    assert last.edges == (
        ("agent-000", "agent-001"),
        ("agent-000", "agent-003"),
        ("agent-001", "agent-002"),
        ("agent-002", "agent-003"),
    )
    assert all(link.mixed == ROUNDS and link.missed == 0 and link.quality == 1.0 for link in last.links)
    assert last.bytes_sent == sum(link.bytes_sent for link in last.links) > 0
    assert {"loss", "test_loss", "disagreement", "round_s"} <= last.latest.keys()
    assert agent.journal.as_json()["test_loss"]["round"] == [20, 40, 60]
    assert "finished" in [event.event for event in last.events]
    json.dumps(last.as_json(), allow_nan=False)


def test_a_round_trip_has_none_of_the_peers_waiting_in_it(tmp_path: Path) -> None:
    _, seen = run(tmp_path)
    times = [link.round_trip_s for status in seen for link in status.links if link.round_trip_s is not None]
    assert times
    assert all(time == pytest.approx(2 * DELAY_S) for time in times)


def test_curves_go_on_after_a_resume(tmp_path: Path) -> None:
    (stopped, *_), seen = run(tmp_path, stop_after=30)
    assert seen[-1].round == 30
    (resumed, *_), _ = run(tmp_path)
    whole = resumed.journal.as_json()["loss"]
    assert whole["round"] == list(range(1, ROUNDS + 1))
    assert whole["value"][:30] == stopped.journal.as_json()["loss"]["value"]

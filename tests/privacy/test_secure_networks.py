"""Agents that mix by secure sums: the simulator's trajectory, what crosses the wire, what a crash costs."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from p2pqg.agent import Agent
from p2pqg.config import AgentTable, SimulationSettings
from p2pqg.errors import ConfigError, TransportError
from p2pqg.gossip.messages import Data, Key, Masked, Message, Ready, Senders
from p2pqg.home import Home
from p2pqg.privacy.masking import RANGE
from p2pqg.privacy.sums import Tally
from p2pqg.tasks.quadratic import make_task
from p2pqg.telemetry import read_metrics
from p2pqg.transport import virtual_time
from p2pqg.transport.memory import Cut, Faults, MemoryNetwork
from p2pqg_simulator import simulate
from p2pqg_simulator.swarm import in_memory, memory_network

DELAYS = Faults(delay_s=(0.001, 0.3), duplicate=0.1)
N = 4


def settings(algorithm: str = "qg-dsgdm-n", rounds: int = 12, **changes: Any) -> SimulationSettings:
    table = {
        "agents": N,
        "rounds": rounds,
        "task": {"name": "quadratic", "dtype": "float64", "options": {"noise": 0.1}},
        "algorithm": {"name": algorithm, "weight_decay": 1e-3},
        "schedule": {"lr": 0.2, "warmup_steps": 4, "milestones": [9]},
        "finish": {"max_rounds": 6},
        "privacy": {"secure_sums": True},
    }
    return SimulationSettings.model_validate(table | changes)


def network(run: SimulationSettings, memory: MemoryNetwork, **table: Any) -> list[Agent]:
    tasks = [make_task(run.context(name, run.names)) for name in run.names]
    there = memory_network(run.topology, run.agents)
    return [agent for agent, _ in in_memory(there, run, tasks, memory, **table)]


def tally(agent: Agent) -> Tally:
    assert agent.sums is not None
    return agent.sums.tally


def models(agents: list[Agent]) -> Tensor:
    return torch.stack([agent.training.x for agent in agents])


@pytest.mark.parametrize(
    ("algorithm", "topology", "n"),
    [
        ("qg-dsgdm-n", "ring", 4),
        pytest.param("dsgd", "complete", 4, marks=pytest.mark.slow),
        ("dsgdm-n-buffer-ring", "ring", 3),
        pytest.param("qg-dsgdm-n", "ring", 5, marks=pytest.mark.slow),
        pytest.param("qg-dadam", "torus", 9, marks=pytest.mark.slow),
        pytest.param("dsgdm-n", "social", 32, marks=pytest.mark.slow),
    ],
)
def test_agents_equal_the_simulator_bit_for_bit(algorithm: str, topology: str, n: int) -> None:
    run = settings(algorithm, agents=n, topology=topology)
    *_, reference = simulate(run, engine="loop")
    agents = network(run, MemoryNetwork(0, DELAYS))
    assert torch.equal(models(agents), reference.x)
    assert all(tally(agent).lost == 0 and tally(agent).masked >= 12 for agent in agents)


def test_training_with_sums_stays_within_rounding_of_training_without() -> None:
    for dtype, atol in (("float64", 1e-6), ("float32", 1e-5)):
        task = {"name": "quadratic", "dtype": dtype, "options": {"noise": 0.1}}
        *_, with_sums = simulate(settings(rounds=50, task=task))
        *_, without = simulate(settings(rounds=50, task=task, privacy=None))
        assert not torch.equal(with_sums.x, without.x)
        torch.testing.assert_close(with_sums.x, without.x, rtol=0, atol=atol)


def test_bad_weather_costs_mixes_and_is_counted() -> None:
    """Duplicates, delays and lost messages: all rounds are done."""
    faults = Faults(delay_s=(0.0, 0.2), duplicate=0.2, drop=0.005)
    agents = network(settings(rounds=20), MemoryNetwork(1, faults), round_timeout_s=2)
    assert min(agent.training.round for agent in agents) >= 20
    assert sum(tally(agent).lost for agent in agents) > 0
    assert any(tally(agent).drift > 0 for agent in agents)
    assert all(tally(agent).masked > 10 for agent in agents)


CUTS = [
    Cut("agent-000", "agent-001", kind, count)
    for kind in (Key, Ready, Senders, Data, Masked)
    for count in (1, 2, 5)
]


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"{cut.message.__name__}-{cut.count}")
def test_a_connection_that_breaks_anywhere_is_made_again(cut: Cut) -> None:
    memory = MemoryNetwork(0, Faults(delay_s=(0.0, 0.1), cuts=(cut,)))
    agents = network(settings(), memory, round_timeout_s=2)
    assert {len(agent.gossip.live) for agent in agents} <= {0, 2}
    masked = [tally(agent).masked for agent in agents]
    assert sum(masked) >= 4 * (12 - 4)
    assert min(masked) > 0


def test_what_crosses_the_wire() -> None:
    """Of payload as many bytes as float32 has, and in one round no receiver is answered twice; nothing of the
    plain protocol."""
    payload: dict[tuple[str, str], dict[int, bytes]] = defaultdict(dict)
    kinds = set()

    def watch(sender: str, receiver: str, message: Message) -> bool:
        kinds.add(type(message).__name__)
        if isinstance(message, Data):
            payload[sender, receiver][message.seq] = bytes(message.payload)
        return False

    run = settings(finish={"max_rounds": 0})
    agents = network(run, MemoryNetwork(0, drop=watch))
    d = agents[0].training.task.spec.d
    assert {len(data) for sums in payload.values() for data in sums.values()} == {4 * d}
    assert all(len(sums) == run.rounds for sums in payload.values())
    assert len(payload) == 2 * N
    assert not kinds & {"Begin", "End", "Prepared", "Commit"}
    everything = np.frombuffer(
        b"".join(data for sums in payload.values() for data in sums.values()), dtype=np.uint8
    )
    assert len(everything) > 3000
    assert chisquare(np.bincount(everything, minlength=256)).pvalue > 1e-6


def test_settings_that_cannot_work_are_refused_before_anything_starts() -> None:
    def agent(run: SimulationSettings, **changes: Any) -> Agent:
        table = {"name": "agent-000"} | changes.pop("table", {})
        there = memory_network(run.topology, run.agents).model_copy(update=changes)
        task = make_task(run.context("agent-000", run.names))
        return Agent(
            AgentTable.model_validate(table), there, run, task, MemoryNetwork().transport("agent-000")
        )

    run = settings()
    with pytest.raises(ConfigError, match="fixed"):
        agent(run, membership="alive")
    with pytest.raises(ConfigError, match=r"agent\.lag.*all or nothing"):
        agent(run, table={"lag": "skip"})
    for wire in ("float16", "float64"):
        with pytest.raises(ConfigError, match=r"agent\.wire.*format of their own"):
            agent(run, table={"wire": wire})
    agent(run, table={"wire": "float32"})
    with pytest.raises(ConfigError, match="agent 0 has 1"):
        settings(topology="one-peer-hypercube")
    with pytest.raises(ConfigError, match="both ends"):
        settings("d2-plus")
    with pytest.raises(ConfigError, match="at least 3"):
        settings(privacy={"secure_sums": True, "min_senders": 3})


def test_an_agent_without_sums_is_refused_by_name() -> None:
    reasons = set()
    runs = {"agent-000": settings(privacy=None)}
    agents = []
    there = memory_network("ring", 3)
    memory = MemoryNetwork()
    for name in there.names:
        run = runs.get(name, settings(agents=3))
        agents.append(
            Agent(
                AgentTable(name=name, start_timeout_s=5),
                there,
                run,
                make_task(run.context(name, there.names)),
                memory.transport(name),
                observe=lambda event, details: reasons.add(str(details)) if event == "refused" else None,
            )
        )

    async def main() -> list[Any]:
        return await asyncio.gather(*(agent.run() for agent in agents), return_exceptions=True)

    ends = virtual_time.run(main())
    assert isinstance(ends[0], TransportError)
    assert any("secure_sums" in reason for reason in reasons)


def test_an_agent_tells_what_its_sums_cost_and_goes_on_counting_after_a_restart(tmp_path: Path) -> None:
    """Its numbers in metrics, checkpoint and card; and of the mixes that a crash in between cost."""
    run = settings(rounds=10, finish={"max_rounds": 0})
    events: list[tuple[str, Any]] = []

    def start(stop_after: int | None, seed: int, drop: Any = None) -> list[Agent]:
        memory = MemoryNetwork(seed, drop=drop)
        agents = [
            Agent(
                AgentTable(name=name, checkpoint_every=5, round_timeout_s=5),
                memory_network("ring", N),
                run,
                make_task(run.context(name, run.names)),
                memory.transport(name),
                home=Home(tmp_path / name),
                stop_after=stop_after,
                observe=lambda event, details: events.append((event, dict(details))),
            )
            for name in run.names
        ]

        async def main() -> None:
            await asyncio.gather(*(agent.run() for agent in agents))

        virtual_time.run(main())
        return agents

    count = itertools.count()

    def lose_the_third(sender: str, receiver: str, message: Message) -> bool:
        edge = (sender, receiver) == ("agent-000", "agent-001")
        return edge and isinstance(message, Masked) and next(count) == 2

    start(5, 0, lose_the_third)
    start(None, 1)
    (lost,) = [details for event, details in events if event == "mix_lost"]
    assert lost == {"round": 2, "reason": "agent-000 did not send before the deadline"}
    cards = {name: json.loads((tmp_path / name / "model.json").read_text()) for name in run.names}
    sums = cards["agent-001"]["secure_sums"]
    assert (sums["sums_masked"], sums["sums_lost"], sums["sums_saturated"]) == (9, 1, 0)
    assert sums["sums_drift"] > 0
    assert all(
        card["secure_sums"]["sums_masked"] == 10 for name, card in cards.items() if name != "agent-001"
    )
    lines = read_metrics(tmp_path / "agent-001" / "metrics.jsonl")
    assert [line["sums_lost"] for line in lines] == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert [line["neighbours"] for line in lines] == [2, 2, 0, 2, 2, 2, 2, 2, 2, 2]
    assert set(lines[2]["missed"].values()) == {lost["reason"]}


def test_the_drift_that_is_told_is_of_the_size_of_the_drift_there_is() -> None:
    """One mix is lost, at one end; the mean of the models then moves by what this agent did not take over."""

    def last(drop: Any = None) -> list[Agent]:
        return network(
            settings("dsgd", finish={"max_rounds": 0}), MemoryNetwork(0, drop=drop), round_timeout_s=1
        )

    count = itertools.count()

    def lose_one(sender: str, receiver: str, message: Message) -> bool:
        edge = (sender, receiver) == ("agent-000", "agent-001")
        return edge and isinstance(message, Masked) and next(count) == 11

    whole, torn = last(), last(lose_one)
    moved = float((models(torn).sum(0) - models(whole).sum(0)).norm())
    told = tally(torn[1]).drift
    assert 0.3 * moved < told < 3 * moved
    assert all(tally(agent).drift == 0 for agent in (torn[0], *torn[2:], *whole))


def test_numbers_beyond_the_range_are_said() -> None:
    events = []
    run = settings(rounds=2, finish={"max_rounds": 0})
    there = memory_network("ring", N)
    memory = MemoryNetwork()
    agents = [
        Agent(
            AgentTable(name=name),
            there,
            run,
            make_task(run.context(name, there.names)),
            memory.transport(name),
            observe=lambda event, details, name=name: events.append((name, event, dict(details))),
        )
        for name in there.names
    ]
    agents[0].training.x[:3] = 1e4

    async def main() -> None:
        await asyncio.gather(*(agent.run() for agent in agents))

    virtual_time.run(main())
    said = [(name, details["numbers"]) for name, event, details in events if event == "saturated"]
    assert said[0][0] == "agent-000"
    assert tally(agents[0]).saturated == sum(count for name, count in said if name == "agent-000") >= 3
    assert float(models(agents)[1:].abs().max()) <= RANGE

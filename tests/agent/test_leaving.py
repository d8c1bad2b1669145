"""Agents that stop, die or lose each other at every moment of a round: others go on, the mean is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_agents_equal_the_matrix import Still, scattered, settings, tasks
from torch import Tensor

from p2pqg.agent import Agent, Outcome
from p2pqg.config import AgentTable
from p2pqg.errors import TransportError
from p2pqg.gossip.messages import Begin, Commit, Data, End, Message, Prepared
from p2pqg.home import Home
from p2pqg.neighbourhood import FAREWELL_S
from p2pqg.tasks import Task
from p2pqg.transport import virtual_time
from p2pqg.transport.memory import Faults, MemoryNetwork
from p2pqg_simulator.swarm import memory_network

ROUNDS = 6
DELAY_S = 0.1
TIMEOUT_S = 20.0
RUN = settings("dsgd", weight_decay=0.0, rounds=ROUNDS, finish={"max_rounds": 0})


class Swarm:
    """Four agents on a ring that only gossip, each message on its way for a tenth of a second."""

    def __init__(
        self, folder: Path | None = None, memory: MemoryNetwork | None = None, rounds: int = ROUNDS
    ) -> None:
        run = RUN.model_copy(update={"rounds": rounds})
        self.network = memory_network("ring", 4)
        self.memory = memory or MemoryNetwork(0, Faults(delay_s=(DELAY_S, DELAY_S)))
        self.start = scattered(4)
        self.events: list[tuple[float, str, str, Mapping[str, Any]]] = []
        still: list[Task] = [
            Still(task, start)  # type: ignore[misc]
            for task, start in zip(tasks(run, self.network.names), self.start, strict=True)
        ]
        self.agents = [
            Agent(
                AgentTable.model_validate({"name": name, "round_timeout_s": TIMEOUT_S}),
                self.network,
                run,
                task,
                self.memory.transport(name),
                home=Home(folder / name) if folder else None,
                observe=self._observer(name),
            )
            for name, task in zip(self.network.names, still, strict=True)
        ]

    def _observer(self, name: str) -> Any:
        def observe(event: str, details: Mapping[str, Any]) -> None:
            self.events.append((asyncio.get_running_loop().time(), name, event, details))

        return observe

    @property
    def models(self) -> Tensor:
        return torch.stack([agent.training.x for agent in self.agents])

    def of(self, event: str) -> list[tuple[float, str, Mapping[str, Any]]]:
        return [(when, name, details) for when, name, what, details in self.events if what == event]


LONGEST_RUN_S = 4.0  # of the undisturbed swarm: 6 rounds of 3 delays, and the way to the start


@pytest.mark.parametrize("stop_s", [0.35 + 0.05 * k for k in range(45)])
def test_stop_at_any_moment(stop_s: float, tmp_path: Path) -> None:
    """A round past PREPARED is finished; others miss that edge and nothing else; the checkpoint is that of a
    round boundary; goodbye is said; the mean over all agents is what it was."""
    swarm = Swarm(tmp_path)
    leaver = swarm.agents[1]

    async def main() -> tuple[list[Outcome], float]:
        loop = asyncio.get_running_loop()
        loop.call_at(stop_s, leaver.stop)
        runs = [asyncio.create_task(agent.run()) for agent in swarm.agents]
        await runs[1]
        left_s = loop.time()
        return list(await asyncio.gather(*runs)), left_s

    outcomes, left_s = virtual_time.run(main())
    rounds = [outcome.round for outcome in outcomes]
    assert left_s - stop_s < 1.0, "at most the round in progress and the goodbyes"
    torch.testing.assert_close(swarm.models.mean(0), swarm.start.mean(0), rtol=0, atol=1e-12)
    assert [rounds[i] for i in (0, 2, 3)] == [ROUNDS] * 3
    tensors, meta = leaver.home.load(leaver.agreed)  # type: ignore[union-attr, misc]
    assert meta["round"] == rounds[1]
    assert torch.equal(tensors["x"], leaver.training.x)
    missing = [span for i in (0, 2, 3) for span in swarm.agents[i].participation.missing]
    assert {span["peer"] for span in missing} <= {leaver.name}
    assert all("leaving" in span["reason"] or "left" in span["reason"] or "not connected" in span["reason"]
               for span in missing)  # fmt: skip


@pytest.mark.parametrize("stop_s", [0.0, 0.05, 0.15, 0.25, 0.3])
def test_stop_before_the_start(stop_s: float) -> None:
    """An agent that is told to stop does not wait for neighbours; they say who is missing, or go on."""
    swarm = Swarm()

    async def main() -> tuple[float, list[Outcome | BaseException]]:
        loop = asyncio.get_running_loop()
        loop.call_at(stop_s, swarm.agents[1].stop)
        runs = [asyncio.create_task(agent.run()) for agent in swarm.agents]
        outcome = await runs[1]
        assert (outcome.round, outcome.finished) == (0, False)
        return loop.time(), await asyncio.gather(*runs, return_exceptions=True)

    left_s, outcomes = virtual_time.run(main())
    assert left_s <= stop_s + FAREWELL_S + 0.5
    for i in (0, 2):
        outcome = outcomes[i]
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, TransportError)
            assert "agent-001" in str(outcome)
        else:
            assert outcome.finished


MOMENTS = [
    (kind, sender, count)
    for kind, senders in ((Begin, (0, 1)), (Data, (0, 1)), (End, (0, 1)), (Prepared, (1,)), (Commit, (0,)))
    for sender in senders
    for count in (1, 3)
]


@pytest.mark.parametrize(("kind", "sender", "count"), MOMENTS)
def test_a_killed_neighbour_costs_others_one_deadline_at_most(
    kind: type[Message], sender: int, count: int
) -> None:
    """Agent 1 dies without a word as a message of some kind leaves or would have reached it."""
    victim, neighbour = "agent-001", "agent-000"
    ends = (neighbour, victim) if sender == 0 else (victim, neighbour)
    seen = 0

    def drop(source: str, target: str, message: Message) -> bool:
        nonlocal seen
        if (source, target) == ends and isinstance(message, kind):
            seen += 1
            if seen == count:
                memory.crash(victim)
                asyncio.get_running_loop().call_soon(run_of_victim.cancel)
        return False

    memory = MemoryNetwork(0, Faults(delay_s=(DELAY_S, DELAY_S)), drop)
    swarm = Swarm(memory=memory)

    async def main() -> float:
        nonlocal run_of_victim
        runs = [asyncio.create_task(agent.run()) for agent in swarm.agents]
        run_of_victim = runs[1]
        await asyncio.gather(*(runs[i] for i in (0, 2, 3)))
        ended_s = asyncio.get_running_loop().time()
        await asyncio.wait([run_of_victim])
        return ended_s

    run_of_victim: asyncio.Task[Outcome]
    ended_s = virtual_time.run(main())
    assert seen >= count
    waited = 2 * TIMEOUT_S if any(agent.gossip.unsettled for agent in swarm.agents) else TIMEOUT_S / 4
    assert ended_s < waited + LONGEST_RUN_S
    for i in (0, 2, 3):
        agent = swarm.agents[i]
        assert agent.training.round == ROUNDS
        assert {span["peer"] for span in agent.participation.missing} <= {victim}
        assert agent.participation.mixed[swarm.network.names[3 if i != 3 else 0]] == ROUNDS
    reasons = [details["reason"] for _, name, details in swarm.of("disconnected") if name != victim]
    assert reasons
    assert all(reason == f"{victim} crashed" for reason in reasons if "finished" not in reason)


@pytest.mark.parametrize("begins_s", [1.0 + 0.04 * k for k in range(8)])
def test_a_partition_keeps_the_mean_of_each_side(begins_s: float) -> None:
    """Two sides of two go on by themselves at once, and meet again."""
    swarm = Swarm(rounds=60)
    names = swarm.network.names
    cut = [(names[0], names[3]), (names[1], names[2])]
    means: dict[int, list[Tensor]] = {0: [], 2: []}

    def look() -> None:
        for first, seen in means.items():
            pair = swarm.agents[first : first + 2]
            if pair[0].training.round == pair[1].training.round:  # and not in the middle of one
                seen.append(swarm.models[first : first + 2].mean(0))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for a, b in cut:
            loop.call_at(begins_s, swarm.memory.lose, a, b)
            loop.call_at(begins_s + 4.0, swarm.memory.restore, a, b)
        for k in range(60):
            loop.call_at(begins_s + 1.0 + 0.05 * k, look)
        await asyncio.gather(*(agent.run() for agent in swarm.agents))

    virtual_time.run(main())
    for seen in means.values():
        assert len(seen) > 5
        for mean in seen:
            torch.testing.assert_close(mean, seen[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(swarm.models.mean(0), swarm.start.mean(0), rtol=0, atol=1e-12)
    assert not any(agent.gossip.in_doubt for agent in swarm.agents)
    apart = (means[0][0] - means[2][0]).norm()
    assert (swarm.models - swarm.models.mean(0)).norm() < apart / 10, "they agree again"
    lost = {(a.name, s["peer"]) for a in swarm.agents for s in a.participation.missing}
    assert lost == {*cut, *((b, a) for a, b in cut)}


@pytest.mark.parametrize("lost_s", [1.4 + 0.05 * k for k in range(7)])
def test_an_edge_lost_at_the_end_is_settled_before_anyone_leaves(lost_s: float) -> None:
    """Also by the end that committed: the other could never ask it again. One that decided nothing may leave:
    who is in doubt about it has not applied anything either."""
    swarm = Swarm()
    a, b = swarm.network.names[:2]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(lost_s, swarm.memory.lose, a, b)
        loop.call_at(lost_s + 1.0, swarm.memory.restore, a, b)
        await asyncio.gather(*(agent.run() for agent in swarm.agents))

    virtual_time.run(main())
    torch.testing.assert_close(swarm.models.mean(0), swarm.start.mean(0), rtol=0, atol=1e-12)

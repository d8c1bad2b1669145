"""Real agents over real sockets and bad links: slow, long, gone and back, gone in the middle of a state."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from slow_link import SlowLink
from village import Paced

from p2pqg.config import AgentTable, NetworkFile, RunSettings, agent_names
from p2pqg.errors import TransportError
from p2pqg.tasks import SupervisedTask, TaskContext
from p2pqg.transport.grpc import GrpcTransport
from p2pqg_simulator.swarm import free_ports

BYTES_S = 20e6 / 8
"""20 Mbit/s."""
DELAY_S = 0.1
"""One way: a round trip takes 200 ms."""


def linear(width: int, context: TaskContext) -> SupervisedTask:
    """A model of 4 * width^2 bytes that costs nothing to train; the same data at every agent."""
    samples = torch.eye(width)[:4], torch.arange(4)
    make = partial(torch.nn.Linear, width, width)
    return SupervisedTask(make, samples, samples, agent=context.agents[0], seed=context.seed)


@dataclass
class Linked:
    """`n` agents of a complete graph, each behind a link of its own; `events` of each in order."""

    width: int
    n: int = 2
    rounds: int = 1000
    step_s: float = 0.0
    link: Mapping[str, float] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = agent_names(self.n)
        ports = [f"127.0.0.1:{port}" for port in free_ports(2 * self.n)]
        self.listen, self.shown = ports[: self.n], ports[self.n :]
        self.links = [SlowLink(address, **self.link) for address in self.listen]
        self.events: list[list[tuple[str, Mapping[str, Any]]]] = [[] for _ in self.names]
        self.agents: dict[int, Paced] = {}

    def of(self, i: int, event: str) -> list[Mapping[str, Any]]:
        return [details for name, details in self.events[i] if name == event]

    def agent(self, i: int) -> Paced:
        shown = [{"name": a, "address": b} for a, b in zip(self.names, self.shown, strict=True)]
        run = RunSettings.model_validate({"rounds": self.rounds, "finish": {"max_rounds": 0}})
        agent = self.agents[i] = Paced(
            AgentTable.model_validate({"name": self.names[i], "listen": self.listen[i], **self.table}),
            NetworkFile.model_validate({"name": "links", "topology": "complete", "agents": shown}),
            run,
            linear(self.width, run.context(self.names[i], self.names)),
            GrpcTransport(self.listen[i]),
            observe=lambda event, details: self.events[i].append((event, details)),
        )
        agent.step_s = self.step_s
        return agent

    async def up(self, stack: AsyncExitStack) -> None:
        for link, address in zip(self.links, self.shown, strict=True):
            await stack.enter_async_context(link.running(address))

    def run(self) -> None:
        """All of them, to the end."""

        async def main() -> None:
            async with AsyncExitStack() as stack:
                await self.up(stack)
                await asyncio.gather(*(self.agent(i).run() for i in range(self.n)))

        asyncio.run(main())


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("width", [512, pytest.param(3120, marks=pytest.mark.slow)], ids=["1 MB", "39 MB"])
def test_a_link_of_20_megabits_is_slow_and_complete(width: int) -> None:
    """39 MB take three times the deadline: it counts from the last chunk, and then from what was measured."""
    linked = Linked(width, rounds=2, link={"bytes_per_s": BYTES_S}, table={"round_timeout_s": 5.0})
    linked.run()
    transfer_s = 4 * width**2 / BYTES_S
    for i in range(2):
        rounds = linked.of(i, "round")
        assert [line["neighbours"] for line in rounds] == [1, 1]
        assert all(line["exchange_s"] > 0.8 * transfer_s for line in rounds), "the link is slow"
        (edge,) = linked.agents[i].gossip.edges.values()
        assert edge.bandwidth_bytes_s is not None
        assert BYTES_S / 3 < edge.bandwidth_bytes_s < 1.3 * BYTES_S


@pytest.mark.parametrize(
    ("width", "bytes_per_s"),
    [
        (16, 1e9),
        pytest.param(512, 1e9, marks=pytest.mark.slow),
        pytest.param(1024, BYTES_S, marks=pytest.mark.slow),
    ],
    ids=["1 kB", "1 MB", "4 MB at 20 Mbit/s"],
)
def test_a_round_costs_the_transfer_and_two_round_trips(width: int, bytes_per_s: float) -> None:
    linked = Linked(width, rounds=8, link={"delay_s": DELAY_S, "bytes_per_s": bytes_per_s})
    linked.run()
    for i in range(2):
        took_s = statistics.median(line["exchange_s"] for line in linked.of(i, "round"))
        assert 2 * DELAY_S < took_s < 1.15 * 4 * width**2 / bytes_per_s + 2 * (2 * DELAY_S)


def test_an_interface_that_is_lost_and_comes_back() -> None:
    linked = Linked(16, step_s=0.05, table={"round_timeout_s": 5.0})

    def alone(i: int) -> bool:
        return linked.of(i, "round")[-1]["neighbours"] == 0

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await linked.up(stack)
            running = [asyncio.create_task(linked.agent(i).run()) for i in range(2)]
            await until(lambda: all(len(linked.of(i, "round")) > 3 for i in range(2)))
            for link in linked.links:
                link.cut()
            await until(lambda: all(alone(i) for i in range(2)))
            for link in linked.links:
                link.restore()
            await until(lambda: not any(alone(i) for i in range(2)))
            for agent in linked.agents.values():
                agent.stop()
            await asyncio.gather(*running)

    asyncio.run(main())
    for i in range(2):
        assert max(line["exchange_s"] for line in linked.of(i, "round")) < 5.0, "it is noticed at once"
        (lost,) = linked.of(i, "disconnected")
        assert "broke" in lost["reason"] or "unavailable" in lost["reason"]


def test_a_name_that_nobody_resolves_is_said_to_be_one() -> None:
    """Every attempt asks anew, so it is found once the name server is back."""

    async def main() -> None:
        with pytest.raises(
            TransportError, match=r"agent-001 cannot be reached at nowhere.invalid:7000: .*(resolving|DNS)"
        ):
            await GrpcTransport().dial("agent-001", "nowhere.invalid:7000")

    asyncio.run(main())


@pytest.mark.slow
def test_a_state_goes_on_from_another_donor_when_one_dies() -> None:
    """Both hold the same model, as its data are the same; the dead one's bytes are not sent again."""
    linked = Linked(512, n=3, step_s=0.3, link={"bytes_per_s": 8e6}, table={"start_timeout_s": 30.0})
    state_bytes, received = 2 * 4 * 512 * 513, list[int]()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await linked.up(stack)
            running = [asyncio.create_task(linked.agent(i).run()) for i in range(3)]
            await until(lambda: all(len(linked.of(i, "round")) > 0 for i in range(3)))
            running[2].cancel()
            for i in range(2):
                linked.agents[i].step_s = 1000.0
            await asyncio.sleep(1.0)
            before = linked.links[0].forwarded
            running.append(asyncio.create_task(linked.agent(2).run()))
            # The state is two chunks and a bit: the first has arrived, the second is on its way.
            await until(lambda: linked.links[0].forwarded > before + 3 * state_bytes // 4)
            linked.links[0].cut()
            await until(lambda: bool(linked.of(2, "fetched")))
            received.append(linked.agents[2].neighbourhood.traffic_with(linked.names[1])[1])
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    asyncio.run(main())
    assert linked.of(2, "not fetched")[0]["peer"] == linked.names[0]
    (fetched,) = linked.of(2, "fetched")
    assert fetched["peer"] == linked.names[1]
    assert 0 < received[0] < fetched["bytes"] == state_bytes

"""A peer that may say anything against real agents: they refuse it with a reason, live on, and finish."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
import xxhash
from test_agents_equal_the_matrix import settings, tasks

from p2pqg.agent import Agent, Outcome
from p2pqg.config import AgentTable, NetworkFile, RunSettings, agent_names
from p2pqg.errors import TransportError
from p2pqg.gossip.messages import (
    Abort,
    Begin,
    Bye,
    Commit,
    Data,
    End,
    Hello,
    Message,
    Prepared,
    Refuse,
    Settle,
    Skip,
    Status,
)
from p2pqg.security import Identity, issue
from p2pqg.transport import memory as memory_transport
from p2pqg.transport import virtual_time
from p2pqg.transport.base import Connection, Transport
from p2pqg.transport.grpc import METHOD, GrpcTransport
from p2pqg.transport.memory import MemoryNetwork
from p2pqg.wire.codec import MAX_FRAME_BYTES, decode, encode
from p2pqg_simulator.swarm import memory_network

ROUNDS = 12
TIMEOUT_S = 2.0
RUN = settings("qg-dsgdm-n", finish={"max_rounds": 2})


class Observed:
    """Everything that agents report, by agent."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, Mapping[str, Any]]] = []

    def of(self, agent: str) -> Callable[[str, Mapping[str, Any]], None]:
        return lambda event, details: self.events.append((agent, event, details))

    def reasons(self, event: str, agent: str | None = None) -> list[str]:
        return [d["reason"] for a, e, d in self.events if e == event and agent in (None, a)]


def build_agents(
    network: NetworkFile,
    transport: Callable[[str], Transport],
    observed: Observed,
    *,
    without: str = "",
    run: RunSettings = RUN,
    **table: Any,
) -> list[Agent]:
    table = {"round_timeout_s": TIMEOUT_S} | table
    return [
        Agent(
            AgentTable.model_validate({"name": name, **table}),
            network,
            run,
            task,
            transport(name),
            observe=observed.of(name),
        )
        for name, task in zip(network.names, tasks(run, network.names), strict=True)
        if name != without
    ]


# ---- a neighbour that is welcome and then turns on them

Attack = Callable[[Begin], list[Message]]


def payload(begin: Begin, values: bytes, **end: Any) -> list[Message]:
    checksum = end.get("checksum", xxhash.xxh3_64_intdigest(values))
    return [
        replace(begin, payload_bytes=len(values)),
        Data(begin.seq, 0, values),
        End(begin.seq, checksum, 1.0),
    ]


def zeros(begin: Begin) -> bytes:
    return bytes(begin.payload_bytes)


def not_finite(begin: Begin) -> bytes:
    return np.full(begin.payload_bytes // 8, math.nan).tobytes()


ATTACKS: dict[str, Attack] = {
    "silence": lambda b: [],
    "not finite": lambda b: payload(b, not_finite(b)),
    "checksum": lambda b: payload(b, zeros(b), checksum=1),
    "truncated": lambda b: [b, Data(b.seq, 0, zeros(b)[:8]), End(b.seq, 0, 0.0)],
    "no data": lambda b: [b, End(b.seq, 0, 0.0)],
    "reordered": lambda b: payload(b, zeros(b))[::-1],
    "gap": lambda b: [b, Data(b.seq, 8, zeros(b)[8:]), End(b.seq, 0, 0.0)],
    "cut in two": lambda b: [b, Data(b.seq, 0, b"\0" * 7), Data(b.seq, 7, zeros(b)[7:])],
    "beyond the end": lambda b: [b, Data(b.seq, 0, zeros(b) + bytes(8))],
    "doubled": lambda b: [m for m in payload(b, zeros(b)) for _ in range(2)],
    "wrong dtype": lambda b: [replace(b, wire="float32")],
    "too big": lambda b: [replace(b, payload_bytes=1 << 62)],
    "too small": lambda b: payload(b, zeros(b)[:-8]),
    "nothing": lambda b: [replace(b, payload_bytes=0)],
    "past round": lambda b: [replace(b, round=max(0, b.round - 1))],
    "future round": lambda b: payload(replace(b, round=2**64 - 1), zeros(b)),
    "sequence ahead": lambda b: [replace(b, seq=b.seq + 1), replace(b, seq=b.seq + 2)],
    "largest sequence": lambda b: [replace(b, seq=2**64 - 1)],
    "largest degree": lambda b: payload(replace(b, degree=2**64 - 1), zeros(b)),
    "promise of something else": lambda b: [*payload(b, zeros(b)), Prepared(b.seq, 1, 2)],
    "commit": lambda b: [Commit(b.seq)],
    "commit and abort": lambda b: [*payload(b, zeros(b)), Abort(b.seq, 0, 0, ""), Commit(b.seq)],
    "begins anew": lambda b: [*payload(b, zeros(b)), replace(b, round=b.round + 1), Commit(b.seq)],
    "abort": lambda b: [Abort(b.seq, 2**64 - 1, 2**64 - 1, "x" * 1000)],
    "skips ahead": lambda b: [Skip(b.seq + k, 0, 0, "") for k in range(50)],
    "goodbyes": lambda b: [Bye("")] * 20,
    "refuses": lambda b: [Refuse("beta", "0", "1")],
    "second hello": lambda b: [Hello("test", "run", "agent-007", 9)],
    "settle flood": lambda b: [Settle(k) for k in range(2000)],
    "begin flood": lambda b: [replace(b, round=b.round + k) for k in range(500)],
    "status flood": lambda b: [Status(2**64 - 1, 1e308, 1e308)] * 2000,
}


@dataclass
class Hostile:
    """Greets like a neighbour; answers every BEGIN with `attack`; comes back when dropped."""

    transport: Transport
    hello: Hello
    attack: Attack
    reads: bool = True

    async def run(self, dials: list[str]) -> None:
        await self.transport.listen(self.serve)
        async with asyncio.TaskGroup() as group:
            for peer in dials:
                group.create_task(self._keep_dialling(peer))

    async def _keep_dialling(self, peer: str) -> None:
        while True:
            with suppress(TransportError):
                await self.serve(await self.transport.dial(peer, f"memory:{peer}"))
            await asyncio.sleep(0.5)

    async def serve(self, connection: Connection) -> None:
        try:
            await connection.send(self.hello)
            while not self.reads:
                for _ in range(5000):
                    await connection.send(Settle(0))
                await asyncio.sleep(1.0)
            while True:
                message = await connection.receive()
                if isinstance(message, Begin):
                    for answer in self.attack(message):
                        await connection.send(answer)
        except TransportError:
            pass
        await connection.close()


def under_attack(
    hostile_index: int, attack: Attack, *, run: RunSettings = RUN, reads: bool = True, **hello: Any
) -> tuple[list[Agent], list[Outcome], Observed]:
    """Three honest agents of a ring of four do all their rounds beside a hostile one."""
    network, memory, observed = memory_network("ring", 4), MemoryNetwork(0), Observed()
    name = network.names[hostile_index]
    agents = build_agents(network, memory.transport, observed, without=name, run=run)
    greeting = Hello(network.name, network.run, name, 1, agents[0].agreed)
    hostile = Hostile(memory.transport(name), replace(greeting, **hello), attack, reads)
    neighbours = [network.names[(hostile_index + k) % 4] for k in (1, 3)]

    async def main() -> list[Outcome]:
        attacker = asyncio.create_task(hostile.run([peer for peer in neighbours if peer > name]))
        try:
            return await asyncio.gather(*(agent.run() for agent in agents))
        finally:
            attacker.cancel()
            await asyncio.wait([attacker])

    outcomes = virtual_time.run(main())
    for agent, outcome in zip(agents, outcomes, strict=True):
        assert outcome.finished
        assert torch.isfinite(agent.training.x).all()
    return agents, outcomes, observed


@pytest.mark.parametrize("index", [0, 3], ids=["coordinator", "participant"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_agent_survives_a_hostile_neighbour(attack: str, index: int) -> None:
    agents, _, observed = under_attack(index, ATTACKS[attack])
    hostile = f"agent-{index:03d}"
    mixed = sum((Counter(agent.participation.mixed) for agent in agents), Counter())
    del mixed[hostile]
    assert mixed.total() >= 2 * ROUNDS, "two edges between honest agents have two ends each"
    if attack not in ("doubled", "largest degree", "status flood", "settle flood", "silence"):
        told = observed.reasons("missed") + observed.reasons("dropped") + observed.reasons("refused")
        assert told


@pytest.mark.parametrize("next_seq", [2**64 - 1, 2**63 + 1])
def test_a_hello_that_would_use_up_the_numbers(next_seq: int) -> None:
    network, memory, observed = memory_network("ring", 4), MemoryNetwork(0), Observed()
    agents = build_agents(network, memory.transport, observed, without="agent-003", start_timeout_s=5)
    hello = Hello(network.name, network.run, "agent-003", 1, agents[0].agreed, next_seq=next_seq)
    hostile = Hostile(memory.transport("agent-003"), hello, ATTACKS["silence"])

    async def main() -> list[BaseException | Outcome]:
        attacker = asyncio.create_task(hostile.run([]))
        outcomes = await asyncio.gather(*(agent.run() for agent in agents), return_exceptions=True)
        attacker.cancel()
        await asyncio.wait([attacker])
        return outcomes

    first, _, third = virtual_time.run(main())
    assert isinstance(first, TransportError)
    assert isinstance(third, TransportError)
    assert any("next exchange" in reason for reason in observed.reasons("dropped"))


def test_a_peer_that_stops_reading_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It still asks, so it is not silent; what waits for it stays bounded all the same, even if it might ask
    as much as it likes."""
    monkeypatch.setattr("p2pqg.neighbourhood.MESSAGES", (1e6, 1e6))
    monkeypatch.setattr(memory_transport, "WINDOW_BYTES", 1 << 10)
    _, _, observed = under_attack(3, ATTACKS["silence"], reads=False)
    assert "does not read what it is sent" in observed.reasons("disconnected")


# ---- strangers


class Stranger:
    """Someone who dials an agent, says a few things, and hears what it is told."""

    def __init__(self, memory: MemoryNetwork, name: str) -> None:
        self.transport = memory.transport(name)

    async def say(self, peer: str, *messages: Message) -> list[Message]:
        connection = await self.transport.dial(peer, f"memory:{peer}")
        heard: list[Message] = []
        try:
            for message in messages:
                await connection.send(message)
            while True:
                heard.append(await connection.receive())
        except TransportError:
            return heard
        finally:
            await connection.close()


@asynccontextmanager
async def running(agents: list[Agent]) -> AsyncIterator[None]:
    """Agents that train until they are told to stop, and must then have got somewhere."""
    tasks = [asyncio.create_task(agent.run()) for agent in agents]
    for agent in agents:
        await agent.neighbourhood.wait_for_all(10)
    try:
        yield
        started = [agent.training.round for agent in agents]
        await asyncio.sleep(0.2)
        assert all(a.training.round > round for a, round in zip(agents, started, strict=True))
    finally:
        for agent in agents:
            agent.stop()
        await asyncio.gather(*tasks)


LONG = settings("dsgd", rounds=10**6, schedule={"lr": 0.01, "warmup_steps": 0, "milestones": []})
"""A run that does not end by itself; with delays of a millisecond it does not stop the clock either."""

STRANGERS: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    "another network": ("zoe", {"network": "other", "agent": "zoe"}, "network", "test", "other"),
    "another run": ("zoe", {"run": "other", "agent": "zoe"}, "run", "", "other"),
    "an unknown name": ("zoe", {"agent": "zoe"}, "agent", "a neighbour of agent-000", "zoe"),
    "a neighbour's name": (
        "zoe", {"agent": "agent-001"}, "agent", "zoe, as the certificate says", "agent-001"),
    "a neighbour with other settings": (
        "agent-001", {"agent": "agent-001", "settings": {}}, "algorithm", "", "nothing"),
    "an earlier life of a neighbour": (
        "agent-001", {"agent": "agent-001", "incarnation": 0}, "incarnation", "", "0"),
}  # fmt: skip


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers_are_told_why(who: str) -> None:
    """On both sides: the stranger hears REFUSE, the agent reports it, and its neighbours notice nothing."""
    name, changes, item, expected, found = STRANGERS[who]
    network, memory = memory_network("complete", 2), MemoryNetwork(0, memory_transport.Faults((0.001, 0.002)))
    observed = Observed()
    agents = build_agents(network, memory.transport, observed, run=LONG)
    hello = replace(Hello(network.name, network.run, name, 1, agents[0].agreed), **changes)

    async def main() -> list[Message]:
        async with running(agents):
            return await Stranger(memory, name).say("agent-000", hello)

    (refusal,) = virtual_time.run(main())
    assert isinstance(refusal, Refuse)
    assert (refusal.item, refusal.found) == (item, found)
    assert refusal.expected == expected or not expected
    (reason,) = observed.reasons("stranger", "agent-000")
    assert reason == f"{item}: expected {refusal.expected}, found {found}"
    assert not observed.reasons("disconnected")


@pytest.mark.parametrize("first", [[], [Status(0, 1.0)], [Begin(0, 0, 0, 1, 8, "float64", 1.0)]])
def test_a_stranger_that_does_not_greet(first: list[Message], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pqg.neighbourhood.GREETING_TIMEOUT_S", 1.0)
    network, memory = memory_network("complete", 2), MemoryNetwork(0, memory_transport.Faults((0.001, 0.002)))
    observed = Observed()
    agents = build_agents(network, memory.transport, observed, run=LONG)

    async def main() -> list[Message]:
        async with running(agents):
            return await Stranger(memory, "zoe").say("agent-000", *first)

    heard = virtual_time.run(main())
    assert [type(message) for message in heard] == ([Refuse] if first else [])
    assert len(observed.reasons("stranger")) == 1


def test_two_agents_with_different_beta_refuse_each_other() -> None:
    network, memory, observed = memory_network("complete", 2), MemoryNetwork(0), Observed()
    runs = [
        RUN.model_copy(update={"algorithm": RUN.algorithm.model_copy(update={"beta": beta})})
        for beta in (0.9, 0.8)
    ]
    agents = [
        build_agents(network, memory.transport, observed, run=run, without=other, start_timeout_s=5)[0]
        for run, other in zip(runs, ("agent-001", "agent-000"), strict=True)
    ]

    async def main() -> list[BaseException | Outcome]:
        return await asyncio.gather(*(agent.run() for agent in agents), return_exceptions=True)

    errors = virtual_time.run(main())
    for error, agent in zip(errors, agents, strict=True):
        assert isinstance(error, TransportError)
        other = "agent-001" if agent.name == "agent-000" else "agent-000"
        assert other in str(error)
        assert " differs: expected " in str(error)
        assert "0.9" in str(error)
        assert "0.8" in str(error)


# ---- over gRPC, with bytes that are no messages


def raw_frames(hello: Hello) -> dict[str, list[bytes]]:
    good = encode(hello)
    random = np.random.default_rng(0)
    return {
        "random": [random.bytes(200)],
        "empty": [b""],
        "truncated": [good[: len(good) // 2]],
        "oversize": [bytes(MAX_FRAME_BYTES + 1)],
        "largest": [bytes([2]) * MAX_FRAME_BYTES],
        "hello and random": [good, random.bytes(1000)],
        "many": [random.bytes(50) for _ in range(200)],
    }


async def throw(address: str, frames: list[bytes], credentials: Any = None, name: str = "") -> list[bytes]:
    """Send frames with a client of our own, and return what came back before the stream ended."""
    options = [("grpc.ssl_target_name_override", name)] if name else []
    channel = (
        grpc.aio.secure_channel(address, credentials, options=options)
        if credentials
        else grpc.aio.insecure_channel(address)
    )
    heard: list[bytes] = []
    async with channel:
        call = channel.stream_stream(METHOD)()
        try:
            async with asyncio.timeout(5):
                for frame in frames:
                    await call.write(frame)
                await call.done_writing()
                while (answer := await call.read()) is not grpc.aio.EOF:
                    heard.append(answer)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            pass
        call.cancel()
    return heard


def grpc_network(ports: list[int]) -> NetworkFile:
    agents = [
        {"name": name, "address": f"127.0.0.1:{port}"}
        for name, port in zip(agent_names(len(ports)), ports, strict=True)
    ]
    return NetworkFile.model_validate({"name": "test", "topology": "complete", "agents": agents})


def over_grpc(
    scenario: Callable[[list[Agent]], Awaitable[None]],
    free_ports: list[int],
    identities: Mapping[str, Identity] | None = None,
) -> Observed:
    """Two agents train over gRPC while `scenario` happens."""
    network, observed = grpc_network(free_ports), Observed()

    def transport(name: str) -> Transport:
        address = network.addresses[name]
        return GrpcTransport(address, identities[name] if identities else None)

    async def main() -> None:
        agents = build_agents(network, transport, observed, run=LONG, round_timeout_s=30)
        async with running(agents):
            await scenario(agents)

    asyncio.run(main())
    return observed


@pytest.fixture
def free_ports() -> list[int]:
    import socket

    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_an_agent_survives_hostile_clients_over_grpc(free_ports: list[int]) -> None:
    async def attack(agents: list[Agent]) -> None:
        target = agents[0]
        hello = Hello("other", target.gossip.edges["agent-001"].greeting.run, "zoe", 1, target.agreed)
        for name, frames in raw_frames(hello).items():
            heard = [decode(frame) for frame in await throw(target.neighbourhood.address, frames)]
            if name == "hello and random":
                assert heard == [Refuse("network", "test", "other")]
            assert agents[0].gossip.live == ("agent-001",)

    observed = over_grpc(attack, free_ports)
    assert len(observed.reasons("stranger", "agent-000")) == len(raw_frames(Hello("n", "r", "a", 1)))
    assert not observed.reasons("disconnected")


def test_a_name_needs_its_certificate(free_ports: list[int], tmp_path: Path) -> None:
    """With certificates: none, one of another authority, and one of another name do not get in."""
    identities = {n: f.read() for n, f in issue(tmp_path / "ours", ["agent-000", "agent-001", "zoe"]).items()}
    theirs = issue(tmp_path / "theirs", ["agent-001"])["agent-001"].read()

    def credentials(own: Identity | None) -> Any:
        return grpc.ssl_channel_credentials(
            identities["zoe"].authority,
            own.private_key if own else None,
            own.certificate if own else None,
        )

    async def attack(agents: list[Agent]) -> None:
        target = agents[0]
        greeting = agents[1].gossip.edges["agent-000"].greeting
        address, frames = target.neighbourhood.address, [encode(greeting)]
        assert await throw(address, frames) == []
        assert await throw(address, frames, credentials(None), "agent-000") == []
        assert await throw(address, frames, credentials(theirs), "agent-000") == []
        (answer,) = await throw(address, frames, credentials(identities["zoe"]), "agent-000")
        assert decode(answer) == Refuse("agent", "zoe, as the certificate says", "agent-001")
        assert target.gossip.live == ("agent-001",)

    observed = over_grpc(attack, free_ports, identities)
    assert not observed.reasons("disconnected")

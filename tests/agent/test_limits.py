"""A neighbour with a certificate that wants too much: it is slowed or refused, and the others train on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hostile_peers import LONG, Observed, build_agents, running

from p2pqg.agent import Agent
from p2pqg.config import NetworkFile, agent_names
from p2pqg.errors import TransportError
from p2pqg.gossip.allowance import Allowance
from p2pqg.gossip.messages import LEFT, GetState, Hello, Member, Message, Refuse, StateHead, Status
from p2pqg.neighbourhood import MESSAGES, STATES
from p2pqg.security import issue
from p2pqg.transport.grpc import MAX_OF_PEER, GrpcTransport
from p2pqg.wire.codec import encode
from p2pqg_simulator.swarm import free_ports

HOSTILE = "agent-002"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 5)), max_size=50))
def test_nobody_gets_more_than_the_allowance(asked: list[tuple[float, float]]) -> None:
    """Whatever is asked when: what was afforded is at most what there was, and what came in the meantime."""
    allowance, now, afforded = Allowance(4.0, 0.5), 100.0, 0.0
    allowance.affords(0.0, now)
    for pause, amount in asked:
        now += pause
        afforded += amount if allowance.affords(amount, now) else 0.0
        assert afforded <= 4.0 + 0.5 * (now - 100.0) + 1e-9


def test_who_takes_more_waits_until_it_is_paid_for() -> None:
    allowance = Allowance(2.0, 0.5)
    assert [allowance.owed_s(1.0, 0.0) for _ in range(4)] == [0.0, 0.0, 2.0, 4.0]
    assert allowance.owed_s(1.0, 6.0) == 0.0
    allowance.grant(100.0)
    assert not allowance.affords(2.5, 6.0), "it never holds more than the most"


Scenario = Callable[[GrpcTransport, str, Hello], Awaitable[None]]


def beside_a_hostile_neighbour(folder: Path, scenario: Scenario) -> tuple[Observed, list[Agent]]:
    """Two honest agents train over mutual TLS, and a third one of their network does as `scenario` says with
    its transport, the address of the first, and a greeting. They do their rounds all the while."""
    names, observed = agent_names(3), Observed()
    addresses = {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(2), strict=False)}
    members = [{"name": name, "address": address} for name, address in addresses.items()]
    network = NetworkFile.model_validate(
        {"name": "test", "topology": "complete", "membership": "alive", "agents": members}
    )
    files = issue(folder, names)

    def transport(name: str) -> GrpcTransport:
        observe = observed.of(name)
        return GrpcTransport(
            addresses[name], files[name].read(), lambda reason: observe("stranger", {"reason": reason})
        )

    agents = build_agents(network, transport, observed, run=LONG)

    async def trained(rounds: int) -> None:
        before = [agent.training.round for agent in agents]
        async with asyncio.timeout(20):
            while any(a.training.round < r + rounds for a, r in zip(agents, before, strict=True)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def main() -> None:
        async with running(agents):
            await trained(1)
            hostile = GrpcTransport(identity=files[HOSTILE].read())
            hello = Hello(network.name, network.run, HOSTILE, 1, agents[0].agreed, joining=True)
            try:
                await scenario(hostile, addresses[names[0]], hello)
                await trained(20)
            finally:
                await hostile.close()
            for agent in agents:
                assert agent.gossip.edges.keys() - {HOSTILE} <= set(agent.gossip.live)

    asyncio.run(main())
    return observed, agents


def test_a_flood_of_messages_is_read_slowly_and_then_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not read waits at the sender's end, and so does the sender."""
    monkeypatch.setattr("p2pqg.neighbourhood.SLOWED_S", 1.0)
    sent = 0

    async def flood(transport: GrpcTransport, address: str, hello: Hello) -> None:
        nonlocal sent
        connection = await transport.dial("agent-000", address)
        await connection.send(hello)
        with suppress(TransportError):
            async with asyncio.timeout(30):
                while True:
                    await connection.send(Status(0, 1.0))
                    sent += 1
        await connection.close()

    observed, (agent, _) = beside_a_hostile_neighbour(tmp_path, flood)
    reason = "it sends more messages than exchanges take"
    assert observed.reasons("slowed") == [reason]
    assert observed.reasons("dropped") == [reason]
    assert observed.reasons("disconnected", "agent-000") == [reason]
    _, received = agent.neighbourhood.traffic_with(HOSTILE)
    at_once, per_s = MESSAGES
    read = received / len(encode(Status(0, 1.0)))
    assert at_once < read < at_once + 10 * per_s
    assert sent > read


def test_a_peer_opens_so_many_streams_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pqg.transport.grpc.OPENINGS", (32.0, 0.01))
    opened: list[str] = []

    async def open_many(transport: GrpcTransport, address: str, hello: Hello) -> None:
        connections = []
        for _ in range(40):
            try:
                connections.append(await transport.dial("agent-000", address))
            except TransportError as error:
                opened.append(str(error))
        for connection in connections:
            await connection.close()
        for _ in range(40):
            with suppress(TransportError):
                await (await transport.dial("agent-000", address)).close()

    observed, _ = beside_a_hostile_neighbour(tmp_path, open_many)
    assert len(opened) == 40 - MAX_OF_PEER
    assert f"{HOSTILE} has {MAX_OF_PEER} streams already" in opened[0]
    told = observed.reasons("stranger", "agent-000")
    assert f"{HOSTILE} has {MAX_OF_PEER} streams already" in told
    assert f"{HOSTILE} opens more than 32 streams, then 0.01 a second" in told
    assert len(told) < 40, "and not a line for each"


def test_the_state_is_given_so_often_and_no_more(tmp_path: Path) -> None:
    heard: list[Message] = []

    async def ask_again_and_again(transport: GrpcTransport, address: str, hello: Hello) -> None:
        for _ in range(int(STATES[0]) + 2):
            connection = await transport.dial("agent-000", address)
            await connection.send(replace(hello, fetches=True))
            await connection.send(GetState())
            heard.append(await connection.receive())
            await connection.close()

    observed, _ = beside_a_hostile_neighbour(tmp_path, ask_again_and_again)
    assert [type(message) for message in heard] == [StateHead] * 4 + [Refuse] * 2
    assert (
        observed.reasons("slowed") == ["state: expected to be asked at most 4 times, then once in 60 s"] * 2
    )


def test_who_speaks_for_another_is_dropped_and_nobody_is_evicted(tmp_path: Path) -> None:
    """It says that a member has left, with a heartbeat that would outlast all of its own."""

    async def slander(transport: GrpcTransport, address: str, hello: Hello) -> None:
        connection = await transport.dial("agent-000", address)
        await connection.send(hello)
        victim = Member("agent-001", 1 << 62, LEFT)
        members: list[Member] = []
        while "agent-001" not in {member.name for member in members}:
            message = await connection.receive()
            members = list(message.members) if isinstance(message, Status) else []
        (true,) = (member for member in members if member.name == "agent-001")
        proof = {"certificate": true.certificate, "signature": true.signature}
        await connection.send(Status(0, 1.0, members=(replace(victim, **proof),)))
        with suppress(TransportError):
            while True:
                await connection.receive()
        await connection.close()

    observed, agents = beside_a_hostile_neighbour(tmp_path, slander)
    assert observed.reasons("dropped") == ["an announcement of agent-001 that agent-001 did not sign"]
    assert agents[0].gossip.membership.members["agent-001"].heartbeat < 1 << 32

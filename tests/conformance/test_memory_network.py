"""The faulty network does what its faults say, and the same thing every time."""

from __future__ import annotations

import asyncio
import time

import pytest

from p2pqg.errors import TransportError
from p2pqg.gossip.messages import Begin, Bye, Commit, Data, End, Hello, Message, Settle, Status
from p2pqg.transport import virtual_time
from p2pqg.transport.base import Connection
from p2pqg.transport.memory import Cut, Faults, MemoryConnection, MemoryNetwork

A, B, C = "agent-000", "agent-001", "agent-002"
HELLO = Hello("digits", "run", A, 1)


async def pair(network: MemoryNetwork, a: str = A, b: str = B) -> tuple[MemoryConnection, Connection]:
    """A connection that a dialled and its other end; b keeps it open."""
    accepted: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    async def accept(connection: Connection) -> None:
        accepted.set_result(connection)
        await asyncio.Event().wait()

    transport = network.transport(b)
    near = await network.transport(a).dial(b, await transport.listen(accept))
    return near, await accepted


async def drain(connection: Connection) -> list[Message]:
    """Everything until the stream ends."""
    messages = []
    try:
        while True:
            messages.append(await connection.receive())
    except TransportError:
        return messages


async def sent_and_drained(network: MemoryNetwork, messages: list[Message]) -> list[Message]:
    near, far = await pair(network)
    for message in messages:
        await near.send(message)
    await near.close()
    return await drain(far)


def test_time_jumps() -> None:
    async def main() -> tuple[float, list[str]]:
        order: list[str] = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            order.append(name)

        await asyncio.gather(sleeper("year", 3.2e7), sleeper("second", 1.0), sleeper("day", 86_400.0))
        assert await asyncio.to_thread(lambda: 42) == 42
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 1000)
        return asyncio.get_running_loop().time(), order

    start = time.monotonic()
    now, order = virtual_time.run(main())
    assert time.monotonic() - start < 5
    assert now == pytest.approx(3.2e7 + 1000)
    assert order == ["second", "day", "year"]


def test_a_deadlock_is_an_error_and_not_a_hang() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="deadlock"):
        virtual_time.run(main())


def test_edges_are_first_in_first_out_and_reorder_among_each_other() -> None:
    async def main() -> list[tuple[str, int]]:
        network = MemoryNetwork(3, Faults(delay_s=(0.0, 1.0)))
        arrivals: list[tuple[str, int]] = []
        pairs = [await pair(network, A, B), await pair(network, A, C)]

        async def record(name: str, connection: Connection) -> None:
            for _ in range(50):
                message = await connection.receive()
                assert isinstance(message, Commit)
                arrivals.append((name, message.seq))

        readers = [asyncio.create_task(record(near.peer, far)) for near, far in pairs]
        for seq in range(50):
            for near, _ in pairs:
                await near.send(Commit(seq))
        await asyncio.gather(*readers)
        return arrivals

    arrivals = virtual_time.run(main())
    for name in (B, C):
        assert [seq for agent, seq in arrivals if agent == name] == list(range(50))
    assert arrivals != sorted(arrivals, key=lambda arrival: (arrival[1], arrival[0]))


STREAM: list[Message] = [HELLO, *(Commit(seq) for seq in range(2000)), Bye("done")]


def test_faults_happen_as_often_as_asked_and_spare_the_handshake() -> None:
    faults = Faults(delay_s=(0.0, 1.0), drop=0.2, duplicate=0.1)
    arrived = virtual_time.run(sent_and_drained(MemoryNetwork(5, faults), STREAM))
    assert arrived[0] == HELLO
    assert arrived.count(HELLO) == arrived.count(Bye("done")) == 1
    seqs = [message.seq for message in arrived if isinstance(message, Commit)]
    assert len(set(seqs)) == pytest.approx(1600, abs=90)  # 5 standard deviations
    assert len(seqs) - len(set(seqs)) == pytest.approx(160, abs=65)
    first = [seq for k, seq in enumerate(seqs) if seq not in seqs[:k]]
    assert first == sorted(first)
    assert seqs != sorted(seqs), "a duplicate comes late"


def test_a_seed_repeats_itself() -> None:
    def arrived(seed: int) -> list[tuple[float, Message]]:
        async def main() -> list[tuple[float, Message]]:
            near, far = await pair(MemoryNetwork(seed, Faults((0.1, 2.0), drop=0.3, duplicate=0.3)))

            async def sender() -> None:
                for seq in range(100):
                    await near.send(Commit(seq))
                    await asyncio.sleep(0.01)
                await near.close()

            task = asyncio.create_task(sender())
            log = []
            try:
                while True:
                    message = await far.receive()
                    log.append((asyncio.get_running_loop().time(), message))
            except TransportError:
                await task
                return log

        return virtual_time.run(main())

    assert arrived(7) == arrived(7)
    assert arrived(7) != arrived(8)


@pytest.mark.parametrize("count", [1, 2])
def test_a_cut_breaks_the_edge_at_the_named_message(count: int) -> None:
    async def main() -> None:
        network = MemoryNetwork(faults=Faults((0.5, 0.5), cuts=(Cut(A, B, End, count),)))
        near, far = await pair(network)
        for seq in range(count):
            await near.send(Commit(seq))
            await asyncio.sleep(1.0)
            await near.send(End(seq, 0, 0.0))
        with pytest.raises(TransportError, match="cut at End"):
            await near.send(Commit(count))
        with pytest.raises(TransportError, match="cut at End"):
            await far.send(Commit(count))
        ends = [End(seq, 0, 0.0) for seq in range(count - 1)]
        assert [m for m in await drain(far) if isinstance(m, End)] == ends

    virtual_time.run(main())


def test_what_is_on_its_way_is_lost_with_the_edge() -> None:
    async def main() -> None:
        network = MemoryNetwork(faults=Faults((1.0, 1.0)))
        near, far = await pair(network)
        await near.send(Commit(1))
        await asyncio.sleep(1.5)
        await near.send(Commit(2))
        network.lose(B, A)
        assert await drain(far) == [Commit(1)]
        with pytest.raises(TransportError, match="lost"):
            await network.transport(A).dial(B, f"memory:{B}")
        network.restore(A, B)
        await network.transport(A).dial(B, f"memory:{B}")

    virtual_time.run(main())


def test_an_edge_lost_from_the_start_cannot_be_dialled_from_either_side() -> None:
    async def main() -> None:
        network = MemoryNetwork(faults=Faults(lost_edges=frozenset({frozenset({A, B})})))
        for a, b in ((A, B), (B, A)):
            with pytest.raises(TransportError, match="lost"):
                await pair(network, a, b)
        await pair(network, A, C)

    virtual_time.run(main())


def test_a_crash_breaks_connections_and_frees_the_address() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        near, _ = await pair(network)
        network.crash(B)
        with pytest.raises(TransportError, match="crashed"):
            await near.receive()
        with pytest.raises(TransportError, match="nobody listens"):
            await network.transport(A).dial(B, f"memory:{B}")
        await pair(network)

    virtual_time.run(main())


def test_the_hook_decides_about_single_messages() -> None:
    def drop(sender: str, receiver: str, message: Message) -> bool:
        return (sender, receiver) == (A, B) and isinstance(message, Settle)

    messages: list[Message] = [HELLO, Settle(1), Status(1, 0.0), Settle(2)]
    network = MemoryNetwork(drop=drop)
    assert virtual_time.run(sent_and_drained(network, messages)) == [HELLO, Status(1, 0.0)]


def test_exchange_loss_is_symmetric() -> None:
    async def begun(network: MemoryNetwork) -> tuple[set[int], set[int]]:
        near, far = await pair(network)
        for seq in range(100):
            for end in (near, far):
                await end.send(Begin(seq, seq, 0, 2, 8, "float32", 1.0))
                await end.send(Data(seq, 0, bytes(8)))
                await end.send(Commit(seq))
        await asyncio.sleep(1)
        there = await asyncio.gather(*(read(end) for end in (far, near)))
        return there[0], there[1]

    async def read(connection: Connection) -> set[int]:
        seen: dict[type, set[int]] = {Begin: set(), Data: set(), Commit: set()}
        while len(seen[Commit]) < 100:
            message = await connection.receive()
            assert isinstance(message, Begin | Data | Commit)
            seen[type(message)].add(message.seq)
        assert seen[Begin] == seen[Data]
        return seen[Begin]

    there, back = virtual_time.run(begun(MemoryNetwork(1, Faults(exchange_loss=0.3))))
    assert there == back
    assert len(there) == pytest.approx(70, abs=23)

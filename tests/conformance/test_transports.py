"""What every transport promises: one suite over memory, gRPC and gRPC with mutual TLS."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from p2pqg.errors import ConfigError, RemoteProtocolError, TransportError
from p2pqg.gossip.messages import CHUNK_BYTES, Begin, Bye, Commit, Data, End, Hello, Message, Status
from p2pqg.security import Identity, issue
from p2pqg.seeds import generator
from p2pqg.transport import grpc as grpc_transport
from p2pqg.transport import virtual_time
from p2pqg.transport.base import Connection, Transport
from p2pqg.transport.grpc import METHOD, SERVICE, GrpcTransport
from p2pqg.transport.memory import MemoryNetwork
from p2pqg.wire.codec import MAX_FRAME_BYTES, encode
from p2pqg.wire.tensors import payload, snapshot, tensor

A, B = "agent-000", "agent-001"
HELLO = Hello("digits", "run", A, 1, {"beta": "0.9"})
MIB = 1 << 20


@dataclass(frozen=True)
class Harness:
    """One kind of transport: how to make one for an agent, and the loop it runs in."""

    kind: str
    transport: Callable[[str], Transport]
    loop: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run

    @property
    def proves_names(self) -> bool:
        return self.kind != "grpc"

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        """Run a scenario to its end and see that it left no task and no thread behind."""
        threads = set(threading.enumerate())

        async def checked() -> None:
            await scenario
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left

        self.loop(checked())
        gc.collect()  # grpc.aio's poller ends with the last object that uses it
        for thread in set(threading.enumerate()) - threads:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    files = issue(tmp_path_factory.mktemp("certificates"), [A, B])
    return {name: file.read() for name, file in files.items()}


def plain() -> Harness:
    return Harness("grpc", lambda agent: GrpcTransport())


def mutual_tls(identities: dict[str, Identity]) -> Harness:
    return Harness("mtls", lambda agent: GrpcTransport(identity=identities[agent]))


@pytest.fixture(params=["memory", "grpc", "mtls"])
def harness(request: pytest.FixtureRequest, identities: dict[str, Identity]) -> Harness:
    if request.param == "memory":
        return Harness("memory", MemoryNetwork().transport, virtual_time.run)
    return plain() if request.param == "grpc" else mutual_tls(identities)


@dataclass(frozen=True)
class Pair:
    dialler: Transport
    listener: Transport
    address: str
    near: Connection
    far: Connection


async def hold(connection: Connection) -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def connected(harness: Harness) -> AsyncIterator[Pair]:
    """A connection dialled by A and accepted by B; both transports are closed at the end."""
    dialler, listener = harness.transport(A), harness.transport(B)
    accepted: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def accept(connection: Connection) -> None:
        if not accepted.done():
            accepted.set_result(connection)
        await done.wait()

    address = await listener.listen(accept)
    near = await dialler.dial(B, address)
    try:
        yield Pair(dialler, listener, address, near, await accepted)
    finally:
        done.set()
        await dialler.close()
        await listener.close()


def ends(pair: Pair, who: str) -> tuple[Connection, Connection]:
    """(one end, the other end)."""
    return (pair.near, pair.far) if who == "dialler" else (pair.far, pair.near)


both_ends = pytest.mark.parametrize("who", ["dialler", "acceptor"])


def comparable(message: Message) -> object:
    return (message.seq, message.offset, bytes(message.payload)) if isinstance(message, Data) else message


async def drain(connection: Connection, pause_s: float = 0.0) -> list[Message]:
    messages = []
    try:
        while True:
            messages.append(await connection.receive())
            await asyncio.sleep(pause_s)
    except TransportError:
        return messages


async def send_all(connection: Connection, messages: Sequence[Message]) -> None:
    for message in messages:
        await connection.send(message)


def exchange(q: torch.Tensor) -> list[Message]:
    view = payload(q)
    chunks = [Data(1, k, view[k : k + CHUNK_BYTES]) for k in range(0, len(view), CHUNK_BYTES)]
    return [Begin(1, 0, 0, 2, len(view), "float32", 1.0), *chunks, End(1, 0, 0.0)]


async def receive_tensor(connection: Connection) -> torch.Tensor:
    begin = await connection.receive()
    assert isinstance(begin, Begin)
    buffer = bytearray(begin.payload_bytes)
    while isinstance(message := await connection.receive(), Data):
        buffer[message.offset : message.offset + len(message.payload)] = message.payload
    assert isinstance(message, End)
    return tensor(buffer, begin.wire, len(buffer) // 4)


@both_ends
def test_messages_arrive_in_order(harness: Harness, who: str) -> None:
    async def scenario() -> None:
        async with connected(harness) as pair:
            sender, receiver = ends(pair, who)
            messages = [HELLO, *(m for k in range(100) for m in (Commit(k), Data(k, 0, bytes([k] * 50))))]
            sending = asyncio.create_task(send_all(sender, messages))
            arrived = [await receiver.receive() for _ in messages]
            await sending
            assert list(map(comparable, arrived)) == list(map(comparable, messages))
            assert sender.bytes_sent == receiver.bytes_received == sum(len(encode(m)) for m in messages)

    harness.run(scenario())


@both_ends
def test_a_large_tensor_crosses_unchanged(harness: Harness, who: str) -> None:
    q = snapshot(torch.randn(5 * MIB // 4, generator=generator(1, "test")), "float32", generator(1, "round"))

    async def scenario() -> None:
        async with connected(harness) as pair:
            sender, receiver = ends(pair, who)
            sending = asyncio.create_task(send_all(sender, exchange(q)))
            assert torch.equal(await receive_tensor(receiver), q)
            await sending
            assert sender.bytes_sent <= 1.001 * q.nbytes

    harness.run(scenario())


def test_both_directions_at_once(harness: Harness) -> None:
    tensors = [torch.randn(8 * MIB // 4, generator=generator(k, "test")) for k in range(2)]

    async def scenario() -> None:
        async with connected(harness) as pair:
            _, _, at_far, at_near = await asyncio.gather(
                send_all(pair.near, exchange(tensors[0])),
                send_all(pair.far, exchange(tensors[1])),
                receive_tensor(pair.far),
                receive_tensor(pair.near),
            )
            assert torch.equal(at_far, tensors[0])
            assert torch.equal(at_near, tensors[1])

    harness.run(scenario())


@both_ends
def test_a_receiver_that_does_not_read_stops_the_sender(harness: Harness, who: str) -> None:
    async def scenario() -> None:
        async with connected(harness) as pair:
            sender, receiver = ends(pair, who)
            messages = [Data(1, k * CHUNK_BYTES, bytes(CHUNK_BYTES)) for k in range(64)]
            sending = asyncio.create_task(send_all(sender, messages))
            await asyncio.sleep(0.5)
            assert not sending.done()
            assert sender.bytes_sent < 24 * MIB
            for message in messages:
                arrived = await receiver.receive()
                assert isinstance(arrived, Data)
                assert arrived.offset == message.offset
            await sending

    harness.run(scenario())


@both_ends
def test_what_was_sent_before_closing_arrives(harness: Harness, who: str) -> None:
    async def scenario() -> None:
        async with connected(harness) as pair:
            closer, other = ends(pair, who)
            draining = asyncio.create_task(drain(other, pause_s=0.01))
            messages = [*(Data(1, k * CHUNK_BYTES, bytes(CHUNK_BYTES)) for k in range(16)), Bye("done")]
            await send_all(closer, messages)
            await closer.close()
            await closer.close()
            assert list(map(comparable, await draining)) == list(map(comparable, messages))
            for connection in (closer, other):
                with pytest.raises(TransportError):
                    await connection.receive()
                with pytest.raises(TransportError):
                    await connection.send(Commit(1))

    harness.run(scenario())


@both_ends
def test_closing_wakes_a_receiver_at_either_end(harness: Harness, who: str) -> None:
    async def scenario() -> None:
        async with connected(harness) as pair:
            closer, other = ends(pair, who)
            waiting = [asyncio.create_task(drain(end)) for end in (closer, other)]
            await asyncio.sleep(0.05)
            await closer.close()
            async with asyncio.timeout(3):
                assert await asyncio.gather(*waiting) == [[], []]

    harness.run(scenario())


@both_ends
def test_a_cancelled_receive_loses_nothing(harness: Harness, who: str) -> None:
    async def scenario() -> None:
        async with connected(harness) as pair:
            sender, receiver = ends(pair, who)
            for seq in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(receiver.receive(), 0.02)
                await sender.send(Commit(seq))
                assert await receiver.receive() == Commit(seq)

    harness.run(scenario())


@both_ends
def test_a_cancelled_send_leaves_the_stream_whole(harness: Harness, who: str) -> None:
    async def scenario() -> None:
        async with connected(harness) as pair:
            sender, receiver = ends(pair, who)
            full = asyncio.create_task(
                send_all(sender, [Data(1, k * CHUNK_BYTES, bytes(CHUNK_BYTES)) for k in range(64)])
            )
            await asyncio.sleep(0.3)
            full.cancel()
            last = asyncio.create_task(sender.send(Bye("enough")))
            offsets = []
            while isinstance(message := await receiver.receive(), Data):
                offsets.append(message.offset)
            assert message == Bye("enough")
            assert offsets == [k * CHUNK_BYTES for k in range(len(offsets))]
            assert 0 < len(offsets) < 64
            await last

    harness.run(scenario())


def test_several_tasks_may_send(harness: Harness) -> None:
    async def scenario() -> None:
        async with connected(harness) as pair:
            senders = [
                asyncio.create_task(send_all(pair.near, [Status(k, float(j)) for j in range(30)]))
                for k in range(4)
            ]
            arrived = [await pair.far.receive() for _ in range(120)]
            await asyncio.gather(*senders)
            for k in range(4):
                own = [m.sent_s for m in arrived if isinstance(m, Status) and m.round == k]
                assert own == [float(j) for j in range(30)]

    harness.run(scenario())


def test_nobody_there(harness: Harness) -> None:
    async def scenario() -> None:
        transport, other = harness.transport(A), harness.transport(B)
        address = await other.listen(hold)
        await other.close()
        with pytest.raises(TransportError, match=B):
            await transport.dial(B, address)
        await transport.close()

    harness.run(scenario())


def test_a_taken_address_is_the_operators_error(harness: Harness, identities: dict[str, Identity]) -> None:
    async def scenario() -> None:
        async with connected(harness) as pair:
            again = (
                harness.transport(B)
                if harness.kind == "memory"
                else GrpcTransport(pair.address, identity=identities[B] if harness.kind == "mtls" else None)
            )
            with pytest.raises(ConfigError, match="taken") as caught:
                await again.listen(hold)
            assert pair.address in str(caught.value)
            await again.close()
            await pair.near.send(Commit(1))
            assert await pair.far.receive() == Commit(1)

    harness.run(scenario())


def test_names_are_proved(harness: Harness) -> None:
    async def scenario() -> None:
        async with connected(harness) as pair:
            names = (pair.near.peer_identity, pair.far.peer_identity)
            assert names == ((B, A) if harness.proves_names else (None, None))
            if harness.proves_names:
                with pytest.raises(TransportError):
                    await pair.dialler.dial("agent-007", pair.address)

    harness.run(scenario())


@pytest.mark.parametrize("fault", [RemoteProtocolError, TransportError])
def test_a_peers_fault_ends_its_connection_only(harness: Harness, fault: type[Exception]) -> None:
    async def scenario() -> None:
        dialler, listener = harness.transport(A), harness.transport(B)

        async def accept(connection: Connection) -> None:
            if await connection.receive() == Commit(0):
                raise fault("said so")
            await connection.send(Bye("fine"))

        address = await listener.listen(accept)
        for seq, answer in [(0, []), (1, [Bye("fine")])]:
            connection = await dialler.dial(B, address)
            await connection.send(Commit(seq))
            assert await drain(connection) == answer
            await connection.close()
        await dialler.close()
        await listener.close()

    harness.run(scenario())


def test_closing_a_transport_ends_its_connections(harness: Harness) -> None:
    async def scenario() -> None:
        async with connected(harness) as pair:
            other = asyncio.create_task(drain(pair.near))
            await pair.far.send(Commit(1))
            closing = asyncio.create_task(pair.listener.close())
            assert await other == [Commit(1)]
            with pytest.raises(TransportError):
                await pair.far.send(Commit(2))
            closing.cancel()  # `hold` never returns; connected() closes again

    harness.run(scenario())


# Only over gRPC: what somebody else's program may send.


@asynccontextmanager
async def listening(harness: Harness) -> AsyncIterator[tuple[str, list[Exception]]]:
    """B serves; the address and what was raised while receiving. At the end B must still serve."""
    listener = harness.transport(B)
    raised: list[Exception] = []

    async def accept(connection: Connection) -> None:
        try:
            while True:
                message = await connection.receive()
                await connection.send(message)
        except (RemoteProtocolError, TransportError) as error:
            raised.append(error)
            raise

    address = await listener.listen(accept)
    try:
        yield address, raised
        dialler = harness.transport(A)
        connection = await dialler.dial(B, address)
        await connection.send(Commit(42))
        assert await connection.receive() == Commit(42)
        await dialler.close()
    finally:
        await listener.close()


FRAMES = [
    b"",
    b"\x00",
    bytes(range(256)),
    b"\x01\xff\xff\xff",
    b"\x02" * 40,
    encode(HELLO)[:-3],
    b"\x03" + encode(HELLO)[1:],
    b"\x01" + bytes(CHUNK_BYTES),
    bytes(MAX_FRAME_BYTES),
]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"{len(frame)}-bytes")
def test_bytes_that_are_no_message(frame: bytes) -> None:
    harness = plain()

    async def scenario() -> None:
        async with listening(harness) as (address, raised):
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.stream_stream(METHOD)()
                await call.write(frame)
                assert await call.read() is grpc.aio.EOF
            assert [type(error) for error in raised] == [RemoteProtocolError]

    harness.run(scenario())


def test_a_frame_beyond_the_limit_is_refused_by_the_listener() -> None:
    harness = plain()

    async def scenario() -> None:
        async with listening(harness) as (address, raised):
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.stream_stream(METHOD)()
                await call.write(bytes(MAX_FRAME_BYTES + 1))
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call.read()
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert len(raised) == 1

    harness.run(scenario())


def test_a_frame_beyond_the_limit_is_refused_by_the_dialler() -> None:
    async def exchange(_: Any, context: Any) -> None:
        await context.send_initial_metadata(((grpc_transport.WELCOME, "1"),))
        await context.write(bytes(MAX_FRAME_BYTES + 1))

    async def scenario() -> None:
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(exchange)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Exchange": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        transport = GrpcTransport()
        connection = await transport.dial(B, f"127.0.0.1:{port}")
        with pytest.raises(RemoteProtocolError, match=str(MAX_FRAME_BYTES)):
            await connection.receive()
        with pytest.raises(TransportError):
            await connection.receive()
        await transport.close()
        await server.stop(0)

    plain().run(scenario())


@both_ends
def test_an_end_that_vanishes_is_a_transport_error(who: str) -> None:
    async def scenario() -> None:
        async with connected(plain()) as pair:
            gone, other = ends(pair, who)
            waiting = asyncio.create_task(drain(other))
            await asyncio.sleep(0.02)
            assert isinstance(gone, grpc_transport.GrpcConnection)
            await gone.abandon()
            async with asyncio.timeout(3):
                assert await waiting == []
                with pytest.raises(TransportError):
                    await other.send(Commit(1))

    plain().run(scenario())


def test_an_address_without_gossip() -> None:
    async def scenario() -> None:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        transport = GrpcTransport()
        with pytest.raises(TransportError, match="unimplemented"):
            await transport.dial(B, f"127.0.0.1:{port}")
        await transport.close()
        await server.stop(0)

    plain().run(scenario())


def test_too_many_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_transport, "MAX_INBOUND", 2)

    async def scenario() -> None:
        async with connected(plain()) as pair:
            await pair.dialler.dial(B, pair.address)
            with pytest.raises(TransportError, match="already 2"):
                await pair.dialler.dial(B, pair.address)
            await pair.near.send(Commit(1))
            assert await pair.far.receive() == Commit(1)

    plain().run(scenario())


def test_health() -> None:
    async def scenario() -> None:
        async with listening(plain()) as (address, _), grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    plain().run(scenario())


def strangers(folder: Path, identities: dict[str, Identity]) -> dict[str, Transport]:
    foreign = issue(folder, [A])[A].read()
    return {
        "another authority": GrpcTransport(identity=foreign),
        "another authority, trusts ours": GrpcTransport(
            identity=Identity(A, foreign.certificate, foreign.private_key, identities[A].authority)
        ),
        "plaintext": GrpcTransport(),
    }


@pytest.mark.parametrize("who", ["another authority", "another authority, trusts ours", "plaintext"])
def test_a_stranger_does_not_get_in(who: str, identities: dict[str, Identity], tmp_path: Path) -> None:
    harness = mutual_tls(identities)

    async def scenario() -> None:
        async with listening(harness) as (address, raised):
            stranger = strangers(tmp_path, identities)[who]
            with pytest.raises(TransportError):
                await stranger.dial(B, address)
            await stranger.close()
            assert raised == []

    harness.run(scenario())


@pytest.mark.parametrize("bind", ["nowhere", "127.0.0.1:x", "203.0.113.1:0", "no such host:0"])
def test_an_address_that_cannot_be_bound(bind: str) -> None:
    async def scenario() -> None:
        transport = GrpcTransport(bind)
        with pytest.raises(ConfigError, match=bind):
            await transport.listen(hold)
        await transport.close()

    plain().run(scenario())

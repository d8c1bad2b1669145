"""What gossip costs, each claim as a ratio to a baseline measured in the same run.

    python benchmarks/gossip.py [transport] [exchange] [overhead] [placement]

Repetitions of all sides are interleaved, so that a busy machine hits each of them, and figures are medians.
A section is a function that returns claims; add it to `SECTIONS`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import platform
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Protocol

import placement
import rounds
import torch
from claims import Claim
from grpc import aio, method_handlers_generic_handler, stream_stream_rpc_method_handler

from p2pqg import allocator
from p2pqg.gossip.messages import CHUNK_BYTES, Data
from p2pqg.security import TlsFiles, issue
from p2pqg.transport.base import Connection
from p2pqg.transport.grpc import CLIENT_OPTIONS, SERVER_OPTIONS, GrpcTransport
from p2pqg.wire.tensors import payload

# Transport: a tensor from one process into a preallocated tensor of another.

TENSOR_BYTES = 64 << 20
REPETITIONS = 9
LEFT, RIGHT = "agent-000", "agent-001"


class End(Protocol):
    """One of two processes with a connection between them; holds a tensor to send and one to fill."""

    def send(self) -> None: ...
    def receive(self) -> None: ...
    def both(self) -> None: ...


class Tensors:
    def __init__(self) -> None:
        self.outgoing = payload(torch.randn(TENSOR_BYTES // 4))
        self.incoming = payload(torch.zeros(TENSOR_BYTES // 4))


class Sockets(Tensors):
    """Blocking sockets: one for each direction (the same one twice for plain TCP)."""

    def __init__(self, outgoing: socket.socket, incoming: socket.socket) -> None:
        super().__init__()
        self.to_peer, self.from_peer = outgoing, incoming

    def send(self) -> None:
        for k in range(0, TENSOR_BYTES, CHUNK_BYTES):
            self.to_peer.sendall(self.outgoing[k : k + CHUNK_BYTES])

    def receive(self) -> None:
        received = 0
        while received < TENSOR_BYTES:
            received += self.from_peer.recv_into(self.incoming[received : received + CHUNK_BYTES])

    def both(self) -> None:
        sender = threading.Thread(target=self.send)
        sender.start()
        self.receive()
        sender.join()


class Coroutines(Tensors):
    """An end whose `_send` and `_receive` run in an event loop."""

    _send: Callable[[], Coroutine[Any, Any, None]]
    _receive: Callable[[], Coroutine[Any, Any, None]]

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop

    async def _both(self) -> None:
        await asyncio.gather(self._send(), self._receive())

    def send(self) -> None:
        self.loop.run_until_complete(self._send())

    def receive(self) -> None:
        self.loop.run_until_complete(self._receive())

    def both(self) -> None:
        self.loop.run_until_complete(self._both())


class Gossip(Coroutines):
    """Our gRPC connection, DATA messages of one chunk."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        super().__init__(loop)
        self.connection = connection

    async def _send(self) -> None:
        for k in range(0, TENSOR_BYTES, CHUNK_BYTES):
            await self.connection.send(Data(1, k, self.outgoing[k : k + CHUNK_BYTES]))

    async def _receive(self) -> None:
        received = 0
        while received < TENSOR_BYTES:
            message = await self.connection.receive()
            assert isinstance(message, Data)
            self.incoming[message.offset : message.offset + len(message.payload)] = message.payload
            received += len(message.payload)


class Alone(Coroutines):
    """gRPC's own stream of byte strings, with none of our code: what the library leaves to gain."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: Any, owner: Any) -> None:
        super().__init__(loop)
        self.stream, self.owner = stream, owner  # a server or channel closes with its last reference
        self.chunks = [bytes(self.outgoing[k : k + CHUNK_BYTES]) for k in range(0, TENSOR_BYTES, CHUNK_BYTES)]

    async def _send(self) -> None:
        for chunk in self.chunks:
            await self.stream.write(chunk)

    async def _receive(self) -> None:
        received = 0
        while received < TENSOR_BYTES:
            chunk = await self.stream.read()
            self.incoming[received : received + len(chunk)] = chunk
            received += len(chunk)


def tcp(name: str, control: Pipe, files: dict[str, TlsFiles] | None) -> End:
    """A raw socket; with files two of Python's TLS sockets, which cannot do both directions at once."""
    count = 1 if files is None else 2
    if name == RIGHT:
        with socket.create_server(("127.0.0.1", 0)) as server:
            control.send(server.getsockname())
            sockets = [wrapped(server.accept()[0], name, files) for _ in range(count)]
    else:
        address = control.recv()
        sockets = [wrapped(socket.create_connection(address), name, files) for _ in range(count)]
    for each in sockets:
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Sockets(*sockets, *sockets) if count == 1 else Sockets(*sockets[:: 1 if name == LEFT else -1])


def wrapped(plain: socket.socket, name: str, files: dict[str, TlsFiles] | None) -> socket.socket:
    if files is None:
        return plain
    own, server = files[name], name == RIGHT
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(own.certificate, own.private_key)
    context.load_verify_locations(own.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context.wrap_socket(plain, server_side=server, server_hostname=None if server else RIGHT)


def grpc(name: str, control: Pipe, files: dict[str, TlsFiles] | None) -> End:
    loop = asyncio.new_event_loop()
    transport = GrpcTransport(identity=None if files is None else files[name].read())

    async def listen() -> Connection:
        accepted: asyncio.Future[Connection] = loop.create_future()

        async def accept(connection: Connection) -> None:
            accepted.set_result(connection)
            await asyncio.Event().wait()

        control.send(await transport.listen(accept))
        return await accepted

    connecting = listen() if name == RIGHT else transport.dial(RIGHT, control.recv())
    return Gossip(loop, loop.run_until_complete(connecting))


def grpc_alone(name: str, control: Pipe, files: dict[str, TlsFiles] | None) -> End:
    loop = asyncio.new_event_loop()

    async def listen() -> Any:
        accepted: asyncio.Future[Any] = loop.create_future()

        async def accept(_: Any, stream: Any) -> None:
            accepted.set_result(stream)
            await asyncio.Event().wait()

        server = aio.server(options=list(SERVER_OPTIONS.items()))
        handler = stream_stream_rpc_method_handler(accept)
        server.add_generic_rpc_handlers([method_handlers_generic_handler("bench", {"Chunks": handler})])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        control.send(f"127.0.0.1:{port}")
        return await accepted, server

    async def dial() -> Any:
        channel = aio.insecure_channel(control.recv(), options=list(CLIENT_OPTIONS.items()))
        stream = channel.stream_stream("/bench/Chunks")()
        await stream.wait_for_connection()
        return stream, channel

    return Alone(loop, *loop.run_until_complete(listen() if name == RIGHT else dial()))


@dataclass(frozen=True)
class Kind:
    connect: Callable[[str, Pipe, dict[str, TlsFiles] | None], End]
    tls: bool = False
    pinned: bool = True


KINDS = {
    "raw socket": Kind(tcp),
    "Python TLS": Kind(tcp, tls=True),
    "gRPC": Kind(grpc),
    "gRPC alone": Kind(grpc_alone),
    "gRPC, allocator as it comes": Kind(grpc, pinned=False),
    "gRPC, mutual TLS": Kind(grpc, tls=True),
}


def run_end(kind: str, name: str, control: Pipe, files: dict[str, TlsFiles]) -> None:
    """One process: connect, then do what the controller says until it says no more."""
    torch.set_num_threads(1)
    if KINDS[kind].pinned:
        allocator.pin()
    end = KINDS[kind].connect(name, control, files if KINDS[kind].tls else None)
    control.send("ready")
    while command := control.recv():
        start_s = time.process_time()
        getattr(end, command)()
        control.send(time.process_time() - start_s)
    os._exit(0)  # nothing to save; sockets close with the process


@dataclass(frozen=True)
class Sample:
    """One transfer. `speed` in GB a second and direction; `cpu` in seconds of both processes for each GB
    carried, which others on the machine disturb less."""

    speed: float
    cpu: float


@dataclass(frozen=True)
class Link:
    left: Pipe
    right: Pipe

    def transfer(self, left: str, right: str) -> Sample:
        start_s = time.perf_counter()
        self.right.send(right)
        self.left.send(left)
        cpu_s = self.left.recv() + self.right.recv()
        gigabytes = TENSOR_BYTES / 1e9
        carried = gigabytes * (2 if left == right else 1)
        return Sample(gigabytes / (time.perf_counter() - start_s), cpu_s / carried)


@contextmanager
def linked(kind: str, files: dict[str, TlsFiles]) -> Iterator[Link]:
    context: Any = multiprocessing.get_context("forkserver")
    processes, pipes = [], {}
    for name in (RIGHT, LEFT):
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=run_end, args=(kind, name, theirs, files)))
        processes[-1].start()
    pipes[LEFT].send(pipes[RIGHT].recv())
    for pipe in pipes.values():
        assert pipe.recv() == "ready"
    try:
        yield Link(pipes[LEFT], pipes[RIGHT])
    finally:
        for pipe in pipes.values():
            pipe.send(None)
        for process in processes:
            process.join()


def transport() -> list[Claim]:
    """Bytes from one process to another on this host, against sockets."""
    one_way: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
    at_once: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        files = issue(Path(folder), [LEFT, RIGHT])
        with ExitStack() as stack:
            links = {kind: stack.enter_context(linked(kind, files)) for kind in KINDS}
            for repetition in range(REPETITIONS + 1):
                for kind, link in links.items():
                    way = link.transfer("send", "receive")
                    both = link.transfer("both", "both")
                    if repetition:  # the first warms up
                        one_way[kind].append(way)
                        at_once[kind].append(both)

    def claim(
        samples: dict[str, list[Sample]], kind: str, baseline: str, how: str, target: float | None
    ) -> Claim:
        ours, theirs = samples[kind], samples[baseline]
        ratios = [a.speed / b.speed for a, b in zip(ours, theirs, strict=True)]
        speeds = " / ".join(f"{statistics.median(a.speed for a in side):.2f}" for side in (ours, theirs))
        cpus = " / ".join(f"{statistics.median(a.cpu for a in side):.2f}" for side in (ours, theirs))
        return Claim(
            f"{kind} / {baseline}, {how}",
            f"{speeds} GB/s, {cpus} CPU-s/GB",
            statistics.median(ratios),
            target,
        )

    return [
        claim(one_way, "gRPC", "raw socket", "one way", 0.6),
        claim(at_once, "gRPC", "raw socket", "both ways at once", 0.4),
        claim(one_way, "gRPC alone", "raw socket", "one way", None),
        claim(at_once, "gRPC alone", "raw socket", "both ways at once", None),
        claim(one_way, "gRPC, mutual TLS", "Python TLS", "one way", 0.8),
        claim(at_once, "gRPC, mutual TLS", "Python TLS", "both at once", 0.8),
        claim(one_way, "gRPC", "gRPC, allocator as it comes", "one way", None),
        claim(at_once, "gRPC", "gRPC, allocator as it comes", "both", None),
    ]


SECTIONS: dict[str, Callable[[], list[Claim]]] = {
    "transport": transport,
    "exchange": rounds.exchange,
    "overhead": rounds.overhead,
    "placement": placement.placement,
}


def main() -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "p2pqg.transport.grpc"])
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{'claim':<52} {'measured':<38} {'ratio':>6}  target")
    for name in sys.argv[1:] or SECTIONS:
        for claim in SECTIONS[name]():
            print(claim, flush=True)


if __name__ == "__main__":
    main()

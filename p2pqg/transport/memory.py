"""A network inside one event loop, with faults.

Frames go through the codec, so what cannot travel is found here too. Faults are data and every draw comes
from the seed and the edge, so a run can be repeated bit for bit; under `virtual_time` delays cost nothing.
Each direction of an edge is first in, first out; only a duplicate may arrive late and out of order.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from p2pqg.errors import ConfigError, TransportError
from p2pqg.gossip.membership import Seal, Unsealed
from p2pqg.gossip.messages import Begin, Bye, Data, End, Hello, Message, Refuse
from p2pqg.seeds import numpy_generator
from p2pqg.transport.base import Accept, finish, serve
from p2pqg.wire.codec import decode, encode

WINDOW_BYTES = 8 << 20
"""A sender waits while this much is on its way or unread."""

Drop = Callable[[str, str, Message], bool]
"""`drop(sender, receiver, message)`: whether the message is lost."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection breaks as `sender` sends its `count`-th message of a type to `receiver`. That and
    all that is on its way, in either direction, are lost; the agents may dial again."""

    sender: str
    receiver: str
    message: type[Message]
    count: int = 1


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, and how often.

    HELLO, REFUSE and BYE are delayed but neither lost nor doubled: a stream without them is a broken
    stream, which `cuts` expresses.
    """

    delay_s: tuple[float, float] = (0.0, 0.0)
    """Each message (and each dial) takes a time uniform in this range."""

    drop: float = 0.0
    """Probability that a message is lost."""

    duplicate: float = 0.0
    """Probability that a message arrives twice, the second time after one more delay."""

    exchange_loss: float = 0.0
    """Probability that exchange `seq` of an edge loses BEGIN, DATA and END in both directions."""

    lost_edges: frozenset[frozenset[str]] = frozenset()
    """Pairs of agents that cannot reach each other at all."""

    bytes_per_s: float = math.inf
    """What one direction of a connection carries."""

    cuts: tuple[Cut, ...] = ()


class MemoryNetwork:
    """Hands out the transports of agents that can reach each other.

    `drop` is asked about every message that `faults` let pass, whatever its type.
    """

    def __init__(self, seed: int = 0, faults: Faults | None = None, drop: Drop | None = None) -> None:
        self._seed = seed
        self._faults = faults or Faults()
        self._drop = drop
        self._lost = set(self._faults.lost_edges)
        self._draws: dict[tuple[str, str], np.random.Generator] = {}
        self._sent: Counter[tuple[str, str, type[Message]]] = Counter()
        self._listening: dict[str, MemoryTransport] = {}
        self._connections: list[MemoryConnection] = []

    def transport(self, agent: str) -> MemoryTransport:
        """The transport of the agent of this name; its address is ``memory:NAME``."""
        return MemoryTransport(self, agent)

    def lose(self, a: str, b: str) -> None:
        """Break the connections between two agents, who cannot dial each other until `restore`."""
        self._lost.add(frozenset((a, b)))
        for connection in self._of(a):
            if connection.peer == b:
                connection.lose("the edge is lost")

    def restore(self, a: str, b: str) -> None:
        """Undo `lose`."""
        self._lost.discard(frozenset((a, b)))

    def crash(self, agent: str) -> None:
        """An agent dies without a word: its connections break and nobody listens at its address."""
        self._listening.pop(agent, None)
        for connection in self._of(agent):
            connection.lose(f"{agent} crashed")

    def vanish(self, agent: str) -> None:
        """An agent's machine loses power: nobody is told, its peers send into the void."""
        self._listening.pop(agent, None)
        for connection in self._of(agent):
            connection.vanish()

    def _of(self, agent: str) -> list[MemoryConnection]:
        return [connection for connection in self._connections if connection.agent == agent]

    def _draw(self, sender: str, receiver: str) -> tuple[float, float, float, float]:
        """Four numbers for the next message of a direction: delay, second delay, drop, duplicate."""
        edge = sender, receiver
        if edge not in self._draws:
            self._draws[edge] = numpy_generator(self._seed, "network", "|".join(edge))
        u = self._draws[edge].random(4)
        least, most = self._faults.delay_s
        return least + (most - least) * u[0], least + (most - least) * u[1], u[2], u[3]

    def _is_cut(self, sender: str, receiver: str, message: Message) -> bool:
        kind = type(message)
        self._sent[sender, receiver, kind] += 1
        return Cut(sender, receiver, kind, self._sent[sender, receiver, kind]) in self._faults.cuts

    def _loses_exchange(self, sender: str, receiver: str, message: Message) -> bool:
        if not self._faults.exchange_loss or not isinstance(message, Begin | Data | End):
            return False
        edge = "|".join(sorted((sender, receiver)))
        u = numpy_generator(self._seed, "exchange-loss", edge, message.seq).random()
        return bool(u < self._faults.exchange_loss)

    def _delays(self, sender: str, receiver: str, message: Message) -> tuple[float, ...]:
        """When the copies of a message arrive, in seconds from now; none if it is lost."""
        delay, second, drop, duplicate = self._draw(sender, receiver)
        copies: tuple[float, ...] = (delay,)
        if not isinstance(message, Hello | Refuse | Bye):
            if drop < self._faults.drop or self._loses_exchange(sender, receiver, message):
                return ()
            if duplicate < self._faults.duplicate:
                copies = (delay, delay + second)
        if self._drop is not None and self._drop(sender, receiver, message):
            return ()
        return copies

    async def _connect(self, dialler: MemoryTransport, peer: str, address: str) -> MemoryConnection:
        agent = dialler.agent
        await asyncio.sleep(self._draw(agent, peer)[0])
        if frozenset((agent, peer)) in self._lost:
            raise TransportError(f"{peer} cannot be reached at {address}: the edge is lost")
        found = address.removeprefix("memory:")
        if found not in self._listening:
            raise TransportError(f"{peer} cannot be reached at {address}: nobody listens")
        if found != peer:
            raise TransportError(f"{address} proves the name {found}, expected {peer}")
        there, back = (_Pipe(self._faults.bytes_per_s) for _ in range(2))
        listener = self._listening[peer]
        near = MemoryConnection(self, dialler, peer, outgoing=there, incoming=back)
        far = MemoryConnection(self, listener, agent, outgoing=back, incoming=there)
        self._connections += [near, far]
        listener._serve(far)
        return near


class MemoryConnection:
    """One end of a stream. The network vouches for the peer's name."""

    def __init__(
        self,
        network: MemoryNetwork,
        transport: MemoryTransport,
        peer: str,
        outgoing: _Pipe,
        incoming: _Pipe,
    ) -> None:
        self.transport, self.agent, self.peer = transport, transport.agent, peer
        self.bytes_sent = self.bytes_received = 0
        self._network = network
        self._outgoing, self._incoming = outgoing, incoming
        self._sending = asyncio.Lock()
        self._closed = False

    @property
    def peer_identity(self) -> str | None:
        return self.peer

    async def send(self, message: Message) -> None:
        frame = encode(message)
        async with self._sending:
            await self._outgoing.wait_for_room()
        if self._closed or self._outgoing.ended is not None:
            raise TransportError(self._outgoing.ended or "the connection is closed")
        self.bytes_sent += len(frame)
        if self._network._is_cut(self.agent, self.peer, message):
            self.lose(f"cut at {type(message).__name__}")
            return
        for copy, delay_s in enumerate(self._network._delays(self.agent, self.peer, message)):
            self._outgoing.push(frame, delay_s, late=copy > 0)

    async def receive(self) -> Message:
        if self._closed:
            raise TransportError("the connection is closed")
        frame = await self._incoming.pull()
        self.bytes_received += len(frame)
        return decode(frame)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._network._connections.remove(self)
        self._incoming.end("the connection is closed")
        self._outgoing.push(None, 0.0)

    def lose(self, reason: str) -> None:
        """Break the connection: what is on its way in either direction is lost."""
        self._outgoing.end(reason)
        self._incoming.end(reason)

    def vanish(self) -> None:
        """End the connection here only: the peer hears nothing more, and not that it will not."""
        self._closed = True
        self._network._connections.remove(self)
        self._incoming.end("the connection is closed")


class MemoryTransport:
    """One agent's door to a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, agent: str) -> None:
        self._network = network
        self.agent = agent
        self._accept: Accept | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def listen(self, accept: Accept) -> str:
        if self.agent in self._network._listening:
            raise ConfigError(f"address memory:{self.agent} is taken: expected one transport for each agent")
        self._accept = accept
        self._network._listening[self.agent] = self
        return f"memory:{self.agent}"

    def seal(self, network: str, run: str) -> Seal:
        return Unsealed()

    async def dial(self, peer: str, address: str) -> MemoryConnection:
        return await self._network._connect(self, peer, address)

    async def close(self) -> None:
        if self._network._listening.get(self.agent) is self:
            del self._network._listening[self.agent]
        for connection in [c for c in self._network._connections if c.transport is self]:
            await connection.close()
        await finish(self._serving)

    def _serve(self, connection: MemoryConnection) -> None:
        assert self._accept is not None
        task = asyncio.create_task(serve(self._accept, connection))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)


class _Pipe:
    """One direction of a connection: what is on its way, what has arrived, and how it ended."""

    def __init__(self, bytes_per_s: float) -> None:
        self.ended: str | None = None
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0
        self._on_its_way: list[tuple[float, int, bytes | None]] = []
        self._arrived: deque[bytes] = deque()
        self._unread_bytes = 0
        self._count = 0
        self._last_s = 0.0
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    def push(self, frame: bytes | None, delay_s: float, *, late: bool = False) -> None:
        """Send a frame, behind all others unless it may be `late`; None ends the stream behind everything."""
        loop = asyncio.get_running_loop()
        self._free_s = max(self._free_s, loop.time()) + len(frame or b"") / self._bytes_per_s
        arrival_s = max(self._free_s + delay_s, self._last_s)
        if frame is None:
            arrival_s = max([arrival_s, *(entry[0] for entry in self._on_its_way)])
        elif not late:
            self._last_s = arrival_s
        self._unread_bytes += len(frame or b"")
        heapq.heappush(self._on_its_way, (arrival_s, self._count, frame))
        self._count += 1
        loop.call_at(arrival_s, self._arrive)

    def end(self, reason: str) -> None:
        """Lose what is on its way; what has arrived can still be read."""
        self._on_its_way.clear()
        self.ended = self.ended or reason
        self._readable.set()
        self._writable.set()

    async def wait_for_room(self) -> None:
        while self._unread_bytes >= WINDOW_BYTES and self.ended is None:
            self._writable.clear()
            await self._writable.wait()

    async def pull(self) -> bytes:
        while not self._arrived:
            if self.ended is not None:
                raise TransportError(self.ended)
            self._readable.clear()
            await self._readable.wait()
        frame = self._arrived.popleft()
        self._unread_bytes -= len(frame)
        self._writable.set()
        return frame

    def _arrive(self) -> None:
        if not self._on_its_way:  # lost in the meantime
            return
        frame = heapq.heappop(self._on_its_way)[2]
        if frame is None:
            self.end("the peer closed the connection")
        else:
            self._arrived.append(frame)
            self._readable.set()

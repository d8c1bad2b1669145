"""An agent's connections: the only place where the gossip machine meets sockets and the clock.

It dials and accepts, feeds what arrives to the machine, and carries out what the machine says. It decides
one thing, who dials: the smaller name of two neighbours.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pqg import seeds
from p2pqg.errors import IncompatiblePeer, RemoteProtocolError, TransportError
from p2pqg.gossip.edge import Position, check_greeting
from p2pqg.gossip.machine import Drop, Exchanged, Gossip, Send
from p2pqg.gossip.messages import Data, Hello, Message, Refuse
from p2pqg.transport.base import Connection, Transport

TICK_S = 0.1
GREETING_TIMEOUT_S = 10.0
FAREWELL_S = 2.0
"""How long to wait for the neighbours' goodbyes."""
RETRY_S = (0.1, 5.0)
"""First and longest pause between two attempts to reach a neighbour."""
RECONNECT_S = 10.0
"""A neighbour that was lost longer ago is not waited for to settle what is open with it."""
OUTBOX_LIMIT = 4096
"""Messages waiting for a peer that does not read, beyond which it is dropped."""
OUTBOX_PAYLOADS = 2
"""Payloads waiting likewise: that of an exchange that was given up, and that of the next."""

Observe = Callable[[str, Mapping[str, Any]], None]
"""`observe(event, details)`: something worth a line in the log."""


@dataclass(slots=True, eq=False)
class _Link:
    """A connection in use, and what waits to be sent over it."""

    connection: Connection
    outbox: asyncio.Queue[Message | None] = field(default_factory=asyncio.Queue)
    waiting_bytes: int = 0
    broken: str = ""
    lifetime: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))

    def put(self, message: Message) -> None:
        """Send `message` behind all others."""
        self.outbox.put_nowait(message)
        self.waiting_bytes += _payload_bytes(message)

    def end(self, reason: str) -> None:
        """End the connection behind what is queued, a REFUSE perhaps; a peer that does not read it is not
        waited for."""
        self.broken = self.broken or reason
        self.outbox.put_nowait(None)
        self.lifetime.reschedule(asyncio.get_running_loop().time() + FAREWELL_S)


class Neighbourhood:
    """Connections to the neighbours of `greeting.agent`; keep `run` running for as long as it lives."""

    def __init__(
        self,
        gossip: Gossip,
        greeting: Hello,
        transport: Transport,
        addresses: Mapping[str, str],
        observe: Observe,
    ) -> None:
        self.gossip = gossip
        self.address = ""
        self.refusals: dict[str, str] = {}
        self._greeting, self._observe = greeting, observe
        self._transport, self._addresses = transport, addresses
        self._links: dict[str, _Link] = {}
        self._changed = asyncio.Event()
        self._lost_s: dict[str, float] = {}
        self._exchanged: asyncio.Future[Exchanged] | None = None
        self._bytes = dict.fromkeys(gossip.edges, (0, 0))  # of connections that are gone
        self._leaving = self._closing = False
        self._outbox_bytes = OUTBOX_PAYLOADS * gossip.rules.vectors * gossip.rules.vector_bytes

    # ---- the agent's side

    async def listen(self) -> str:
        """Start accepting; returns the address others can dial."""
        self.address = await self._transport.listen(self._accept)
        return self.address

    async def run(self) -> None:
        """Dial, and let time pass, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tick())
            for peer in self.gossip.edges:
                if self._greeting.agent < peer:
                    group.create_task(self._keep_dialling(peer))

    async def wait_for_all(self, timeout_s: float) -> None:
        """Until every neighbour is connected and welcome, or this agent leaves. Raises `TransportError`
        naming who is missing, and why as far as that is known."""
        complete = await self._until(
            lambda: self._leaving or len(self.gossip.live) == len(self.gossip.edges), timeout_s
        )
        if not complete:
            missing = [peer for peer in self.gossip.edges if peer not in self.gossip.live]
            reasons = ", ".join(f"{p} ({self.refusals.get(p, 'no answer')})" for p in missing)
            raise TransportError(f"neighbours missing after {timeout_s:g} s: {reasons}") from None

    async def exchange(
        self,
        position: Position,
        payload: memoryview,
        *,
        checksum: int,
        norm: float,
        incoming: tuple[str, ...],
        outgoing: tuple[str, ...],
        note: float = 0.0,
    ) -> Exchanged:
        """One exchange with the neighbours of this round; ends when every edge has committed or missed."""
        self._exchanged = asyncio.get_running_loop().create_future()
        self.gossip.begin(
            position,
            payload,
            checksum=checksum,
            norm=norm,
            incoming=incoming,
            outgoing=outgoing,
            now=self._now(),
            note=note,
        )
        self._carry_out()
        return await self._exchanged

    def leave(self) -> None:
        """Close the round in progress as soon as promises allow; wait for nobody new."""
        self._leaving = True
        self.gossip.leave()
        self._carry_out()

    async def settle(self, timeout_s: float) -> None:
        """Wait, not for ever, until no verdict is outstanding, here or at a neighbour out of reach."""

        def gone(peer: str) -> bool:
            return peer not in self._links and self._now() - self._lost_s.get(peer, 0.0) > RECONNECT_S

        await self._until(lambda: all(gone(peer) for peer in self.gossip.unsettled), timeout_s)

    async def close(self, reason: str) -> None:
        """Say goodbye, settle what neighbours still doubt, deliver what is queued, and hang up."""
        self._closing = True
        self.gossip.goodbye(reason)
        self._carry_out()
        await self._until(lambda: all(self.gossip.edges[peer].parted for peer in self._links), FAREWELL_S)
        for link in self._links.values():
            link.outbox.put_nowait(None)
        await self._until(lambda: not self._links, GREETING_TIMEOUT_S)
        await self._transport.close()

    @property
    def traffic(self) -> tuple[int, int]:
        """Encoded bytes sent and received since the start, over all connections."""
        sent, received = zip(*map(self.traffic_with, self._bytes), strict=True) if self._bytes else ((), ())
        return sum(sent), sum(received)

    def traffic_with(self, peer: str) -> tuple[int, int]:
        """The same over the connections with one neighbour."""
        sent, received = self._bytes[peer]
        if (link := self._links.get(peer)) is not None:
            return sent + link.connection.bytes_sent, received + link.connection.bytes_received
        return sent, received

    # ---- connections

    async def _keep_dialling(self, peer: str) -> None:
        jitter = seeds.numpy_generator(0, "backoff", f"{self._greeting.agent}>{peer}")
        pause = RETRY_S[0]
        while not self._closing:
            try:
                connection = await self._transport.dial(peer, self._addresses[peer])
            except TransportError as error:
                self.refusals[peer] = str(error)
            else:
                if await self._serve(peer, connection):
                    pause = RETRY_S[0]
            if peer in self.refusals and self.gossip.edges[peer].refused:
                pause = RETRY_S[1]
            await asyncio.sleep(pause * (0.5 + jitter.random()))
            pause = min(2 * pause, RETRY_S[1])

    async def _accept(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                hello = await connection.receive()
        except (TimeoutError, TransportError, RemoteProtocolError) as error:
            self._observe("stranger", {"reason": str(error) or "no HELLO in time"})
            await connection.close()
            return
        reason = self._unwelcome(hello, connection)
        if isinstance(hello, Hello) and reason is None:
            await self._serve(hello.agent, connection, hello)
            return
        if reason is not None:
            self._observe("stranger", {"reason": f"{reason.item}: expected {reason.expected}, "
                                                 f"found {reason.found}"})  # fmt: skip
            with contextlib.suppress(TransportError):
                await connection.send(reason)
        await connection.close()

    def _unwelcome(self, hello: Message, connection: Connection) -> Refuse | None:
        """Why the peer that opened a connection with `hello` is nobody we know, or None. A neighbour with
        other settings is refused by the machine, not here, unless it would replace one that is welcome."""
        if not isinstance(hello, Hello):
            return Refuse("first message", "HELLO", type(hello).__name__)
        if connection.peer_identity not in (None, hello.agent):
            return Refuse("agent", f"{connection.peer_identity}, as the certificate says", hello.agent)
        edge = self.gossip.edges.get(hello.agent)
        if edge is not None and not edge.live:
            return None
        try:
            if edge is not None:
                edge.check(hello)
                return None
            check_greeting(self._greeting, hello, hello.agent)
        except IncompatiblePeer as error:
            return Refuse(error.item, error.expected, error.found)
        return Refuse("agent", f"a neighbour of {self._greeting.agent}", hello.agent)

    async def _serve(self, peer: str, connection: Connection, hello: Hello | None = None) -> bool:
        """Use a connection until it ends; returns whether the peer was welcome."""
        if (old := self._links.get(peer)) is not None:
            old.end("replaced by a newer connection")
            self._hang_up(peer, old)
        link = self._links[peer] = _Link(connection)
        writer = asyncio.create_task(self._write(link))
        welcome = False
        try:
            async with link.lifetime:
                self.gossip.connected(peer)
                if hello is not None:
                    self.gossip.received(peer, hello, self._now())
                self._carry_out()
                while not link.broken:
                    message = await connection.receive()
                    if self._links.get(peer) is not link:
                        break
                    self.gossip.received(peer, message, self._now())
                    self._carry_out()
                    if not welcome and peer in self.gossip.live:
                        welcome = True
                        self._observe("connected", {"peer": peer, "proven": connection.peer_identity == peer})
        except (TimeoutError, TransportError, RemoteProtocolError) as error:
            link.broken = link.broken or str(error)
        finally:
            if self._links.get(peer) is link:
                self._hang_up(peer, link)
            link.outbox.put_nowait(None)
            try:
                await asyncio.wait([writer], timeout=FAREWELL_S)
                writer.cancel()
                await connection.close()
            finally:
                sent, received = self._bytes[peer]
                self._bytes[peer] = sent + connection.bytes_sent, received + connection.bytes_received
        return welcome

    async def _write(self, link: _Link) -> None:
        """Hand messages to the wire one by one; its back pressure is the only queue control there is."""
        try:
            while (message := await link.outbox.get()) is not None:
                await link.connection.send(message)
                link.waiting_bytes -= _payload_bytes(message)
        except TransportError:
            return  # what the peer sent before it left can still be read
        await link.connection.close()

    def _hang_up(self, peer: str, link: _Link) -> None:
        del self._links[peer]
        self._lost_s[peer] = self._now()
        edge = self.gossip.edges[peer]
        was_live, had_left = edge.live, edge.left
        self.gossip.disconnected(peer, link.broken)
        if (was_live or had_left) and not self._closing:
            self._observe("disconnected" if was_live else "left", {"peer": peer, "reason": link.broken})
        self._carry_out()

    # ---- the machine

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for the machine to reach a state, and say whether it did in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        return condition()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.gossip.tick(self._now())
            self._carry_out()

    def _carry_out(self) -> None:
        """Do what the machine says."""
        for output in self.gossip.outputs():
            match output:
                case Send(peer, message):
                    link = self._links.get(peer)
                    if link is not None and not link.broken:
                        link.put(message)
                        if link.outbox.qsize() > OUTBOX_LIMIT or link.waiting_bytes > self._outbox_bytes:
                            link.end("does not read what it is sent")
                case Drop(peer, reason, refused):
                    if refused:
                        self.refusals[peer] = reason
                    self._observe("refused" if refused else "dropped", {"peer": peer, "reason": reason})
                    link = self._links.get(peer)
                    if link is not None:
                        link.end(reason)
                case Exchanged():
                    if self._exchanged is not None and not self._exchanged.done():
                        self._exchanged.set_result(output)
        self._changed.set()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _payload_bytes(message: Message) -> int:
    return len(message.payload) if isinstance(message, Data) else 0

"""An agent's connections: the only place where the gossip machine meets sockets and the clock.

It dials and accepts, feeds what arrives to the machine, and carries out what the machine says. It decides
one thing, who dials: the smaller name of two neighbours, unless only the other one can be dialled. Where
agents come and go it also tries, one after the other, those it has heard of and cannot see: that is how an
agent finds a network, and how two sides of a partition find each other again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from p2pqg import seeds
from p2pqg.errors import IncompatiblePeer, RemoteProtocolError, TransportError
from p2pqg.gossip.allowance import Allowance
from p2pqg.gossip.edge import Position, check_greeting
from p2pqg.gossip.graphs import Graphs
from p2pqg.gossip.machine import Drop, Exchanged, Gossip, Send
from p2pqg.gossip.membership import MOST_MEMBERS, Membership
from p2pqg.gossip.messages import CHUNK_BYTES, Data, GetState, Hello, Message, Refuse, StateHead
from p2pqg.gossip.secure import SecureGossip
from p2pqg.gossip.snapshot import Download, Snapshot
from p2pqg.gossip.sums import Mask, Summed
from p2pqg.supervision import Background
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
SECOND_S = 0.8
"""Where both may dial, how long the larger name leaves it to the smaller one."""
CONTACT_S = 5.0
"""How long somebody who is not seen is tried before the next one is."""
GRACE_S = 2.0
"""How long an agent that finds its network running waits for the rest of its neighbours."""
DONATIONS = 2
"""Agents that are sent our state at once."""
STATES = (4.0, 1 / 60)
"""Our state, so many times for each peer, and so many more a second; a part that is asked for again counts
as that part."""
MESSAGES = (1024.0, 20.0)
"""Messages that are read from a peer at once, and a second, besides those of the exchanges."""
MESSAGES_OF_EXCHANGE = 8
"""More than an exchange takes besides its payload."""
SLOWED_S = 10.0
"""How long a connection is read slowly, as the peer sends more than that, before it is dropped."""
KEPT_S = 30.0
"""How long a state stays for a receiver whose connection broke."""
STALLED_S = 10.0
"""A donor that sends nothing for so long is given up."""
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
    dialled: bool = False
    since_s: float = 0.0
    wanted_s: float = 0.0
    slowed_s: float = 0.0
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
    """Connections to the neighbours of `greeting.agent`; stay in `background` for as long as it lives."""

    def __init__(
        self,
        gossip: Gossip,
        greeting: Hello,
        transport: Transport,
        graphs: Graphs,
        observe: Observe,
        snapshot: Callable[[], Awaitable[Snapshot]],
        mask: Callable[[Mask], Awaitable[tuple[memoryview, int, int]]],
        *,
        living: bool = False,
    ) -> None:
        self.gossip, self.graphs = gossip, graphs
        self.background = Background(greeting.agent)
        self.address = ""
        self.refusals: dict[str, str] = {}
        self._greeting, self._observe = greeting, observe
        self._transport, self._snapshot, self._mask, self._living = transport, snapshot, mask, living
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._sought: set[str] = set()
        self._contact, self._contacted_s = "", -math.inf
        self._messages: dict[str, Allowance] = {}
        self._states: dict[str, Allowance] = {}
        self._kept: Snapshot | None = None
        self._donating = 0
        self._links: dict[str, _Link] = {}
        self._changed = asyncio.Event()
        self._lost_s: dict[str, float] = {}
        self._exchanged: asyncio.Future[Exchanged | Summed] | None = None
        self._bytes: dict[str, tuple[int, int]] = {}  # of connections that are gone
        self._leaving = self._closing = False
        payload_bytes = gossip.rules.vectors * gossip.rules.vector_bytes
        self._outbox_bytes = OUTBOX_PAYLOADS * payload_bytes
        self._messages_of_exchange = MESSAGES_OF_EXCHANGE + math.ceil(payload_bytes / CHUNK_BYTES)

    # ---- the agent's side

    async def listen(self) -> str:
        """Start accepting; returns the address others can dial."""
        self.address = await self._transport.listen(self._accept)
        return self.address

    @property
    def membership(self) -> Membership:
        """Who is there."""
        return self.gossip.membership

    def start(self) -> None:
        """Dial, and let time pass."""
        self._seek()
        self.background.start("clock", self._tick(), lasting=True)

    async def wait_for_all(self, timeout_s: float, expected: int = 1, at_least: int = 1) -> None:
        """Until every neighbour is connected and welcome, of a network of `expected` agents; or the network
        turns out to run already, and a little while has passed; or this agent leaves. Where agents come and
        go, `at_least` so many will do when the time is over. Raises `TransportError` naming who is missing,
        and why as far as that is known."""

        def complete() -> bool:
            everybody = 1 + len(self.membership.here) >= expected
            return self._leaving or (everybody and set(self.graphs.sought) <= set(self.gossip.live))

        def behind() -> bool:
            return any(round > self.membership.own.round for round in self.gossip.rounds.values())

        def refused() -> bool:
            return not self.gossip.live and any(edge.refused for edge in self.gossip.edges.values())

        if await self._until(lambda: complete() or behind() or refused(), timeout_s):
            if not await self._until(lambda: not refused(), GRACE_S):
                timeout_s = GRACE_S
            else:
                await self._until(complete, GRACE_S)
                return
        elif self._living and 1 + len(self.membership.here) >= at_least:
            return
        sought = self.graphs.sought or self.membership.absent
        missing = [peer for peer in sought if peer not in self.gossip.live]
        reasons = ", ".join(f"{p} ({self.refusals.get(p, 'no answer')})" for p in missing)
        raise TransportError(f"neighbours missing after {timeout_s:g} s: {reasons or 'nobody was found'}")

    async def fetch_state(
        self, like: Mapping[str, Tensor], timeout_s: float
    ) -> tuple[dict[str, Tensor], int]:
        """The state of a neighbour that takes part, shaped as `like`, and the round it belongs to. The most
        advanced is asked first; a donor that breaks off is asked for the rest once, then the next one. Raises
        `TransportError` if nobody gives it."""
        download, reasons, pause = Download(like), dict[str, str](), RETRY_S[0]
        end_s = self._now() + timeout_s
        while self._now() < end_s and not self._leaving:
            rounds = self.gossip.rounds
            for donor in sorted(rounds, key=lambda peer: (-rounds[peer], peer)):
                for _ in range(2):
                    try:
                        await self._download(donor, download)
                        tensors = download.tensors()
                    except (TimeoutError, TransportError, RemoteProtocolError) as error:
                        reasons[donor] = str(error) or f"nothing came for {STALLED_S:g} s"
                        self._observe("not fetched", {"peer": donor, "reason": reasons[donor]})
                    else:
                        assert download.head is not None
                        head = download.head
                        self._observe("fetched", {"peer": donor, "round": head.round, "bytes": head.size})
                        return tensors, head.round
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_S[1])
        told = "; ".join(f"{donor}: {reason}" for donor, reason in reasons.items())
        raise TransportError(f"no neighbour gives its state: {told or 'none takes part'}")

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
    ) -> Exchanged | Summed:
        """One exchange with the neighbours of this round; ends when every edge has committed or missed."""
        self._exchanged = asyncio.get_running_loop().create_future()
        for peer in {*incoming, *outgoing}:
            _allowance(self._messages, peer, MESSAGES).grant(self._messages_of_exchange)
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
        each = [self.traffic_with(peer) for peer in self._bytes.keys() | self._links.keys()]
        return sum(sent for sent, _ in each), sum(received for _, received in each)

    def traffic_with(self, peer: str) -> tuple[int, int]:
        """The same over the connections with one neighbour."""
        sent, received = self._bytes.get(peer, (0, 0))
        if (link := self._links.get(peer)) is not None:
            return sent + link.connection.bytes_sent, received + link.connection.bytes_received
        return sent, received

    def _count(self, peer: str, connection: Connection) -> None:
        sent, received = self._bytes.get(peer, (0, 0))
        self._bytes[peer] = sent + connection.bytes_sent, received + connection.bytes_received

    # ---- state transfer

    async def _download(self, donor: str, download: Download) -> None:
        address = self.membership.address(donor)
        if not address:
            raise TransportError("it only dials out, so it cannot be asked")
        connection = await self._transport.dial(donor, address)
        try:
            await connection.send(replace(self._greeting, fetches=True))
            head = download.head
            await connection.send(GetState(head.snapshot if head else 0, download.received))
            while not download.complete:
                async with asyncio.timeout(STALLED_S):
                    message = await connection.receive()
                match message:
                    case StateHead():
                        download.begin(message)
                    case Data():
                        download.append(message)
                    case Refuse(item, expected, found):
                        raise IncompatiblePeer(item, found, expected)
                    case _:
                        raise RemoteProtocolError(f"expected a state, found {type(message).__name__}")
        finally:
            await connection.close()
            self._count(donor, connection)

    async def _donate(self, peer: str, connection: Connection) -> None:
        """Send our state to an agent that joins, at its pace: it has a connection of its own."""
        async with asyncio.timeout(GREETING_TIMEOUT_S):
            asked = await connection.receive()
        if not isinstance(asked, GetState):
            raise RemoteProtocolError(f"expected GETSTATE, found {type(asked).__name__}")
        if isinstance(self.gossip, SecureGossip):
            await connection.send(Refuse("state", "an agent without secure sums", "one with them"))
            return
        if self.gossip.joining or self._donating >= DONATIONS:
            found = "joining, too" if self.gossip.joining else "busy"
            await connection.send(Refuse("state", "an agent that takes part and is free", found))
            return
        kept = self._kept if self._kept and self._kept.checksum == asked.snapshot else None
        share = 1 - min(1.0, asked.offset / max(len(kept.payload), 1)) if kept else 1.0
        if not _allowance(self._states, peer, STATES).affords(share, self._now()):
            expected = f"at most {STATES[0]:g} times, then once in {1 / STATES[1]:g} s"
            self._observe("slowed", {"peer": peer, "reason": f"state: expected to be asked {expected}"})
            await connection.send(Refuse("state", f"to be asked {expected}", "more"))
            return
        given = kept or await self._snapshot()
        offset = min(asked.offset, len(given.payload)) if given.checksum == asked.snapshot else 0
        self._kept = given
        self._donating += 1
        try:
            await connection.send(StateHead(given.round, len(given.payload), given.checksum, offset))
            for start in range(offset, len(given.payload), CHUNK_BYTES):
                await connection.send(Data(0, start, given.payload[start : start + CHUNK_BYTES]))
            self._observe("donated", {"peer": peer, "round": given.round, "bytes": len(given.payload)})
        finally:
            self._donating -= 1
            asyncio.get_running_loop().call_later(KEPT_S, self._forget, given)

    def _forget(self, snapshot: Snapshot) -> None:
        if self._kept is snapshot:
            self._kept = None

    # ---- connections

    def _seek(self) -> None:
        """Dial whom we want and can, and let go of whom we dialled and want no longer."""
        if self._closing:
            return
        sought = {*self.graphs.sought, *self._contacts()}
        for peer in sought:
            self.gossip.meet(peer)
            if self._dials(peer) and peer not in self._dialling:
                task = self.background.start(f"dial {peer}", self._keep_dialling(peer))
                self._dialling[peer] = task
                task.add_done_callback(lambda _, peer=peer: self._dialling.pop(peer, None))  # type: ignore[misc]
        self._sought = sought
        for peer, link in self._links.items():
            edge = self.gossip.edges[peer]
            if peer in sought or edge.unsettled or edge.committing:
                link.wanted_s = self._now()
            elif link.dialled and self._now() - link.wanted_s > CONTACT_S:
                link.end("no longer a neighbour")

    def _contacts(self) -> tuple[str, ...]:
        """Whom to try besides the neighbours: everybody until somebody answers, then one after the other."""
        if not self._living:
            return ()
        absent = self.membership.absent
        if not self.gossip.live:
            return absent
        if self._now() - self._contacted_s >= CONTACT_S:
            later = [peer for peer in absent if peer > self._contact]
            self._contact, self._contacted_s = next(iter(later or absent), ""), self._now()
        return (self._contact,) if self._contact else ()

    def _dials(self, peer: str) -> bool:
        """Whether to dial `peer`. An agent that starts does so in any case, because nobody knows yet that it
        is there again."""
        if not self.membership.address(peer):
            return False
        own = self.membership.own
        heard = peer in self.membership.members and self.membership.members[peer].heartbeat > 0
        known_there = not self._living or (heard and peer in self.graphs.sought and bool(self.gossip.live))
        return own.name < peer or not own.address or not known_there or self.gossip.joining

    async def _keep_dialling(self, peer: str) -> None:
        jitter = seeds.numpy_generator(0, "backoff", f"{self._greeting.agent}>{peer}")
        pause = RETRY_S[0]
        if self._greeting.agent > peer and self.membership.own.address:
            await asyncio.sleep(SECOND_S * (1 + jitter.random()))
        while not self._closing and peer in self._sought and self._dials(peer):
            if peer in self._links:  # the other end was quicker
                await asyncio.sleep(RETRY_S[1] * jitter.random())
                continue
            try:
                connection = await self._transport.dial(peer, self.membership.address(peer))
            except TransportError as error:
                if self.gossip.edges[peer].refused is None:
                    self.refusals[peer] = str(error)
            else:
                if await self._serve(peer, connection, dialled=True):
                    pause = RETRY_S[0]
            if peer in self.refusals and self.gossip.edges[peer].refused:
                pause = RETRY_S[1]
            await asyncio.sleep(pause * (0.5 + jitter.random()))
            pause = min(2 * pause, RETRY_S[1])

    async def _accept(self, connection: Connection) -> None:
        with self.background.guard(f"serve {connection.peer_identity or 'a peer'}"):
            await self._admit(connection)

    async def _admit(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                hello = await connection.receive()
        except (TimeoutError, TransportError, RemoteProtocolError) as error:
            self._observe("stranger", {"reason": str(error) or "no HELLO in time"})
            await connection.close()
            return
        reason = self._unwelcome(hello, connection)
        if isinstance(hello, Hello) and reason is None:
            if hello.fetches:
                await self._donate(hello.agent, connection)
            elif not self._dialled_both(hello):
                self.gossip.meet(hello.agent)
                await self._serve(hello.agent, connection, hello)
            await connection.close()
            return
        if reason is not None:
            self._observe("stranger", {"reason": f"{reason.item}: expected {reason.expected}, "
                                                 f"found {reason.found}"})  # fmt: skip
            with contextlib.suppress(TransportError):
                await connection.send(reason)
        await connection.close()

    def _dialled_both(self, hello: Hello) -> bool:
        """Whether both ends dialled at the same time: then the connection that the smaller name dialled is
        the one to keep."""
        link = self._links.get(hello.agent)
        if link is None or not link.dialled or self._greeting.agent > hello.agent:
            return False
        known = self.gossip.edges[hello.agent].incarnation
        return known in (None, hello.incarnation) and self._now() - link.since_s < GRACE_S

    def _unwelcome(self, hello: Message, connection: Connection) -> Refuse | None:
        """Why the peer that opened a connection with `hello` is nobody we know, or None. A neighbour with
        other settings is refused by the machine, not here, unless it would replace one that is welcome."""
        if not isinstance(hello, Hello):
            return Refuse("first message", "HELLO", type(hello).__name__)
        if connection.peer_identity not in (None, hello.agent):
            return Refuse("agent", f"{connection.peer_identity}, as the certificate says", hello.agent)
        edge = self.gossip.edges.get(hello.agent)
        if edge is not None and not edge.live and not hello.fetches:
            return None
        try:
            if edge is not None and not hello.fetches:
                edge.check(hello)
                return None
            check_greeting(self._greeting, hello, hello.agent)
        except IncompatiblePeer as error:
            return Refuse(error.item, error.expected, error.found)
        room = len(self.gossip.edges) < MOST_MEMBERS
        if self.membership.admits(hello.agent) and ((self._living and room) or hello.fetches):
            return None
        return Refuse("agent", f"a neighbour of {self._greeting.agent}", hello.agent)

    async def _serve(
        self, peer: str, connection: Connection, hello: Hello | None = None, *, dialled: bool = False
    ) -> bool:
        """Use a connection until it ends; returns whether the peer was welcome."""
        if (old := self._links.get(peer)) is not None:
            old.end("replaced by a newer connection")
            self._hang_up(peer, old)
        now = self._now()
        link = self._links[peer] = _Link(connection, dialled=dialled, since_s=now, wanted_s=now)
        writer = self.background.start(f"write to {peer}", self._write(peer, link))
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
                    await self._slow_down(peer, link)
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
                self.background.stop(writer)
                await connection.close()
            finally:
                self._count(peer, connection)
        return welcome

    async def _slow_down(self, peer: str, link: _Link) -> None:
        """Wait as long as it takes for what the peer has sent to be what it may send; meanwhile its messages
        pile up at its end. Raises `RemoteProtocolError` if it does not come to its senses."""
        owed_s = _allowance(self._messages, peer, MESSAGES).owed_s(1, self._now())
        if not owed_s:
            return
        reason = "it sends more messages than exchanges take"
        if not link.slowed_s:
            self._observe("slowed", {"peer": peer, "reason": reason})
        if (slowed_s := link.slowed_s + owed_s) > SLOWED_S:
            self._observe("dropped", {"peer": peer, "reason": reason})
            raise RemoteProtocolError(reason)
        link.slowed_s = slowed_s
        await asyncio.sleep(owed_s)

    async def _write(self, peer: str, link: _Link) -> None:
        """Hand messages to the wire one by one; its back pressure is the only queue control there is."""
        try:
            while (message := await link.outbox.get()) is not None:
                await link.connection.send(message)
                if size := _payload_bytes(message):
                    link.waiting_bytes -= size
                    self.gossip.edges[peer].payload_left(self._now())
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
            self._seek()

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
                case Mask():
                    self.background.start(f"a mask for {output.peer}", self._make_mask(output))
                case Exchanged() | Summed():
                    if self._exchanged is not None and not self._exchanged.done():
                        self._exchanged.set_result(output)
        self._changed.set()

    async def _make_mask(self, job: Mask) -> None:
        assert isinstance(self.gossip, SecureGossip)
        payload, checksum, check = await self._mask(job)
        self.gossip.masked(job, payload, checksum=checksum, check=check, now=self._now())
        self._carry_out()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _allowance(of: dict[str, Allowance], peer: str, rate: tuple[float, float]) -> Allowance:
    """That of `peer`; beyond a number of names that nobody can have earned, one for all others."""
    return of.setdefault(peer if peer in of or len(of) < MOST_MEMBERS else "", Allowance(*rate))


def _payload_bytes(message: Message) -> int:
    return len(message.payload) if isinstance(message, Data) else 0

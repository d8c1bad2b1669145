"""One end of one edge: offers, promises, one verdict for each exchange.

    offer        BEGIN, DATA..., END leave as soon as the agent begins a round; the peer's may be here already
    participant  holds the peer's whole payload  -> PREPARED: it can apply a commit at any later time
    coordinator  holds the peer's whole payload and its PREPARED -> COMMIT, or ABORT at its deadline
    in doubt     a participant whose deadline passes after PREPARED goes on without the edge, asks SETTLE,
                 and applies the same difference late if the answer is a commit

On an undirected edge the coordinator is the smaller name; on a directed one it is the receiver, which
needs no promise of the sender. `seq` numbers the exchanges of the edge and moves on with each verdict.

Positions (round, exchange) must match. An end that is behind finds the peer's BEGIN with a later position,
or hears in STATUS that the peer is further, closes its own rounds without this edge and meets the peer there.
An end that is ahead waits there, or says SKIP at once if it has no offer open: in a graph that changes, its
next may be rounds away.

Nobody is waited for in vain twice. A peer that let a deadline pass, or that has not taken part since it
started, is not waited for until it is seen to be as far; a peer that is late again must then be early.
A deadline counts from the last chunk that came or left, so it bends to the link, and a chunk a day does not
hold a round up: no exchange may take longer than it would at `SLOWEST_BYTES_S`.

Two generals cannot be solved, but with an additive update they need not be: if the coordinator commits, the
participant already holds all it needs, so the sum over agents is exact again once the verdict arrives.
Because a participant in doubt begins nothing, it can only ever ask about the last commit: that one is kept
until the peer shows that it knows, and every other exchange was aborted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from p2pqg.errors import IncompatiblePeer, LocalProtocolError, RemoteProtocolError
from p2pqg.gossip.membership import Membership
from p2pqg.gossip.messages import (
    CHUNK_BYTES,
    Abort,
    Begin,
    Bye,
    Commit,
    Data,
    End,
    Hello,
    Member,
    Message,
    Prepared,
    Refuse,
    Settle,
    Settled,
    Skip,
    Status,
)
from p2pqg.gossip.payload import Incoming
from p2pqg.topology import metropolis_hastings

Position = tuple[int, int]
"""Round, and exchange within the round."""

STATUS_INTERVAL_S = 1.0
SILENCE = 3.0
"""Status messages missing in a row before a peer may count as silent."""
STRIKES = 5
"""Broken exchanges after which a peer is dropped."""
PATIENCE = 0.5
"""A participant waits this share of the timeout longer than a coordinator, so that the verdict can still
arrive; a peer that says nothing at all for as long is not waited for again before it speaks."""
SLOWEST_BYTES_S = 1 << 16
"""A link slower than that is not waited for."""
UNLUCKY = 3
"""Deadlines in a row that a peer may let pass which says that it is in the same round."""
STALE, AHEAD = "stale", "the peer is ahead"
"""Reasons for which an end that is behind does without the edge."""
NOT_WAITED_FOR = JOINING, LATE = "joining", "late"
"""Reasons for which an end that keeps step does."""
MAX_SEQ = 1 << 63
"""No peer may move an edge's numbers so far that they could run out (they travel in 64 bits)."""


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """What this end brings into one exchange: its own snapshot, whether it sends it to this peer, and
    whether it listens to the peer's; an undirected edge does both."""

    position: Position
    degree: int
    payload: memoryview
    checksum: int
    norm: float
    sends: bool
    listens: bool
    note: float
    timeout_s: float
    reached: int


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """A committed pair update: x_i += weight * (theirs - own), both as they crossed the wire."""

    peer: str
    position: Position
    weight: float
    theirs: memoryview
    own: memoryview
    note: float


@dataclass(frozen=True, slots=True)
class Missed:
    """The edge takes no part in this exchange; its weight stays at home."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What both ends agreed on before the first exchange: a vector's bytes on the wire, the wire dtype, the
    largest number of vectors in one exchange; and how long this end waits for a silent peer, and whether it
    does for one that is slow (`lag`: "wait" or "skip", see `p2pqg.gossip.machine`). Neighbours meet at least
    once in `period` rounds."""

    vector_bytes: int
    wire: str
    vectors: int
    round_timeout_s: float
    lag: str = "wait"
    period: int = 1


class Edge:
    """This end of the edge to `peer`. Inputs are methods that take `now` (seconds, monotonic); messages to
    the peer go to `send` in order; `result` answers the open offer."""

    def __init__(
        self,
        greeting: Hello,
        peer: str,
        rules: Rules,
        send: Callable[[Message], None],
        membership: Membership | None = None,
    ) -> None:
        self.greeting, self.peer, self.rules = greeting, peer, rules
        self.membership = membership or Membership(Member(greeting.agent))
        self.result: Contribution | Missed | None = None
        self.late: list[Contribution] = []
        self.leaked = 0
        """Exchanges that a peer took with it when it died between a promise and its verdict: one half may be
        lost."""
        self.strikes, self.last_strike = 0, ""
        self.peer_hello: Hello | None = None
        self.refused: Refuse | None = None
        self.left = False
        self.round_trip_s: float | None = None
        self.bandwidth_bytes_s: float | None = None
        """Measured while the last payload came."""
        self.peer_round = 0
        """The round the peer is in or goes to, as far as it has said: it begins none before it."""
        self.peer_reached = 0
        """The last round the peer has done."""
        self._send_now = send
        self._greeted = False
        self._said_goodbye = False
        self._incarnation: int | None = None
        self._seq = 0
        self._offer: Offer | None = None
        self._incoming: Incoming | None = None
        self._prepared = False
        self._deadline = self._latest = self._now = -math.inf
        self._timeout_s = rules.round_timeout_s
        self._waits = True
        self._joining = False
        self._late = 0
        self._told = 0
        self._peer_waits = self._extended = False
        self._begun_s = 0.0
        self._promise: Prepared | None = None
        self._doubt: tuple[int, Contribution] | None = None
        self._committed: int | None = None
        self._closed: Position = (greeting.round, -1)
        self._last_status = -math.inf
        self._last_tick = math.inf
        self._silent_s = 0.0
        self._peer_sent_s = self._peer_sent_at_s = 0.0

    @property
    def live(self) -> bool:
        """Whether the peer is connected, welcome and has not said goodbye."""
        return self._welcome and not self.left

    @property
    def _welcome(self) -> bool:
        return self._greeted and self.peer_hello is not None

    @property
    def running(self) -> bool:
        """Whether the peer is there and has taken part since it started."""
        return self.live and not self._joining

    @property
    def incarnation(self) -> int | None:
        """That of the peer, None if it was never here."""
        return self._incarnation

    @property
    def parted(self) -> bool:
        """Whether both ends have said goodbye."""
        return self.left and self._said_goodbye

    @property
    def in_doubt(self) -> bool:
        """Whether a verdict is outstanding for which this end has promised."""
        return self._doubt is not None

    @property
    def unsettled(self) -> bool:
        """Whether this end is in doubt, or the peer may be: it is out of reach and has not shown that it
        knows of the last commit."""
        return self.in_doubt or (self._committed is not None and not self._welcome and not self.left)

    @property
    def committing(self) -> bool:
        """Whether the open offer is past PREPARED and must be waited for."""
        return self._offer is not None and self._prepared

    # ---- the agent's side

    def connected(self, round: int, *, joining: bool = False) -> None:
        """A fresh connection: greet the peer."""
        self._greeted, self.peer_hello, self.left, self._said_goodbye = True, None, False, False
        self._told, self._last_status = 0, -math.inf
        undecided = self._doubt[0] if self._doubt else None
        self._send_now(
            replace(
                self.greeting,
                round=round,
                next_seq=self._seq,
                undecided=undecided,
                joining=joining,
                remembered=self._incarnation or 0,
            )
        )

    def disconnected(self, reason: str) -> None:
        """The connection is gone; what was not decided falls back on the self weight, a promise stays."""
        self._greeted, self.peer_hello = False, None
        if self._offer is not None or self._incoming is not None:
            self._give_up(reason)

    def begin(self, offer: Offer, now: float) -> None:
        """Enter an exchange; `result` tells how it ends, at once if the edge cannot take part."""
        self._now = now
        if self._offer is not None:
            raise LocalProtocolError(f"edge to {self.peer}: an offer is still open")
        self.result = None
        reason = self._absence(offer.position)
        if reason:
            self._closed = offer.position
            self.result = Missed(self.peer, reason)
            if reason in NOT_WAITED_FOR:  # it gets no BEGIN, and must know where to come in
                self.announce(offer.position[0], now, reached=offer.reached, waiting=True)
            return
        if self._incoming is not None and self._incoming.position < offer.position:
            self._incoming = None
        if self.bandwidth_bytes_s is None:
            self._timeout_s = self.rules.round_timeout_s
        else:
            self._timeout_s = offer.timeout_s + 2 * len(offer.payload) / self.bandwidth_bytes_s
        self._offer, self._deadline = offer, now + self._timeout_s
        self._peer_waits = self._extended = False
        self._latest = self._deadline + 2 * len(offer.payload) / SLOWEST_BYTES_S
        self._send(
            Begin(
                self._seq,
                *offer.position,
                offer.degree,
                len(offer.payload) if offer.sends else 0,
                self.rules.wire,
                self._timeout_s,
                offer.note,
                offer.reached,
            )
        )
        if offer.sends:
            for start in range(0, len(offer.payload), CHUNK_BYTES):
                self._send(Data(self._seq, start, offer.payload[start : start + CHUNK_BYTES]))
            self._send(End(self._seq, offer.checksum, offer.norm))
        self._advance()

    def withdraw(self, reason: str) -> None:
        """Take back an open offer unless this end has promised."""
        if self._offer is not None and not self._prepared:
            self._refuse_exchange(reason)

    def sit_out(self, position: Position) -> None:
        """This edge has no place in the exchange at `position`; a peer that thinks otherwise is told."""
        if self._offer is not None or position <= self._closed:
            return
        self._closed = position
        if self._incoming is not None and self._incoming.position <= position:
            self._refuse_exchange("not a neighbour in this round")

    def here(self, round: int, reached: int) -> None:
        """The peer takes part in `round`, as it said in a message that is no business of this edge."""
        self.peer_round = max(self.peer_round, round)
        self.peer_reached = max(self.peer_reached, reached)
        self._waits, self._joining, self._silent_s = True, False, 0.0

    def payload_left(self, now: float) -> None:
        """Another chunk of the own payload is on its way: the peer has had less time than it seems."""
        self._progress(now)

    def announce(self, round: int, now: float, *, reached: int = 0, waiting: bool = False) -> None:
        """Tell the peer at once which round this end is in."""
        if self._welcome:
            self._last_status = now
            members, self._told = self.membership.news(self._told, self.peer)
            echo_s = self._peer_sent_s and self._peer_sent_s + (now - self._peer_sent_at_s)
            self._send(Status(round, now, echo_s, members, waiting, reached))

    def goodbye(self, reason: str) -> None:
        """Say that no BEGIN follows. The peer answers with its own goodbye once it is not in doubt, so the
        end that waits for the answer can still settle what is open."""
        if self.peer_hello is not None and not self._said_goodbye:
            self._said_goodbye = True
            self._send(Bye(reason))

    def tick(self, now: float, round: int, *, reached: int = 0, waiting: bool = False) -> None:
        """Let time pass: deadlines, a sign of life, the question that settles a doubt."""
        self._now = now
        # Time in which this end did not look does not count as the peer's silence.
        passed = max(0.0, now - self._last_tick)
        self._silent_s += min(passed, STATUS_INTERVAL_S)
        self._deadline += max(0.0, passed - STATUS_INTERVAL_S)
        self._last_tick = now
        if self._offer is not None:
            patience = 0 if self._coordinates(self._offer) else PATIENCE
            if now >= self._deadline + patience * self._timeout_s and not self._held_up():
                self._count_lateness(self._offer)
                if self._prepared:
                    self._give_up("no verdict before the deadline")
                else:
                    self._refuse_exchange("deadline")
        if self._welcome and now - self._last_status >= STATUS_INTERVAL_S:
            self.announce(round, now, reached=reached, waiting=waiting)
            if self._doubt is not None:
                self._send(Settle(self._doubt[0]))

    def _held_up(self) -> bool:
        """Whether the peer has not come because it waits for somebody else, which it will not do for longer
        than a deadline either: give it one more. Else one silent agent would tear all others apart."""
        if self._peer_waits and not self._extended and self._incoming is None and not self._prepared:
            self._extended = True
            self._deadline += self._timeout_s
            return True
        return False

    def _count_lateness(self, offer: Offer) -> None:
        """A deadline passed. A peer whose payload or promise is here did its part; one that began may be
        unlucky once, and one that says it is in this round too, as messages may be lost, a few times."""
        incoming = self._incoming
        begun = incoming is not None and incoming.position == offer.position
        if self._promise is None and not (begun and incoming.complete):  # type: ignore[union-attr]
            self._late += 1
            here = self.peer_round >= offer.position[0]
            self._waits = (begun and self._late == 1) or (here and self._late <= UNLUCKY)

    # ---- the peer's side

    def received(self, message: Message, now: float) -> None:
        """One message from the peer. Raises `RemoteProtocolError` where the peer must be dropped."""
        self._now, self._silent_s = now, 0.0
        strikes = self.strikes
        if isinstance(message, Refuse):
            self.refused = message
            raise IncompatiblePeer(message.item, message.found, message.expected)
        if self.peer_hello is None and not isinstance(message, Hello):
            raise RemoteProtocolError(f"expected HELLO first, found {type(message).__name__}")
        match message:
            case Hello():
                self._hello(message)
            case Begin():
                self._begin(message)
            case Data() | End():
                self._payload(message)
            case Prepared():
                self._peer_prepared(message)
            case Commit():
                self._commit(message.seq)
            case Abort() | Skip():
                self._ended(message)
            case Settle():
                if message.seq == self._seq and self._offer is None:  # given up without a word: it is now
                    self._next(Missed(self.peer, "the peer gave it up"))
                if message.seq < self._seq:
                    self._send(Settled(message.seq, message.seq == self._committed))
            case Settled():
                self._settled(message.seq, message.committed)
            case Status():
                self._status(message.round)
                self.peer_reached = max(self.peer_reached, message.reached)
                mine = self._offer.position[0] if self._offer is not None else 0
                self._peer_waits = message.waiting and message.round < mine
                self._peer_sent_s, self._peer_sent_at_s = message.sent_s, now
                if 0 < message.echo_s <= now:
                    self.round_trip_s = now - message.echo_s
            case Bye() if not self.left:
                self.left = True
                self._give_up(f"left: {message.reason}")
                if self._doubt is None:
                    self.goodbye("goodbye")
        if self.strikes > max(strikes, STRIKES - 1):
            raise RemoteProtocolError(f"{self.strikes} broken exchanges, the last: {self.last_strike}")

    def _hello(self, hello: Hello) -> None:
        if self.peer_hello is not None:
            if hello == self.peer_hello:
                return
            raise RemoteProtocolError("a second HELLO on one connection")
        if hello.next_seq > MAX_SEQ:
            raise RemoteProtocolError(
                f"expected a next exchange of at most {MAX_SEQ}, found {hello.next_seq}"
            )
        try:
            self.check(hello)
        except IncompatiblePeer as error:
            self.refused = Refuse(error.item, error.expected, error.found)
            self._send_now(self.refused)
            raise
        self.refused = None
        self._live_again(hello)
        if self._incarnation is None or hello.incarnation > self._incarnation:
            self._forget_incarnation()
            self._waits, self._late = not hello.joining, 0
        self._incarnation = hello.incarnation
        self.peer_round = self.peer_reached = hello.round
        self._joining = hello.joining
        if hello.undecided is None:
            self._committed = None
        elif hello.undecided < self._seq:
            self._send_now(Settled(hello.undecided, hello.undecided == self._committed))
        self.peer_hello = hello
        self._seq = max(self._seq, hello.next_seq)
        if self._doubt is not None:
            self._send_now(Settle(self._doubt[0]))

    def _live_again(self, hello: Hello) -> None:
        """Take a new incarnation if the peer remembers this one, or a later one, of an earlier life: an agent
        that keeps nothing on disk has no other way to know."""
        known = hello.remembered
        mine = self.greeting.incarnation
        if known > mine or (known == mine and self._incarnation is None):
            self.greeting = replace(self.greeting, incarnation=min(known, MAX_SEQ) + 1)
            raise RemoteProtocolError("it remembers an earlier life of this agent")

    def _status(self, round: int) -> None:
        """The peer is in `round`, so it has closed all before; what it decided in them it said first."""
        self.peer_round = max(self.peer_round, round)
        mine = (self._offer.position if self._offer is not None else self._closed)[0]
        if round > mine or (round == mine and not self._late):
            self._waits, self._joining = True, False  # it keeps step, though not with us yet
        if self._offer is not None and not self._prepared and self.peer_round > self._offer.position[0]:
            self._close(Missed(self.peer, AHEAD))

    def check(self, hello: Hello) -> None:
        """Raise `IncompatiblePeer` if this is not the peer, or an incarnation of it that is over."""
        check_greeting(self.greeting, hello, self.peer)
        if self._incarnation is not None and hello.incarnation < self._incarnation:
            raise IncompatiblePeer("incarnation", f"{self._incarnation} or later", str(hello.incarnation))

    def _forget_incarnation(self) -> None:
        """The peer restarted: its verdicts and promises died with it. A promise to it is presumed aborted.
        That, and a commit that it may not have applied, is counted."""
        self.leaked += (self._doubt is not None) + (self._committed is not None)
        self._doubt = self._committed = None

    def _begin(self, begin: Begin) -> None:
        if begin.seq < self._seq:
            self._repeat_verdict(begin.seq)
            return
        self._peer_reached(begin.seq)
        if self._doubt is not None:
            self._refuse_exchange("in doubt")
            return
        if self._committed is not None and begin.seq > self._committed:
            self._committed = None
        self._check(begin)
        position = (begin.round, begin.exchange)
        self.peer_round, self._joining = max(self.peer_round, begin.round), False
        self.peer_reached = max(self.peer_reached, begin.reached)
        if position > self._closed or (position == self._closed and self._late <= 1):
            self._waits = True
        mine = self._offer.position if self._offer is not None else None
        if mine is None and position <= self._closed:
            self._refuse_exchange(STALE)
            return
        if mine is not None and position < mine:
            return  # stale: the peer finds our BEGIN and catches up
        if self._incoming is not None and position <= self._incoming.position:
            return  # a repeated message
        if self._prepared:
            raise RemoteProtocolError(f"exchange {begin.seq} is promised for {mine}, found {position}")
        self._incoming, self._begun_s = Incoming(begin), self._now
        if mine is not None and position > mine:
            self._close(Missed(self.peer, AHEAD))
        self._advance()

    def _payload(self, message: Data | End) -> None:
        if message.seq > self._seq:
            self._peer_reached(message.seq)
        if message.seq != self._seq or self._incoming is None or self._incoming.complete:
            return  # belongs to an exchange that is over, or that we never opened
        try:
            if isinstance(message, Data):
                self._chunk(self._incoming, message)
            else:
                self._incoming.finish(message)
                elapsed_s = self._now - self._begun_s
                size = self._incoming.received
                self.bandwidth_bytes_s = max(SLOWEST_BYTES_S, size / elapsed_s if elapsed_s else math.inf)
                self._advance()
        except RemoteProtocolError as error:
            self._strike(str(error))

    def _chunk(self, incoming: Incoming, chunk: Data) -> None:
        before = incoming.received
        incoming.append(chunk)
        if incoming.received > before:
            self._progress(self._now)

    def _progress(self, now: float) -> None:
        if self._offer is not None:
            self._deadline = max(self._deadline, min(now + self._timeout_s, self._latest))

    def _peer_prepared(self, promise: Prepared) -> None:
        if promise.seq < self._seq:
            self._repeat_verdict(promise.seq)
        elif promise.seq == self._seq and self._offer is not None:
            self._promise = promise
            self._advance()

    def _commit(self, seq: int) -> None:
        if seq == self._seq and self._offer is not None and (self._prepared or not self._offer.listens):
            self._decided()
        elif self._doubt is not None and seq == self._doubt[0]:
            self._settled(seq, committed=True)
        elif seq >= self._seq:
            raise RemoteProtocolError(f"COMMIT of exchange {seq}, which was not prepared")

    def _ended(self, message: Abort | Skip) -> None:
        if self._doubt is not None and message.seq == self._doubt[0]:
            self._settled(message.seq, committed=False)
        elif message.seq >= self._seq:
            self._peer_reached(message.seq)
            self.peer_round = max(self.peer_round, message.round)
            self.peer_reached = max(self.peer_reached, message.round)
            self._next(Missed(self.peer, message.reason))

    def _settled(self, seq: int, committed: bool) -> None:
        if self._doubt is None or seq != self._doubt[0]:
            return
        if committed:
            self.late.append(self._doubt[1])
        self._doubt = None
        if self.left:
            self.goodbye("goodbye")

    # ---- deciding

    def _advance(self) -> None:
        """Promise or decide, if everything needed is here."""
        offer, incoming = self._offer, self._incoming
        if offer is None or incoming is None or not incoming.complete or self._prepared:
            return
        expected = len(offer.payload) if offer.listens else 0
        if incoming.begin.payload_bytes != expected:
            self._strike(
                f"expected a payload of {expected} bytes in round {offer.position[0]}, "
                f"found {incoming.begin.payload_bytes}"
            )
        elif not self._coordinates(offer):
            if offer.listens:
                self._prepared = True
                verdict_s = min(incoming.begin.deadline_s, self._latest - self._now + self._timeout_s)
                self._deadline = max(self._deadline, self._now + verdict_s)
                self._send(Prepared(self._seq, received=incoming.checksum, sent=offer.checksum))
        elif not offer.sends:
            self._decided()
        elif self._promise is not None:
            if (self._promise.received, self._promise.sent) == (offer.checksum, incoming.checksum):
                self._decided()
            else:
                self._strike("PREPARED names other checksums")

    def _coordinates(self, offer: Offer) -> bool:
        if offer.listens and offer.sends:
            return self.greeting.agent < self.peer
        return offer.listens

    def _decided(self) -> None:
        """The exchange is committed, by this end or by the peer."""
        assert self._offer is not None
        if self._coordinates(self._offer):
            self._send(Commit(self._seq))
            if self._offer.sends:  # a directed edge adds to one end only, so nobody asks
                self._committed = self._seq
        self._waits, self._joining, self._late = True, False, 0
        self._next(self._contribution())

    def _contribution(self) -> Contribution:
        assert self._offer is not None
        assert self._incoming is not None or not self._offer.listens
        begin = self._incoming.begin if self._incoming is not None else None
        return Contribution(
            self.peer,
            self._offer.position,
            metropolis_hastings(self._offer.degree, begin.degree) if begin and self._offer.listens else 0.0,
            self._incoming.payload if self._incoming is not None else memoryview(b""),
            self._offer.payload,
            begin.note if begin else 0.0,
        )

    def _strike(self, reason: str) -> None:
        """The peer broke a rule, which costs it this exchange and, too often, the connection."""
        self.strikes, self.last_strike = self.strikes + 1, reason
        self._refuse_exchange(reason)

    def _refuse_exchange(self, reason: str) -> None:
        """End this exchange without having promised, and say so."""
        position = self._offer.position if self._offer is not None else self._closed
        kind = Abort if self.greeting.agent < self.peer else Skip
        self._send(kind(self._seq, max(position[0], 0), max(position[1], 0), reason))
        self._next(Missed(self.peer, reason))

    def _give_up(self, reason: str) -> None:
        """End this exchange without a word; a promise moves aside as a doubt."""
        if self._offer is not None and self._prepared:
            self._doubt = (self._seq, self._contribution())
            self._send(Settle(self._seq))
        self._next(Missed(self.peer, reason))

    def _next(self, result: Contribution | Missed) -> None:
        self._seq += 1
        self._incoming = None
        self._close(result)

    def _close(self, result: Contribution | Missed) -> None:
        self._prepared, self._promise = False, None
        if self._offer is not None:
            self._closed, self._offer, self.result = self._offer.position, None, result

    def _peer_reached(self, seq: int) -> None:
        """The peer speaks of exchange `seq` >= ours: what lies before it is over for the peer."""
        if seq > self._seq + 1:
            raise RemoteProtocolError(f"expected exchange {self._seq}, found {seq}")
        if seq == self._seq + 1:
            self._give_up("the peer went on")

    def _repeat_verdict(self, seq: int) -> None:
        if self.greeting.agent > self.peer:
            return  # the coordinator has not heard our SKIP yet, or decided without us
        if seq == self._committed:
            self._send(Commit(seq))
        else:
            self._send(Abort(seq, max(self._closed[0], 0), max(self._closed[1], 0), "over"))

    def _absence(self, position: Position) -> str | None:
        if not self.live:
            return f"refused: {self.refused.item} differs" if self.refused else "not connected"
        if self._doubt is not None:
            return "in doubt"
        ready = self._incoming.position if self._incoming is not None else None
        if self.peer_round > position[0] or (ready is not None and ready > position):
            return AHEAD
        if self._silent_s >= max(SILENCE * STATUS_INTERVAL_S, PATIENCE * self.rules.round_timeout_s):
            return f"silent for {self._silent_s:.0f} s"
        behind = self.peer_round + self.rules.period <= position[0]
        if not self._waits and behind and ready != position:
            return JOINING if self._joining else LATE
        return None

    def _check(self, begin: Begin) -> None:
        """Refuse what the rules do not allow before any memory is taken for it."""
        vectors, rest = divmod(begin.payload_bytes, self.rules.vector_bytes)
        if begin.wire != self.rules.wire:
            raise RemoteProtocolError(f"expected {self.rules.wire} on the wire, found {begin.wire}")
        if rest or vectors > self.rules.vectors:
            raise RemoteProtocolError(
                f"expected at most {self.rules.vectors} vectors of {self.rules.vector_bytes} bytes, "
                f"found a payload of {begin.payload_bytes}"
            )

    def _send(self, message: Message) -> None:
        if self._greeted:
            self._send_now(message)


def check_greeting(mine: Hello, theirs: Hello, peer: str) -> None:
    """Raise `IncompatiblePeer` with the first item in which two agents' settings differ."""
    low, high = max(mine.versions[0], theirs.versions[0]), min(mine.versions[1], theirs.versions[1])
    if low > high:
        raise IncompatiblePeer("protocol version", _range(mine.versions), _range(theirs.versions))
    for item in ("network", "run"):
        if getattr(mine, item) != getattr(theirs, item):
            raise IncompatiblePeer(item, getattr(mine, item), getattr(theirs, item))
    if theirs.agent != peer:
        raise IncompatiblePeer("agent", peer, theirs.agent)
    for item in sorted(mine.settings.keys() | theirs.settings.keys()):
        expected, found = mine.settings.get(item, "nothing"), theirs.settings.get(item, "nothing")
        if expected != found:
            raise IncompatiblePeer(item, expected, found)


def _range(versions: tuple[int, int]) -> str:
    return f"{versions[0]} to {versions[1]}"

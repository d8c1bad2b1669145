"""The gossip of one agent: all its edges, one exchange at a time.

A pure state machine. The agent tells it what happened (`connected`, `received`, `disconnected`, `begin`,
`tick`) and what time it is, and then takes `outputs()`: messages to send, connections to drop, the result
of an exchange, and events with their reason. It computes nothing on vectors: a result lists the committed
pair updates in order of the peers' names, and `p2pqg.gossip.mixing` applies them.

How long a round waits for a neighbour that is connected and says nothing is the `lag` policy:

* `wait`, the default: `round_timeout_s`. It only finds out who is stuck, so everybody goes at the pace of
  the slowest and mixes with all neighbours in every round, as the paper's algorithm does.
* `skip`: `SKIP_FACTOR` times as long as the agent itself takes from one exchange to the next (the median of
  the last rounds), plus some round trips. A neighbour several times slower does not hold the others up; it
  leaves rounds out instead and takes part in those it can be early for (`p2pqg.gossip.pace`).

To either comes the time that the payloads take at the bandwidth measured on that edge. There is no mode in
which rounds that differ are mixed: aiming at a common round costs the slow agent little, and keeps the mean.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from p2pqg.errors import IncompatiblePeer, LocalProtocolError, RemoteProtocolError
from p2pqg.gossip.edge import Contribution, Edge, Missed, Offer, Position, Rules
from p2pqg.gossip.membership import Membership
from p2pqg.gossip.messages import ALIVE, LEFT, Hello, Member, Message, Status
from p2pqg.gossip.sums import Mask, Summed


@dataclass(frozen=True, slots=True, eq=False)
class Send:
    """Give `message` to the connection of `peer`, after all earlier ones."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the connection of `peer`. `refused` peers are not worth dialling again soon."""

    peer: str
    reason: str
    refused: bool


@dataclass(frozen=True, slots=True, eq=False)
class Exchanged:
    """An exchange is over. `contributions` are committed now, `late` were promised in an earlier round and
    settled since; both in order of names. `missed` says which edges took no part and why; `heard` is the
    largest note received."""

    position: Position
    contributions: tuple[Contribution, ...]
    late: tuple[Contribution, ...]
    missed: Mapping[str, str]
    heard: float

    @property
    def mixed(self) -> tuple[str, ...]:
        """With whom."""
        return tuple(contribution.peer for contribution in self.contributions)

    @property
    def traded(self) -> Mapping[str, tuple[int, int]]:
        """Bytes of payload sent to each peer, and received."""
        return {c.peer: (len(c.own), len(c.theirs)) for c in self.contributions}


Output = Send | Drop | Exchanged | Mask | Summed

SKIP_FACTOR = 4.0
LEAST_PATIENCE_S = 0.1
ROUND_TRIPS = 4
PACE_ROUNDS = 16
"""Rounds over which the own pace is measured."""


class Gossip:
    """All edges of one agent.

    `greeting` is this agent's HELLO (its round and sequence numbers are filled in for each edge);
    `neighbours` are the names of those it exchanges with; `meet` adds others. `membership` is what the
    neighbours tell each other about everyone.
    """

    def __init__(
        self,
        greeting: Hello,
        neighbours: Iterable[str],
        rules: Rules,
        membership: Membership | None = None,
    ) -> None:
        self.rules = rules
        self.membership = membership or Membership(Member(greeting.agent))
        self.joining = greeting.joining
        self._greeting = greeting
        self._outputs: deque[Output] = deque()
        self._edges: dict[str, Edge] = {}
        for peer in sorted(neighbours):
            self.meet(peer)
        self._closed_s: float | None = None
        self._think_s: deque[float] = deque(maxlen=PACE_ROUNDS)
        self._round = greeting.round
        self._now = 0.0
        self._position: Position | None = None
        self._incoming: tuple[str, ...] = ()
        self._outgoing: tuple[str, ...] = ()
        self._waiting: tuple[str, ...] = ()
        self._note = 0.0
        self._reached, self._early = greeting.round, False
        self._leaving = False

    # ---- what happened

    def meet(self, peer: str) -> None:
        """From now on there is an edge to `peer`; what is known of it stays if there was one before."""
        if peer not in self._edges:
            self._edges[peer] = Edge(self._greeting, peer, self.rules, self._sender(peer), self.membership)
            self._edges = dict(sorted(self._edges.items()))

    def connected(self, peer: str) -> None:
        """A connection to `peer` stands (whoever dialled): greet it."""
        if peer not in self._edges:
            self._outputs.append(Drop(peer, "not a neighbour", refused=True))
            return
        self._edges[peer].connected(self._round, joining=self.joining)

    def received(self, peer: str, message: Message, now: float) -> None:
        """`message` came from `peer`. Whatever it is, this raises nothing: a peer that breaks the protocol
        is dropped."""
        self._now = now
        try:
            self._hear(peer, message, now)
        except RemoteProtocolError as error:
            self._outputs.append(Drop(peer, str(error), refused=isinstance(error, IncompatiblePeer)))
            self.disconnected(peer, str(error))
        else:
            self._close()

    def disconnected(self, peer: str, reason: str) -> None:
        """The connection to `peer` is gone."""
        self._edges[peer].disconnected(reason)
        self._close()

    def begin(
        self,
        position: Position,
        payload: memoryview,
        *,
        checksum: int,
        norm: float,
        incoming: Sequence[str],
        outgoing: Sequence[str],
        now: float,
        note: float = 0.0,
    ) -> None:
        """Enter the exchange at `position` with everyone in `incoming` and `outgoing`."""
        self._now = now
        if self._position is not None:
            raise LocalProtocolError(f"exchange {self._position} is still open")
        self._round, self._position, self._note = position[0], position, note
        self._incoming, self._outgoing = tuple(sorted(incoming)), tuple(sorted(outgoing))
        self._waiting = tuple(sorted({*incoming, *outgoing}))
        if self._closed_s is not None:
            self._think_s.append(now - self._closed_s)
        self._open(payload, checksum, norm)
        if self._leaving:
            self._withdraw()
        self._close()

    def tick(self, now: float) -> None:
        """Let time pass; call this a few times a second."""
        self._now = now
        self.membership.tick(now)
        for edge in self._edges.values():
            edge.tick(now, self._round, reached=self._reached, waiting=self._position is not None)
        self._close()

    def take_part(self, round: int, now: float) -> None:
        """From `round` on this agent takes part."""
        self.joining, self._reached = False, round
        self.membership.say(state=ALIVE, round=round)
        self.enter(round, now)
        self._early = False

    def enter(self, round: int, now: float) -> None:
        """The next exchange is one of `round`: what lies between is left out, and nobody need wait for it."""
        self._round, self._early = round, True
        for edge in self._edges.values():
            edge.announce(round, now, reached=self._reached)

    def leave(self) -> None:
        """Take back what is not promised, now and in every later exchange: the round in progress closes
        with the edges that are past PREPARED."""
        self._leaving = True
        self._withdraw()
        self._close()

    def goodbye(self, reason: str) -> None:
        """Tell every peer that no BEGIN follows."""
        self.membership.say(state=LEFT)
        for edge in self._edges.values():
            edge.announce(self._round, self._now, reached=self._reached)
            edge.goodbye(reason)

    def late(self, exchange: int | None = None) -> tuple[Contribution, ...]:
        """Contributions to the given exchange of earlier rounds (None: to any) that were settled since; each
        is handed out once."""
        late = []
        for edge in self._edges.values():
            due = [c for c in edge.late if exchange is None or c.position[1] == exchange]
            edge.late = [c for c in edge.late if c not in due]
            late += due
        return tuple(late)

    def outputs(self) -> list[Output]:
        """What to do now, in order; each is handed out once."""
        outputs = list(self._outputs)
        self._outputs.clear()
        return outputs

    # ---- what can be seen

    @property
    def edges(self) -> Mapping[str, Edge]:
        """The edges by peer, to look at."""
        return self._edges

    @property
    def live(self) -> tuple[str, ...]:
        """Peers that are connected and welcome."""
        return tuple(peer for peer, edge in self._edges.items() if edge.live)

    @property
    def rounds(self) -> dict[str, int]:
        """The last rounds done by the peers that take part."""
        return {peer: edge.peer_reached for peer, edge in self._edges.items() if edge.running}

    @property
    def in_doubt(self) -> tuple[str, ...]:
        """Peers whose verdict is outstanding."""
        return tuple(peer for peer, edge in self._edges.items() if edge.in_doubt)

    @property
    def unsettled(self) -> tuple[str, ...]:
        """Peers with whom a verdict is outstanding, on this side or on theirs."""
        return tuple(peer for peer, edge in self._edges.items() if edge.unsettled)

    # ---- inside

    def _hear(self, peer: str, message: Message, now: float) -> None:
        """One message. Raises `RemoteProtocolError` where the peer must be dropped."""
        self._edges[peer].received(message, now)
        if isinstance(message, Status):
            self.membership.hear(message.members)

    def _sender(self, peer: str) -> Sender:
        return Sender(peer, self._outputs)

    def _open(self, payload: memoryview, checksum: int, norm: float) -> None:
        """Offer the own vector to the neighbours of the exchange that begins."""
        assert self._position is not None
        for peer, edge in self._edges.items():
            if peer not in self._waiting:
                edge.sit_out(self._position)
                continue
            sends, listens = peer in self._outgoing, peer in self._incoming
            offer = Offer(
                self._position, len(self._incoming), payload, checksum, norm, sends, listens, self._note,
                self._patience_s(edge), self._reached,
            )  # fmt: skip
            edge.begin(offer, self._now)

    def _patience_s(self, edge: Edge) -> float:
        """How long to wait for a silent peer, beyond the transfer."""
        longest = self.rules.round_timeout_s
        if self.rules.lag == "wait" or edge.round_trip_s is None or not self._think_s:
            return longest
        own_s = SKIP_FACTOR * statistics.median(self._think_s)
        return min(longest, max(LEAST_PATIENCE_S, own_s) + ROUND_TRIPS * edge.round_trip_s)

    def _withdraw(self) -> None:
        for peer in self._waiting:
            self._edges[peer].withdraw("leaving")

    def _close(self) -> None:
        """Hand out the result once every edge of the open exchange has one."""
        if self._position is None:
            return
        results = [self._edges[peer].result for peer in self._waiting]
        if any(result is None for result in results):
            return
        position, self._position, self._closed_s = self._position, None, self._now
        contributions = tuple(r for r in results if isinstance(r, Contribution))
        if contributions or not self._early:  # who was early and met nobody has done no round of the others
            self._reached, self._early = position[0], False
            self.membership.say(round=position[0])
        self._outputs.append(
            Exchanged(
                position,
                contributions=contributions,
                late=self.late(position[1]),
                missed={r.peer: r.reason for r in results if isinstance(r, Missed)},
                heard=max((c.note for c in contributions), default=0.0),
            )
        )


@dataclass(frozen=True, slots=True)
class Sender:
    """Where an edge puts its messages."""

    peer: str
    outputs: deque[Output]

    def __call__(self, message: Message) -> None:
        self.outputs.append(Send(self.peer, message))

"""The gossip of one agent: all its edges, one exchange at a time.

A pure state machine. The agent tells it what happened (`connected`, `received`, `disconnected`, `begin`,
`tick`) and what time it is, and then takes `outputs()`: messages to send, connections to drop, the result
of an exchange, and events with their reason. It computes nothing on vectors: a result lists the committed
pair updates in order of the peers' names, and `mixed` applies them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pqg.errors import IncompatiblePeer, LocalProtocolError, RemoteProtocolError
from p2pqg.gossip.edge import Contribution, Edge, Missed, Offer, Position, Rules
from p2pqg.gossip.messages import Hello, Message
from p2pqg.wire.tensors import WIRE_DTYPES, tensor


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


Output = Send | Drop | Exchanged


class Gossip:
    """All edges of one agent.

    `greeting` is this agent's HELLO (its round and sequence numbers are filled in for each edge);
    `neighbours` are the names of everyone it may ever exchange with.
    """

    def __init__(self, greeting: Hello, neighbours: Iterable[str], rules: Rules) -> None:
        self.rules = rules
        self._outputs: deque[Output] = deque()
        self._edges = {peer: Edge(greeting, peer, rules, self._sender(peer)) for peer in sorted(neighbours)}
        self._round = greeting.round
        self._position: Position | None = None
        self._waiting: tuple[str, ...] = ()
        self._leaving = False

    # ---- what happened

    def connected(self, peer: str) -> None:
        """A connection to `peer` stands (whoever dialled): greet it."""
        if peer not in self._edges:
            self._outputs.append(Drop(peer, "not a neighbour", refused=True))
            return
        self._edges[peer].connected(self._round)

    def received(self, peer: str, message: Message, now: float) -> None:
        """`message` came from `peer`. Whatever it is, this raises nothing: a peer that breaks the protocol
        is dropped."""
        try:
            self._edges[peer].received(message, now)
        except RemoteProtocolError as error:
            self._edges[peer].disconnected(str(error))
            self._outputs.append(Drop(peer, str(error), refused=isinstance(error, IncompatiblePeer)))
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
        if self._position is not None:
            raise LocalProtocolError(f"exchange {self._position} is still open")
        self._round, self._position = position[0], position
        self._waiting = tuple(sorted({*incoming, *outgoing}))
        deadline = now + self.rules.round_timeout_s
        for peer in self._waiting:
            sends, listens = peer in outgoing, peer in incoming
            offer = Offer(position, len(incoming), payload, checksum, norm, sends, listens, note, deadline)
            self._edges[peer].begin(offer, now)
        if self._leaving:
            self._withdraw()
        self._close()

    def tick(self, now: float) -> None:
        """Let time pass; call this a few times a second."""
        for edge in self._edges.values():
            edge.tick(now, self._round)
        self._close()

    def leave(self) -> None:
        """Take back what is not promised, now and in every later exchange: the round in progress closes
        with the edges that are past PREPARED."""
        self._leaving = True
        self._withdraw()
        self._close()

    def goodbye(self, reason: str) -> None:
        """Tell every peer that no BEGIN follows."""
        for edge in self._edges.values():
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
    def in_doubt(self) -> tuple[str, ...]:
        """Peers whose verdict is outstanding."""
        return tuple(peer for peer, edge in self._edges.items() if edge.in_doubt)

    @property
    def unsettled(self) -> tuple[str, ...]:
        """Peers with whom a verdict is outstanding, on this side or on theirs."""
        return tuple(peer for peer, edge in self._edges.items() if edge.unsettled)

    # ---- inside

    def _sender(self, peer: str) -> Sender:
        return Sender(peer, self._outputs)

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
        position, self._position = self._position, None
        contributions = tuple(r for r in results if isinstance(r, Contribution))
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


def mixed(x: Tensor, contributions: Iterable[Contribution], wire: str) -> Tensor:
    """Apply committed pair updates to own vectors `x: [k * d]`.

        x + sum over edges, in order of names, of w_ij (Q_j - Q_i)

    Q are the vectors as they crossed the wire, own ones included, so that rounding cancels in the sum over
    agents.
    """
    total: Tensor | None = None
    for contribution in contributions:
        if contribution.weight:  # the sending end of a directed edge has none
            difference = _difference(contribution, wire, x.dtype).mul_(contribution.weight)
            total = difference if total is None else total.add_(difference)
    return x.clone() if total is None else total.add_(x)


def disagreement(contributions: Iterable[Contribution], wire: str) -> float:
    """How far the neighbours' vectors were from the own: max_j ||Q_j - Q_i|| / ||Q_i||, 0 for none."""
    furthest = 0.0
    for contribution in contributions:
        if contribution.weight:
            dtype = torch.promote_types(WIRE_DTYPES[wire], torch.float32)
            own = _vector(contribution.own, wire).to(dtype).norm()
            apart = _difference(contribution, wire, dtype).norm()
            furthest = max(furthest, float(apart) / max(float(own), math.ulp(1.0)))
    return furthest


def _difference(contribution: Contribution, wire: str, dtype: torch.dtype) -> Tensor:
    return _vector(contribution.theirs, wire).to(dtype) - _vector(contribution.own, wire).to(dtype)


def _vector(payload: memoryview, wire: str) -> Tensor:
    return tensor(payload, wire, len(payload) // WIRE_DTYPES[wire].itemsize)

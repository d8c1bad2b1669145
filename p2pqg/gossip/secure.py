"""Mixing in which an agent learns only the weighted *sum* of what its neighbours send (two phases, lockstep).

    sender  -> receiver   READY: my vector of this round is there
    receiver -> senders   KEYs of the others, SENDERS: the set U whose sum I ask for
    sender  -> receiver   DATA..., MASKED: Enc(w x) + masks; SKIP instead if it will not
    receiver              the sum of all; the masks of U have cancelled

Every pair of senders in U agrees on a mask that one adds and the other subtracts, modulo 2^32, so what a
sender sends looks uniformly random until all of U are added. A mask belongs to one receiver, one exchange,
one set and all incarnations in it; an agent answers *one* set of a receiver in an exchange, because two sums
over different sets would differ by single models. So it is all or nothing: if one of U vanishes after the
set is announced, the receiver keeps its own vector. This costs a mix, never a model.

Weights are the original w_ij; that of a neighbour outside U stays at home. But what is lost is lost at one
end only: the neighbours of an agent that lost its mix still mixed with it, and the mean over agents moves.
`Summed.one_sided` says how much of the own row was lost so. Shares or seeds that a survivor can reveal
(Bonawitz et al. 2017) would save the mix, but a late message could then be unmasked, and a ring has too few
neighbours for their second layer of secrets.

Unlike on an `Edge`, nothing is decided for a pair, so promises and verdicts are not needed; what an edge
knows of its peer (greeting, rounds, signs of life) is used as it is. This machine computes nothing on models
except the sum, chunk by chunk as they come: it holds one vector, however many send. Masks are made by whoever
carries out `Mask`.

A deadline in one place does not tear the others apart: a receiver waits for READY for one timeout, and for
one more where the peer says that it is held up; a sender waits long enough for that. A peer that let a
deadline pass is not waited for until it is READY in time again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from p2pqg.errors import RemoteProtocolError
from p2pqg.gossip.edge import AHEAD, SLOWEST_BYTES_S, STALE, STATUS_INTERVAL_S, Position, Rules
from p2pqg.gossip.machine import Gossip
from p2pqg.gossip.membership import Membership
from p2pqg.gossip.messages import (
    CHUNK_BYTES,
    Bye,
    Data,
    Hello,
    Key,
    Masked,
    Message,
    Ready,
    Refuse,
    Senders,
    Skip,
    Status,
)
from p2pqg.gossip.sums import WORD_BYTES, Keys, Mask, Sum, Summed
from p2pqg.topology import metropolis_hastings

HELD_UP = 2.0
"""Timeouts for READY where the peer is held up by somebody else."""
LONGER = 0.5
"""Timeouts that a sender waits beyond the latest moment at which the receiver may announce its set."""
FEW = "fewer senders than a sum needs"


@dataclass(slots=True, eq=False)
class Peer:
    """What this agent knows of a neighbour as a sender and as a receiver."""

    ready: Ready | None = None
    waits: bool = False
    """Whether it said that it is held up in an earlier round."""
    late: bool = False
    answered: tuple[Position, Senders] | None = None
    """The last set under which this agent sent to it, or refused to. It outlives connections."""
    withdrawn: tuple[Position, str] = ((-1, -1), "")
    """The last READY that it took back, and why."""
    asked: Position = (-1, -1)
    """The last exchange for which it said whose sum it asks for: nothing more is due."""
    masking: bool = False
    sent: Position = (-1, -1)
    has_key: bool = False
    told: dict[str, Key] = field(default_factory=dict)

    @property
    def position(self) -> Position:
        """Of its last READY."""
        return (self.ready.round, self.ready.exchange) if self.ready else (-1, -1)

    def lost(self) -> None:
        """The connection is gone."""
        self.ready, self.waits, self.has_key, self.told = None, False, False, {}


class SecureGossip(Gossip):
    """`Gossip` whose exchanges end in `Summed`.

    `senders_to(receiver, round)` are the agents whose sum a receiver may ask for, by the public graph;
    sets go beyond them or below `min_senders` only if somebody lies. One vector travels in an exchange.
    """

    def __init__(
        self,
        greeting: Hello,
        neighbours: Iterable[str],
        rules: Rules,
        membership: Membership | None = None,
        *,
        keys: Keys,
        senders_to: Callable[[str, int], Collection[str]],
        min_senders: int = 2,
    ) -> None:
        self._peers: dict[str, Peer] = {}
        super().__init__(greeting, neighbours, rules, membership)
        self._keys, self._senders_to, self._min_senders = keys, senders_to, min_senders
        self._known: dict[str, Key] = {}
        self._bad: dict[str, str] = {}
        self._seq = 0
        self._sum: Sum | None = None
        self._lost = ""
        self._asked = True
        self._set: tuple[str, ...] = ()
        self._past: Position = (greeting.round, -1)
        self._began_s = self._last_tick = -math.inf
        self._deadline = self._latest = math.inf

    # ---- what happened

    def meet(self, peer: str) -> None:
        super().meet(peer)
        self._peers.setdefault(peer, Peer())

    def connected(self, peer: str) -> None:
        if peer in self._peers:
            self._peers[peer].lost()
        super().connected(peer)

    def disconnected(self, peer: str, reason: str) -> None:
        self._peers[peer].lost()
        if self._sum is not None and peer in self._sum.announced.names and peer not in self._sum.finished:
            self._lose(f"{peer} broke off: {reason}")
        super().disconnected(peer, reason)

    def tick(self, now: float) -> None:
        # Time in which this end did not look does not count as the others' silence.
        frozen_s = max(0.0, now - self._last_tick - STATUS_INTERVAL_S) if self._last_tick > 0 else 0.0
        self._last_tick = now
        self._began_s, self._deadline = self._began_s + frozen_s, self._deadline + frozen_s
        super().tick(now)

    def masked(self, job: Mask, payload: memoryview, *, checksum: int, check: int, now: float) -> None:
        """`job` is done: `payload` is the weighed and masked vector, `check` the rest of the same masks."""
        self._now = now
        peer = self._peers[job.peer]
        peer.masking = False
        if self._edges[job.peer].live:
            send, seq = self._sender(job.peer), job.announced.seq
            for start in range(0, len(payload), CHUNK_BYTES):
                send(Data(seq, start, payload[start : start + CHUNK_BYTES]))
            send(Masked(seq, checksum, check))
            peer.sent = job.position
        self._close()

    # ---- inside: hearing

    def _hear(self, peer: str, message: Message, now: float) -> None:
        edge, known = self._edges[peer], self._peers[peer]
        match message:
            case Hello() | Refuse() | Status() | Bye():
                was_live = edge.live
                super()._hear(peer, message, now)
                if isinstance(message, Status):
                    known.waits = message.waiting
                elif edge.live and not was_live and peer in self._outgoing and self._position is not None:
                    self._offer(peer)
            case _ if edge.peer_hello is None:
                raise RemoteProtocolError(f"expected HELLO first, found {type(message).__name__}")
            case _ if edge.left:
                pass
            case Key():
                self._learn(peer, message)
            case Ready():
                self._is_ready(peer, message)
            case Senders():
                self._is_asked(peer, message)
            case Data():
                if (total := self._expected(peer, message.seq)) and total.append(peer, message):
                    self._deadline = min(now + self.rules.round_timeout_s, self._latest)
            case Masked():
                if total := self._expected(peer, message.seq):
                    total.finish(peer, message)
            case Skip():
                self._goes_without(peer, message)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} has no place among secure sums")

    def _learn(self, peer: str, key: Key) -> None:
        """Keep a key if it is the newest of a neighbour's neighbour, and its own."""
        known = self._known.get(key.agent)
        if key.agent == self._keys.own.agent or (known and key.incarnation < known.incarnation):
            return
        if known and (key.incarnation, key.public_key) == (known.incarnation, known.public_key):
            return
        if key.agent != peer and not self._is_nearby(key.agent):
            raise RemoteProtocolError(f"a key of {key.agent}, who sends to nobody that this agent sends to")
        try:
            if known and key.incarnation == known.incarnation and key.agent != peer:
                raise RemoteProtocolError(f"{key.agent} has another key, says {peer}")
            self._keys.check(key)
        except RemoteProtocolError as error:
            if key.agent == peer:
                raise
            self._bad[key.agent] = str(error)
        else:
            self._known[key.agent] = key
            self._bad.pop(key.agent, None)

    def _is_nearby(self, name: str) -> bool:
        rounds = range(self._round, self._round + self.rules.period)
        return any(name in self._senders_to(peer, round) for peer in self._peers for round in rounds)

    def _is_ready(self, peer: str, ready: Ready) -> None:
        known, position = self._peers[peer], (ready.round, ready.exchange)
        self._edges[peer].here(ready.round, ready.reached)
        if position < known.position:
            return
        known.ready, known.waits = ready, False
        if position >= (self._position or self._past):
            known.late = False
        in_set = self._sum is not None and peer in self._sum.announced.names
        if position <= self._past or (position == self._position and self._asked and not in_set):
            self._sender(peer)(Senders(self._seq, *position, 0, self._keys.own.incarnation))

    def _is_asked(self, peer: str, announced: Senders) -> None:
        """`peer` says whose sum it asks for: answer the first set of an exchange, and no other."""
        known, position = self._peers[peer], (announced.round, announced.exchange)
        own = self._keys.own
        if known.answered is not None and position == known.answered[0]:
            if announced == known.answered[1] or own.agent not in announced.names:
                return
            if announced.incarnation == known.answered[1].incarnation:
                raise RemoteProtocolError(f"asks for two sums in round {position[0]}")
            self._skip(peer, announced, "sent to your last incarnation already")
            return
        if own.agent not in announced.names:
            known.asked = max(known.asked, position)
        elif position != self._position or peer not in self._outgoing:
            self._skip(peer, announced, STALE)
        else:
            refusal = self._refusal(peer, announced)
            known.answered, known.asked, known.has_key = (position, announced), position, True
            if refusal:
                self._skip(peer, announced, refusal)
                return
            known.masking = True
            weight = metropolis_hastings(len(self._incoming), announced.degree)
            others = tuple(self._known[name] for name in announced.names if name != own.agent)
            self._outputs.append(Mask(peer, position, weight, announced, others))

    def _refusal(self, peer: str, announced: Senders) -> str:
        """Why this agent will not send under a set; empty if it will. Raises `RemoteProtocolError` for one
        that no honest receiver asks for."""
        names = announced.names
        strangers = set(names) - set(self._senders_to(peer, announced.round))
        if strangers or list(names) != sorted(set(names)):
            raise RemoteProtocolError(f"asks for the sum of {', '.join(names)}, not all of whom send to it")
        if len(names) < self._min_senders:
            raise RemoteProtocolError(
                f"asks for the sum of {len(names)} senders, expected {self._min_senders} or more"
            )
        for name, incarnation in zip(names, announced.incarnations, strict=True):
            key = self._keys.own if name == self._keys.own.agent else self._known.get(name)
            if key is None or key.incarnation != incarnation:
                self._peers[peer].has_key &= key is not self._keys.own
                return self._bad.get(name, f"no key of incarnation {incarnation} of {name}")
        return ""

    def _expected(self, peer: str, seq: int) -> Sum | None:
        """The open sum if it asked `peer` for `seq`."""
        total = self._sum
        return total if total and total.announced.seq == seq and peer in total.announced.names else None

    def _goes_without(self, peer: str, skip: Skip) -> None:
        known, position = self._peers[peer], (skip.round, skip.exchange)
        if position == known.position:
            known.ready, known.withdrawn = None, (position, skip.reason)
        if self._expected(peer, skip.seq) and peer not in self._sum.finished:  # type: ignore[union-attr]
            known.told = {}  # it may lack a key
            self._lose(f"{peer} does not send: {skip.reason}")

    # ---- inside: speaking

    def _open(self, payload: memoryview, checksum: int, norm: float) -> None:
        """The vector itself stays where it is until a `Mask` asks for it."""
        assert self._position is not None
        self._began_s = self._now
        self._sum, self._lost, self._asked, self._set = None, "", False, ()
        for edge in self._edges.values():
            edge.sit_out(self._position)
        for peer in self._outgoing:
            self._offer(peer)

    def _withdraw(self) -> None:
        """Ask nobody for a sum that was not asked for yet; what was is waited for."""
        if self._position is not None:
            self._ask_nobody()

    def _offer(self, peer: str) -> None:
        assert self._position is not None
        known, send = self._peers[peer], self._sender(peer)
        if self._edges[peer].live and (known.answered is None or known.answered[0] < self._position):
            if not known.has_key:
                send(self._keys.own)
            send(Ready(*self._position, len(self._incoming), self._note, self._reached))

    def _skip(self, peer: str, announced: Senders, reason: str) -> None:
        self._sender(peer)(Skip(announced.seq, announced.round, announced.exchange, reason))

    def _ask(self) -> None:
        """Announce the set of those who are ready, or that there is none."""
        assert self._position is not None
        present = [
            p for p in self._incoming if self._peers[p].position == self._position and p in self._known
        ]
        self._set = tuple(present)
        self._note_lateness(set(self._incoming) - set(present), self._position)
        if len(present) < self._min_senders:
            self._lost = FEW if present else ""
            self._ask_nobody()
            return
        self._asked, self._seq = True, self._seq + 1
        degree, own = len(self._incoming), self._keys.own
        incarnations = tuple(self._known[name].incarnation for name in present)
        asked = Senders(self._seq, *self._position, degree, own.incarnation, self._set, incarnations)
        degrees = {name: self._peers[name].ready.degree for name in present}  # type: ignore[union-attr]
        weights = {name: metropolis_hastings(degree, each) for name, each in degrees.items()}
        size = self.rules.vector_bytes
        self._sum = Sum(asked, weights, np.zeros(size // WORD_BYTES, dtype=np.uint32))
        self._deadline = self._now + self.rules.round_timeout_s
        self._latest = self._deadline + 2 * size / SLOWEST_BYTES_S
        for peer in filter(self._is_live, self._incoming):
            if peer in present:
                self._relay(peer, present)
                self._sender(peer)(asked)
            else:
                self._sender(peer)(replace(asked, names=(), incarnations=()))

    def _relay(self, peer: str, names: Iterable[str]) -> None:
        told = self._peers[peer].told
        for key in (self._known[name] for name in names if name != peer):
            if told.get(key.agent) != key:
                self._sender(peer)(key)
                told[key.agent] = key

    def _ask_nobody(self) -> None:
        assert self._position is not None
        if self._asked:
            return
        self._asked = True
        for peer in filter(self._is_live, self._incoming):
            self._sender(peer)(Senders(self._seq, *self._position, 0, self._keys.own.incarnation))

    def _lose(self, reason: str) -> None:
        self._sum, self._lost = None, reason

    # ---- inside: waiting

    def _is_live(self, peer: str) -> bool:
        return self._edges[peer].live

    def _is_awaited(self, peer: str) -> bool:
        """Whether READY of `peer` may still come in time."""
        assert self._position is not None
        if self._peers[peer].position == self._position or self._absence(peer, self._position):
            return False
        return self._passed() < (HELD_UP if self._peers[peer].waits else 1.0)

    def _is_owed(self, peer: str) -> bool:
        """Whether the receiver `peer` may still ask, or waits for a mask that is being made."""
        assert self._position is not None
        known = self._peers[peer]
        if known.masking and self._is_live(peer):
            return True
        if self._leaving or known.asked == self._position or self._absence(peer, self._position):
            return False
        here = known.position == self._position or known.waits
        return self._passed() < LONGER + (1 + HELD_UP if here else 1.0)

    def _passed(self) -> float:
        """Timeouts since the exchange began."""
        return (self._now - self._began_s) / self.rules.round_timeout_s

    def _note_lateness(self, peers: Iterable[str], position: Position) -> None:
        """These could have come, and did not."""
        for peer in peers:
            self._peers[peer].late |= not self._absence(peer, position)

    def _absence(self, peer: str, position: Position) -> str:
        """Why `peer` cannot be waited for in the exchange at `position`; empty if it can."""
        edge, known = self._edges[peer], self._peers[peer]
        if not edge.live:
            return f"refused: {edge.refused.item} differs" if edge.refused else "not connected"
        if edge.peer_round > position[0] or known.position > position:
            return AHEAD
        if known.withdrawn[0] == position:
            return known.withdrawn[1]
        if known.asked >= position and known.position != position:
            return STALE  # whoever spoke of its own sum was READY before, or never will be
        if known.position != position and edge.peer_round + self.rules.period <= position[0]:
            if not edge.running:
                return "joining"
            if known.late:
                return "late"
        return ""

    def _close(self) -> None:
        """Ask once nobody is awaited any more; hand out the result once there is one and every receiver has
        what it was promised."""
        position = self._position
        if position is None:
            return
        if not self._asked:
            if any(map(self._is_awaited, self._incoming)):
                return
            self._ask()
        total = self._sum
        if total is not None and not total.complete:
            if self._now < self._deadline:
                return
            missing = sorted(set(total.announced.names) - total.finished)
            self._lose(f"{', '.join(missing)} did not send before the deadline")
        elif total is not None and total.check:
            self._lose("the masks do not cancel: senders differ in a key or in the set")
        if any(map(self._is_owed, self._outgoing)):
            return
        silent = [peer for peer in self._outgoing if self._peers[peer].asked != position]
        if not self._leaving:
            self._note_lateness(silent, position)
        self._position, self._past, self._closed_s = None, position, self._now
        for peer in silent:
            if self._is_live(peer):
                self._sender(peer)(Skip(0, *position, "leaving" if self._leaving else AHEAD))
        summed = self._summed(position)
        self._sum = None
        if summed.mixed or not self._early:  # as in `Gossip`
            self._reached, self._early = position[0], False
            self.membership.say(round=position[0])
        self._outputs.append(summed)

    def _summed(self, position: Position) -> Summed:
        total = self._sum
        taken = total.weights if total else {}
        given = {peer for peer in self._outgoing if self._peers[peer].sent == position}
        lacking = [peer for peer in self._incoming if peer not in taken]
        one_sided = [peer for peer in lacking if peer in given or peer not in self._outgoing]
        size = self.rules.vector_bytes
        notes = [
            known.ready.note for known in self._peers.values() if known.ready and known.position == position
        ]
        return Summed(
            position,
            total.total.view(np.int32).data.cast("B") if total else None,
            taken,
            {p: self._lost if p in self._set else self._absence(p, position) or "late" for p in lacking},
            max(notes, default=0.0),
            {p: (size * (p in given), size * (p in taken)) for p in sorted({*given, *taken})},
            len(one_sided) / max(1, len(self._incoming)),
            self._lost,
        )

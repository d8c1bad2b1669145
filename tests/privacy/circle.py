"""Secure-sum machines that talk to each other message by message, with a hook for whoever tampers."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from torch import Tensor

from p2pqg.gossip.edge import Rules
from p2pqg.gossip.graphs import FixedGraphs
from p2pqg.gossip.machine import Drop, Send
from p2pqg.gossip.messages import Data, Hello, Message
from p2pqg.gossip.secure import SecureGossip
from p2pqg.gossip.sums import Mask, Summed
from p2pqg.privacy.keys import KeyRing
from p2pqg.privacy.masking import encode
from p2pqg.privacy.sums import SecureSums
from p2pqg.security import Identity
from p2pqg.topology import build

TIMEOUT_S = 10.0
Tamper = Callable[[str, str, Message], Sequence[Message]]
"""What arrives instead of a message from one agent to another."""


@dataclass
class Member:
    gossip: SecureGossip
    sums: SecureSums
    x: Tensor
    results: dict[int, Summed] = field(default_factory=dict)
    alive: bool = True


class Circle:
    """`n` agents `a`, `b`, ... on a topology, with models of `d` parameters."""

    def __init__(
        self,
        n: int = 4,
        topology: str = "ring",
        d: int = 6,
        tamper: Tamper | None = None,
        identities: dict[str, Identity] | None = None,
    ) -> None:
        self.names = tuple("abcdefgh"[:n])
        self.graph = build(topology, n)
        self.tamper = tamper or (lambda sender, receiver, message: [message])
        self.now = 1.0
        self.queue: deque[tuple[str, str, Message]] = deque()
        self.transcript: list[tuple[str, str, Message]] = []
        self.dropped: dict[str, list[str]] = defaultdict(list)
        self.masks: list[tuple[str, int, Mask]] = []
        self.members: dict[str, Member] = {}
        self.identities, self.d = identities or {}, d
        self.stop_after: tuple[int, str] | None = None
        for name in self.names:
            self.start(name)
        for a in self.names:
            for b in self.members[a].gossip.edges:
                self.members[a].gossip.connected(b)
        self.pump()

    def start(self, name: str, incarnation: int = 1, round: int = 0) -> None:
        """A new life; its key depends on it alone, so that runs can be repeated."""
        graphs = FixedGraphs(name, self.names, self.graph)
        private = X25519PrivateKey.from_private_bytes(f"{name}{incarnation}".encode().ljust(32))
        identity = self.identities.get(name)
        sums = SecureSums(KeyRing("net", "1", name, incarnation, lambda: identity, private))
        greeting = Hello("net", "1", name, incarnation, round=round)
        gossip = SecureGossip(
            greeting,
            graphs.sought,
            Rules(4 * self.d, "fixed32", 1, TIMEOUT_S),
            keys=sums.keys,
            senders_to=graphs.senders_to,
        )
        seed = self.names.index(name)
        x = torch.randn(self.d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.members[name] = Member(gossip, sums, x)

    def connect(self, a: str, b: str) -> None:
        self.members[a].gossip.connected(b)
        self.members[b].gossip.connected(a)

    def kill(self, name: str) -> None:
        """Without a word."""
        self.members[name].alive = False
        self.queue = deque(entry for entry in self.queue if name not in entry[:2])
        for peer in self.members[name].gossip.edges:
            if self.members[peer].alive:
                self.members[peer].gossip.disconnected(name, "crashed")

    def begin(self, round: int, *names: str, vectors: dict[str, Tensor] | None = None) -> None:
        """Everybody, or those named, enter a round; what can happen at once does."""
        for name in names or self.names:
            member = self.members[name]
            if member.alive:
                i = self.names.index(name)
                graph = self.graph.graph(round)
                member.sums.enter((vectors or {}).get(name, member.x))
                member.gossip.begin(
                    (round, 0),
                    memoryview(b""),
                    checksum=0,
                    norm=0.0,
                    incoming=[self.names[j] for j in graph.incoming[i]],
                    outgoing=[self.names[j] for j in graph.outgoing[i]],
                    now=self.now,
                )
        self.pump()

    def pass_time(self, seconds: float) -> None:
        end_s = self.now + seconds
        while self.now < end_s:
            self.now += 1.0
            for member in self.members.values():
                if member.alive:
                    member.gossip.tick(self.now)
            self.pump()

    def pump(self) -> None:
        """Until nobody has anything to say."""
        while True:
            for name, member in self.members.items():
                if member.alive:
                    self.carry_out(name, member)
            if not self.queue:
                return
            sender, receiver, message = self.queue.popleft()
            self.transcript.append((sender, receiver, message))
            if self.members[receiver].alive:
                self.members[receiver].gossip.received(sender, message, self.now)
            if self.stop_after and len(self.transcript) == self.stop_after[0]:
                self.carry_out(receiver, self.members[receiver])
                self.kill(self.stop_after[1])

    def carry_out(self, name: str, member: Member) -> None:
        for output in member.gossip.outputs():
            match output:
                case Send(peer, message):
                    self.queue += [(name, peer, sent) for sent in self.tamper(name, peer, message)]
                case Drop(peer, reason):
                    self.dropped[name].append(reason)
                    member.gossip.disconnected(peer, reason)
                    if self.members[peer].alive:
                        self.members[peer].gossip.disconnected(name, "dropped")
                case Mask():
                    payload, checksum, check = member.sums.mask(output)
                    member.gossip.masked(output, payload, checksum=checksum, check=check, now=self.now)
                    self.masks.append((name, member.sums.keys.own.incarnation, output))
                case Summed():
                    member.results[output.position[0]] = output

    # ---- what should be, and what was seen

    def plain_sum(self, result: Summed) -> Tensor:
        """The unmasked fixed-point sum of those in a result."""
        total = torch.zeros(self.d, dtype=torch.int32)
        for name, weight in result.weights.items():
            total += encode(self.members[name].x, weight)[0]
        return total

    def seen(self, receiver: str, sender: str) -> list[bytes]:
        """Chunks that crossed an edge."""
        return [
            bytes(m.payload)
            for a, b, m in self.transcript
            if (a, b) == (sender, receiver) and isinstance(m, Data)
        ]

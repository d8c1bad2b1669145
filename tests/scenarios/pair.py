"""Two machines, one edge, and full control over every message between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xxhash

from p2pqg.gossip.edge import Edge, Rules
from p2pqg.gossip.machine import Drop, Exchanged, Gossip, Send
from p2pqg.gossip.messages import Hello, Message
from p2pqg.wire.tensors import payload

COORDINATOR, PARTICIPANT = "agent-000", "agent-001"
TIMEOUT_S = 10.0
D = 4
RULES = Rules(vector_bytes=8 * D, wire="float64", vectors=1, round_timeout_s=TIMEOUT_S)

Lose = Callable[[Message], bool]


def greeting(name: str, **changes: Any) -> Hello:
    table = {"network": "n", "run": "r", "agent": name, "incarnation": 1, "settings": {"beta": "0.9"}}
    return Hello(**(table | changes))


class End:
    """One agent with one neighbour: a model `x: [D]`, a machine, and what it said and did."""

    def __init__(self, name: str, peer: str, hello: Hello, x: torch.Tensor) -> None:
        self.name, self.peer, self.x = name, peer, x
        self.gossip = Gossip(hello, [peer], RULES)
        self.round = self._start = hello.round
        self.exchanged: list[Exchanged] = []
        self.drops: list[Drop] = []
        self.inbox: deque[Message] = deque()
        self.alive, self.frozen = True, False

    @property
    def edge(self) -> Edge:
        return self.gossip.edges[self.peer]

    @property
    def waiting(self) -> bool:
        """Whether an exchange is open."""
        return self.round > self._start + len(self.exchanged)

    def reason(self) -> str | None:
        """Why the last exchange did without the peer; None if it did not."""
        return self.exchanged[-1].missed.get(self.peer)

    def apply(self, contributions: Any) -> None:
        for c in contributions:
            theirs, own = (torch.from_numpy(np.frombuffer(b).copy()) for b in (c.theirs, c.own))
            self.x = self.x + c.weight * (theirs - own)


class Pair:
    """A coordinator and a participant, connected, in virtual time. Nothing moves unless told to."""

    def __init__(self, coordinator: Hello | None = None, participant: Hello | None = None) -> None:
        self.now = 0.0
        self.a = End(
            COORDINATOR, PARTICIPANT, coordinator or greeting(COORDINATOR), torch.arange(4.0).double()
        )
        self.b = End(PARTICIPANT, COORDINATOR, participant or greeting(PARTICIPANT), -torch.ones(D).double())
        self.sum = self.a.x + self.b.x
        self.lose: Lose = lambda message: False
        self.copies = 1
        self.seq = 0
        self.listener = self.a
        self.connect()

    @property
    def speaker(self) -> str:
        """Whose message `lose` is asked about."""
        return self.listener.peer

    @property
    def ends(self) -> tuple[End, End]:
        return self.a, self.b

    @property
    def exact(self) -> bool:
        """Whether the mean over both is what it was in the beginning."""
        return torch.allclose(self.a.x + self.b.x, self.sum, rtol=0, atol=1e-12)

    def other(self, end: End) -> End:
        return self.b if end is self.a else self.a

    def connect(self) -> None:
        self.a.inbox.clear()
        self.b.inbox.clear()
        for end in self.ends:
            end.gossip.connected(end.peer)
            self.carry_out(end)
        self.flow()

    def disconnect(self) -> None:
        for end in self.ends:
            end.gossip.disconnected(end.peer, "connection lost")
            self.carry_out(end)
        self.a.inbox.clear()
        self.b.inbox.clear()

    def begin(self, *ends: End, **changes: Any) -> None:
        """The given ends (both, if none is) enter their next exchange."""
        for end in ends or self.ends:
            data = payload(end.x.clone())
            offer: dict[str, Any] = {
                "checksum": xxhash.xxh3_64_intdigest(data),
                "norm": float(end.x.norm()),
                "incoming": [end.peer],
                "outgoing": [end.peer],
            }
            end.gossip.begin((end.round, 0), data, now=self.now, **(offer | changes))
            end.round += 1
            self.carry_out(end)

    def flow(self, *, until: Lose | None = None) -> None:
        """Deliver what is on its way until nothing is, or until a message of the given kind is next."""
        while any(end.inbox and not end.frozen for end in self.ends):
            for end in self.ends:
                if end.frozen:
                    continue
                if end.inbox and until is not None and until(end.inbox[0]):
                    return
                if end.inbox:
                    self.deliver(end, end.inbox.popleft())

    def deliver(self, end: End, message: Message) -> None:
        """`message` reaches `end`, whoever made it."""
        if end.alive:
            end.gossip.received(end.peer, message, self.now)
            self.carry_out(end)

    def round(self) -> None:
        """One round of both, with all its messages."""
        self.begin()
        self.flow()

    def wait(self, seconds: float, *ends: End) -> None:
        """Let time pass for the given ends (both, if none is), a tenth of a second at a time."""
        for _ in range(round(10 * seconds)):
            self.now += 0.1
            for end in ends or self.ends:
                if end.alive and not end.frozen:
                    end.gossip.tick(self.now)
                    self.carry_out(end)
            self.flow()

    def kill(self, end: End) -> None:
        """`end` dies; what it said is still on its way, and the other notices when `disconnect` says so."""
        end.alive = False
        end.inbox.clear()

    def restart(self, end: End, x: torch.Tensor, round: int) -> End:
        """A new incarnation of `end` from a checkpoint, connected."""
        hello = end.edge.greeting
        new = End(end.name, end.peer, greeting(end.name, incarnation=hello.incarnation + 1, round=round), x)
        self.other(end).inbox.clear()
        self.other(end).gossip.disconnected(end.name, "connection lost")
        self.carry_out(self.other(end))
        if end is self.a:
            self.a = new
        else:
            self.b = new
        self.connect()
        return new

    def carry_out(self, end: End) -> None:
        for output in end.gossip.outputs():
            match output:
                case Send(_, message):
                    self.listener = self.other(end)
                    if end.alive and not self.lose(message):
                        self.listener.inbox.extend([message] * self.copies)
                case Drop():
                    end.drops.append(output)
                case Exchanged():
                    end.exchanged.append(output)
                    end.apply((*output.contributions, *output.late))

    def settle(self) -> None:
        """Apply what was settled after the last exchange."""
        for end in self.ends:
            end.apply(end.gossip.late(exchange=0))

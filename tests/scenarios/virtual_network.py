"""A seeded network of gossip machines: no sockets, no asyncio, no clock but an event queue.

Devices average a number (plus a little drift of their own) over a topology while messages are delayed, lost
and doubled, connections break, devices freeze, or die and come back as a new incarnation. After every event
a ledger checks what the protocol promises:

* a pair update is applied by both ends, with opposite signs, or by neither. Where the coordinator has
  applied it and the participant has not, the participant knows (it is past PREPARED, or in doubt);
* so the sum over live devices, with what is decided but not yet applied, never changes;
* no exchange is open for longer than its deadlines allow.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import torch
import xxhash

from p2pqg.gossip.edge import PATIENCE, Contribution, Rules
from p2pqg.gossip.machine import Drop, Exchanged, Gossip, Send
from p2pqg.gossip.messages import Bye, Hello, Message, Refuse
from p2pqg.seeds import numpy_generator
from p2pqg.topology import build
from p2pqg.wire.tensors import payload

TIMEOUT_S = 2.0
TICK_S = 0.1
LONGEST_S = (2 * (1 + PATIENCE) + 1) * TIMEOUT_S + 2 * TICK_S
"""An exchange: a peer is held up by another and gets one more deadline; a participant promises at its last
moment, and then waits for the verdict."""

Key = tuple[int, int, tuple[int, int]]
"""Coordinator, participant, position."""


@dataclass(frozen=True)
class Weather:
    """What goes wrong until `until_s`; rates are events a second over the whole network."""

    delay_s: float = 0.05
    """Mean time of a message on its way."""
    think_s: float = 0.05
    """Mean time of a local step."""
    drop: float = 0.0
    duplicate: float = 0.0
    breaks: float = 0.0
    kills: float = 0.0
    freezes: float = 0.0
    until_s: float = 40.0


@dataclass(eq=False)
class Line:
    """One connection. In each direction messages arrive in order, until it is cut."""

    ends: tuple[int, int]
    lives: dict[int, int]
    """Which life of each end it was made by."""
    last_s: dict[int, float] = field(default_factory=lambda: {})
    cut_s: dict[int, float] = field(default_factory=dict)

    def other(self, end: int) -> int:
        return self.ends[0] if end == self.ends[1] else self.ends[1]


@dataclass(eq=False)
class Device:
    """One agent without its training: a value, a round, and the machine."""

    index: int
    gossip: Gossip
    x: torch.Tensor
    round: int = 0
    incarnation: int = 1
    alive: bool = True
    frozen_until_s: float = 0.0
    lines: dict[int, Line] = field(default_factory=dict)
    sent: torch.Tensor | None = None
    began_s: float = 0.0
    decided: dict[tuple[int, tuple[int, int]], float | None] = field(default_factory=dict)
    """By peer and position: the change that a decided exchange makes, None once it is in `x`."""
    checkpoint: tuple[torch.Tensor, int] = (torch.zeros(1), 0)


class VirtualNetwork:
    """`n` devices that do `rounds` rounds on `topology`; `run` returns when all are done."""

    def __init__(self, seed: int, topology: str, n: int, rounds: int, weather: Weather | None = None) -> None:
        self.topology, self.rounds, self.weather = build(topology, n), rounds, weather or Weather()
        self.now = 0.0
        self.missed: Counter[str] = Counter()
        self.committed = self.late = self.killed = self.events = 0
        self.longest_s = 0.0
        self._random = numpy_generator(seed, "virtual network", topology)
        self._queue: list[tuple[float, int, int | None, Callable[[], None]]] = []
        self._count = count()
        self._open: dict[Key, float] = {}  # decided by the coordinator, not yet by the participant
        self._orphans: dict[Key, float] = {}  # the coordinator died; its verdict may still be on its way
        self._leaked = self._counted = 0
        self.devices = []
        for i in range(n):
            x = torch.tensor([float(self._random.normal())], dtype=torch.float64)
            self.devices.append(Device(i, self._machine(i, 1, 0), x, checkpoint=(x, 0)))
        self._expected = self._total()
        for device in self.devices:
            self._start(device)
        for event, rate in (
            (self._break_any, self.weather.breaks),
            (self._kill_any, self.weather.kills),
            (self._freeze_any, self.weather.freezes),
        ):
            if rate:
                self._again(event, rate)

    def run(self, limit_s: float = 1000.0) -> None:
        """Until every device has done its rounds, all are connected and nothing is in doubt."""
        while not self.done:
            self.step()
            assert self.now < limit_s, f"rounds {[d.round for d in self.devices]} after {self.now:.0f} s"

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        end_s = self.now + seconds
        while self._queue[0][0] <= end_s:
            self.step()

    @property
    def done(self) -> bool:
        if self.now <= self.weather.until_s or any(d.round < self.rounds for d in self.devices):
            return False
        edges = [edge for device in self.devices for edge in device.gossip.edges.values()]
        return all(device.alive for device in self.devices) and all(e.live and not e.in_doubt for e in edges)

    def step(self) -> None:
        """The next event."""
        self.now, _, addressee, event = heapq.heappop(self._queue)
        device = self.devices[addressee] if addressee is not None else None
        if device is not None and device.frozen_until_s > self.now:
            self._at(device.frozen_until_s, addressee, event)
            return
        self.events += 1
        event()
        if device is not None and device.alive:
            self._carry_out(device)
            self._look(device)
        self._check()

    @property
    def leaks(self) -> int:
        """Pair updates of which one end died and the other has, or will have, the wrong half."""
        return self._leaked + len(self._orphans)

    @property
    def counted(self) -> int:
        """Leaks that the devices know of, or knew of before they died."""
        return self._counted + sum(e.leaked for d in self.devices for e in d.gossip.edges.values())

    # ---- devices

    def _machine(self, i: int, incarnation: int, round: int) -> Gossip:
        greeting = Hello("virtual", "run", self._name(i), incarnation, {"d": "1"}, round=round)
        names = [self._name(j) for j in self.topology.neighbours(i)]
        return Gossip(greeting, names, Rules(8, "float64", 1, TIMEOUT_S))

    def _name(self, i: int) -> str:
        return f"agent-{i:03d}"

    def _index(self, name: str) -> int:
        return int(name[-3:])

    def _start(self, device: Device) -> None:
        i, life = device.index, device.incarnation
        for j in self.topology.neighbours(i):
            if i < j:
                self._dial(i, j, life)

        def tick() -> None:
            if device.incarnation == life and device.alive:
                device.gossip.tick(self.now)
                self._at(self.now + TICK_S, i, tick)

        self._at(self.now + self._random.uniform(0, TICK_S), i, tick)
        self._think(device)

    def _think(self, device: Device) -> None:
        life = device.incarnation

        def begin() -> None:
            if device.incarnation != life or not device.alive:
                return
            if device.round == 0 and len(device.gossip.live) < len(device.gossip.edges) and self.now < 5:
                self._think(device)  # nobody starts alone
            else:
                self._begin(device)

        if device.round < self.rounds:
            self._at(self.now + self._random.exponential(self.weather.think_s), device.index, begin)

    def _begin(self, device: Device) -> None:
        drift = self._random.normal() / 10
        self._expected += drift
        device.x = device.x + drift
        device.sent = device.x
        data = payload(device.x.clone())
        graph = self.topology.graph(device.round)
        device.began_s = self.now
        device.gossip.begin(
            (device.round, 0),
            data,
            checksum=xxhash.xxh3_64_intdigest(data),
            norm=float(device.x.norm()),
            incoming=[self._name(j) for j in graph.incoming[device.index]],
            outgoing=[self._name(j) for j in graph.outgoing[device.index]],
            now=self.now,
        )

    def _carry_out(self, device: Device) -> None:
        for output in device.gossip.outputs():
            match output:
                case Send(peer, message):
                    if (line := device.lines.get(self._index(peer))) is not None:
                        self._send(device, line, message)
                case Drop(peer, reason, _):
                    self.missed[f"dropped: {reason}"] += 1
                    if (line := device.lines.pop(self._index(peer), None)) is not None:
                        device.gossip.disconnected(peer, reason)
                        self._cut(line, behind_all=line.other(device.index))
                        self._redial(device, line)
                case Exchanged():
                    self._finish(device, output)

    def _finish(self, device: Device, exchanged: Exchanged) -> None:
        self.longest_s = max(self.longest_s, self.now - max(device.began_s, device.frozen_until_s))
        updates = (*exchanged.contributions, *exchanged.late)
        self.missed.update(exchanged.missed.values())
        self.committed += len(exchanged.contributions)
        self.late += len(exchanged.late)
        assert device.sent is not None
        device.x = device.sent
        for update in updates:
            self._decide(device, update)
            device.decided[self._index(update.peer), update.position] = None
            device.x = device.x + _change(update)
        device.sent = None
        device.round += 1
        if device.round % 5 == 0:
            device.checkpoint = device.x, device.round
        self._think(device)

    # ---- the ledger

    def _look(self, device: Device) -> None:
        """Notice what the edges have decided."""
        for edge in device.gossip.edges.values():
            for update in ([edge.result] if isinstance(edge.result, Contribution) else []) + edge.late:
                self._decide(device, update)

    def _decide(self, device: Device, update: Contribution) -> None:
        i, j = device.index, self._index(update.peer)
        if (j, update.position) in device.decided or not self.topology.symmetric:
            return
        change = _change(update)
        device.decided[j, update.position] = change
        key = (min(i, j), max(i, j), update.position)
        if i > j and key in self._orphans:  # the verdict of a coordinator that died after sending it
            assert self._orphans.pop(key) == -change
            self._expected += change
        elif i > j:
            assert key in self._open, f"{key}: applied by the participant, not by the coordinator"
            assert self._open.pop(key) == -change
        elif self._knows(i, j):
            assert key not in self._open
            self._open[key] = change
        else:  # the promise of a participant that died after sending it
            self._leaked += 1
            self._expected += change

    def _knows(self, i: int, j: int) -> bool:
        """Whether i is connected to the living j, and not to one that is dead without i knowing it."""
        line, peer = self.devices[i].lines.get(j), self.devices[j]
        return peer.alive and line is not None and line.lives[j] == peer.incarnation

    def _check(self) -> None:
        for coordinator, participant, position in self._open:
            edge = self.devices[participant].gossip.edges[self._name(coordinator)]
            assert edge.in_doubt or edge.committing, (
                f"{position}: applied by {coordinator}, and {participant} never will"
            )
        if self.topology.symmetric:
            assert abs(self._total() - self._expected) < 1e-11
        for device in self.devices:
            for edge in device.gossip.edges.values():
                assert len(edge.late) <= 1
            if device.alive and device.sent is not None and device.frozen_until_s <= self.now:
                waited_s = self.now - max(device.began_s, device.frozen_until_s)
                assert waited_s <= LONGEST_S, f"{device.index} waits since {waited_s:.1f} s"

    def _total(self) -> float:
        live = [d for d in self.devices if d.alive]
        decided = sum(change for d in live for change in d.decided.values() if change is not None)
        return sum(d.x.item() for d in live) + decided - sum(self._open.values())

    # ---- lines

    def _dial(self, i: int, j: int, life: int) -> None:
        """Device i tries to reach j until a line stands."""

        def attempt() -> None:
            near, far = self.devices[i], self.devices[j]
            if near.incarnation != life or not near.alive or j in near.lines:
                return
            if not far.alive or far.frozen_until_s > self.now:
                self._at(self.now + self._random.uniform(0.1, 0.5), i, attempt)
                return
            line = Line((i, j), {i: near.incarnation, j: far.incarnation})
            self._connect(far, i, line)
            self._carry_out(far)
            self._look(far)
            self._connect(near, j, line)

        self._at(self.now + self._random.uniform(0, 0.2), i, attempt)

    def _connect(self, device: Device, peer: int, line: Line) -> None:
        if device.lines.pop(peer, None) is not None:
            device.gossip.disconnected(self._name(peer), "replaced by a newer connection")
        device.lines[peer] = line
        device.gossip.connected(self._name(peer))

    def _send(self, device: Device, line: Line, message: Message) -> None:
        receiver = line.other(device.index)
        copies = 1
        if self.now < self.weather.until_s and not isinstance(message, Hello | Refuse | Bye):
            copies -= self._random.random() < self.weather.drop
            copies += copies and self._random.random() < self.weather.duplicate
        for copy in range(copies):
            arrival_s = max(self.now + self._delay(), line.last_s.get(receiver, 0.0))
            if copy:
                arrival_s += self._delay()
            else:
                line.last_s[receiver] = arrival_s
            self._at(arrival_s, receiver, lambda: self._arrive(line, receiver, message))

    def _arrive(self, line: Line, receiver: int, message: Message) -> None:
        device = self.devices[receiver]
        if device.lines.get(line.other(receiver)) is line and self.now <= line.cut_s.get(receiver, np.inf):
            device.gossip.received(self._name(line.other(receiver)), message, self.now)

    def _cut(self, line: Line, behind_all: int | None = None) -> None:
        """Each end notices in its own time; what arrives later is lost. `behind_all` names an end that
        still gets what was sent to it."""
        for end in line.ends:
            notices_s = self.now + self._delay()
            if end == behind_all:
                notices_s = max(notices_s, line.last_s.get(end, 0.0))
            line.cut_s[end] = min(line.cut_s.get(end, np.inf), notices_s)
            self._at(notices_s, end, lambda end=end: self._lost(line, end))  # type: ignore[misc]

    def _lost(self, line: Line, end: int) -> None:
        device, peer = self.devices[end], line.other(end)
        if device.lines.get(peer) is line:
            del device.lines[peer]
            device.gossip.disconnected(self._name(peer), "connection lost")
            self._redial(device, line)

    def _redial(self, device: Device, line: Line) -> None:
        if device.index == min(line.ends) and device.alive:
            self._dial(device.index, max(line.ends), device.incarnation)

    # ---- weather

    def _again(self, event: Callable[[], None], rate: float) -> None:
        def happen() -> None:
            if self.now < self.weather.until_s:
                event()
                self._again(event, rate)

        self._at(self.now + self._random.exponential(1 / rate), None, happen)

    def _any(self) -> Device:
        return self.devices[self._random.integers(len(self.devices))]

    def _break_any(self) -> None:
        device = self._any()
        if device.lines:
            lines = sorted(device.lines.items())
            self._cut(lines[self._random.integers(len(lines))][1])

    def _freeze_any(self) -> None:
        device = self._any()
        device.frozen_until_s = max(device.frozen_until_s, self.now + self._random.exponential(TIMEOUT_S))

    def _kill_any(self) -> None:
        device = self._any()
        if device.alive:
            self.kill(device.index)
            self._at(self.now + self._random.exponential(3.0), None, lambda: self.restart(device.index))

    def kill(self, i: int) -> None:
        """The device dies without a word."""
        device = self.devices[i]
        self.killed += 1
        device.alive, device.sent, device.frozen_until_s = False, None, 0.0
        for line in device.lines.values():
            self._cut(line)
        device.lines.clear()
        for key in [key for key in self._open if i in key[:2]]:
            change = self._open.pop(key)
            if i == key[0]:
                self._orphans[key] = change
            else:
                self._leaked += 1
        self._expected = self._total()

    def restart(self, i: int) -> None:
        """It comes back from its last checkpoint, as a new incarnation."""
        device = self.devices[i]
        device.alive, device.decided = True, {}
        device.incarnation += 1
        device.x, device.round = device.checkpoint
        self._counted += sum(edge.leaked for edge in device.gossip.edges.values())
        device.gossip = self._machine(i, device.incarnation, device.round)
        for j in self.topology.neighbours(i):
            if j < i and (line := self.devices[j].lines.get(i)) is not None:
                self._cut(line)
        self._expected = self._total()
        self._start(device)

    def _delay(self) -> float:
        return float(self._random.exponential(self.weather.delay_s))

    def _at(self, when_s: float, addressee: int | None, event: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when_s, next(self._count), addressee, event))


def _change(update: Contribution) -> float:
    """w (Q_j - Q_i)."""
    if not update.weight:  # the sending end of a directed edge
        return 0.0
    return update.weight * float(np.frombuffer(update.theirs)[0] - np.frombuffer(update.own)[0])

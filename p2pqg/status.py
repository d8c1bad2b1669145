"""What an agent tells whoever looks at it: one snapshot, served by the web page and the control socket alike.

Times are seconds since the agent started, from its monotonic clock: no device has to have the right date.
Everything here is bounded, however long the agent runs and whatever its peers say.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

CURVES = ("loss", "test_loss", "test_accuracy", "disagreement", "round_s", "bytes_sent")
"""Measurements that are kept as curves, under their names in ``metrics.jsonl``."""
POINTS = 1000
"""A curve that would hold more is thinned out to half."""
EVENTS = 200
RECENT = 50
"""Rounds that the quality of a link and the pace look back."""
REPEATS = 20
"""Last events that a new one may repeat."""
TEXT = 300
"""Longest text of an event: peers write some of them."""

Phase = Literal["starting", "training", "agreeing", "finished", "stopping"]


@dataclass(frozen=True, slots=True)
class Link:
    """One edge of this agent, as seen from here.

    `mixed` and `missed` count rounds; `quality` is the share of the last `RECENT` rounds in which the edge
    took part, None before the first. `leaked` exchanges died with a peer between promise and verdict.
    """

    peer: str
    state: Literal["live", "missing", "refused", "left"]
    reason: str
    round: int | None
    round_trip_s: float | None
    mixed: int
    missed: int
    quality: float | None
    leaked: int
    bytes_sent: int
    bytes_received: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth a line in the log. What happens again in another round is one event that happened
    several `times`, `at_s` the last of them."""

    at_s: float
    event: str
    details: Mapping[str, str]
    times: int = 1

    def repeats(self, other: Event) -> bool:
        """Whether this is `other` again, in whatever round."""
        return self.event == other.event and {**self.details, "round": ""} == {**other.details, "round": ""}


@dataclass(frozen=True, slots=True)
class Privacy:
    """What differential privacy has cost so far, and the budget at which training stops (None: no limit)."""

    epsilon: float
    delta: float
    budget: float | None


@dataclass(frozen=True, slots=True)
class Status:
    """One agent at one moment.

    `address` is where the agent listens, empty until it does. `edges` are all edges of the network as its
    topology file has them; `links` what this agent knows of its own. `remaining_s` is an estimate from the
    recent rounds, None before the first. `latest` holds the last value of each of `CURVES` that was
    measured.
    """

    version: str
    network: str
    run: str
    agent: str
    address: str
    incarnation: int
    phase: Phase
    secured: bool
    algorithm: str
    topology: str
    parameters: int
    samples: int
    round: int
    rounds: int
    uptime_s: float
    remaining_s: float | None
    agents: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]
    links: tuple[Link, ...]
    latest: Mapping[str, float]
    bytes_sent: int
    bytes_received: int
    privacy: Privacy | None
    events: tuple[Event, ...]

    def as_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return asdict(self)


@dataclass(slots=True)
class Curve:
    """(round, value) of one measurement, at most `POINTS` of them, spread over the whole run."""

    rounds: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    _stride: int = 1
    _skipped: int = 0

    def add(self, round: int, value: float) -> None:
        """Keep a point, or leave it out between those that are kept."""
        self._skipped += 1
        if self._skipped < self._stride:
            return
        self._skipped = 0
        self.rounds.append(round)
        self.values.append(value)
        if len(self.rounds) > POINTS:
            self.rounds, self.values = self.rounds[::2], self.values[::2]
            self._stride *= 2


class Journal:
    """What is remembered of a run: curves, the last value of each, recent events. Holds no clock: who notes
    something says when."""

    def __init__(self) -> None:
        self.curves = {name: Curve() for name in CURVES}
        self.latest: dict[str, float] = {}
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._pace: deque[float] = deque(maxlen=RECENT)
        self._took_part: dict[str, deque[bool]] = {}

    def measured(self, round: int, values: Mapping[str, Any]) -> None:
        """Remember one line of the metrics."""
        for name, curve in self.curves.items():
            value = values.get(name)
            if value is not None and math.isfinite(value):
                self.latest[name] = value
                curve.add(round, value)
        if "round_s" in values:
            self._pace.append(values["round_s"])

    def note(self, event: str, details: Mapping[str, Any], at_s: float) -> None:
        """Remember an event."""
        new = Event(at_s, event, {key: _short(value) for key, value in details.items()})
        for old in list(self._events)[-REPEATS:]:
            if new.repeats(old):
                self._events.remove(old)
                new = replace(new, times=old.times + 1)
        self._events.append(new)

    def mixed(self, committed: Iterable[str], missed: Iterable[str]) -> None:
        """Remember which edges took part in a round."""
        for peers, took_part in ((set(committed), True), (set(missed), False)):
            for peer in peers:
                self._took_part.setdefault(peer, deque(maxlen=RECENT)).append(took_part)

    def quality(self, peer: str) -> float | None:
        """See `Link.quality`."""
        recent = self._took_part.get(peer)
        return sum(recent) / len(recent) if recent else None

    @property
    def pace_s(self) -> float | None:
        """Mean duration of the last rounds."""
        return sum(self._pace) / len(self._pace) if self._pace else None

    @property
    def events(self) -> tuple[Event, ...]:
        """The last `EVENTS` events, oldest first."""
        return tuple(self._events)

    def as_json(self) -> dict[str, Any]:
        """The curves, for `json.dumps`."""
        return {name: {"round": c.rounds, "value": c.values} for name, c in self.curves.items() if c.rounds}


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= TEXT else f"{text[: TEXT - 1]}…"

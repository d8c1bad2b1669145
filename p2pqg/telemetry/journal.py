"""What an agent remembers of its run, and the network as it sees it.

Times are seconds since the agent started, from its monotonic clock: no device has to have the right date.
Everything here is bounded, however long the agent runs and whatever its peers say.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

CURVES = ("loss", "test_loss", "test_accuracy", "disagreement", "round_s", "bytes_sent")
"""Measurements that are kept as curves, under their names in ``metrics.jsonl``."""
POINTS = 1000
"""A curve that would hold more is thinned out to half."""
EVENTS = 200
RECENT = 50
"""Rounds that the quality of a link looks back."""
REPEATS = 20
"""Last events that a new one may repeat."""
TEXT = 300
"""Longest text of an event: peers write some of them."""


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
class View:
    """What `Status` cannot know from events: the network as this agent sees it, and what it remembers.

    `edges` are all edges of the network; `links` what this agent knows of its own. `latest` holds the last
    value of each of `CURVES` that was measured.
    """

    incarnation: int
    parameters: int
    samples: int
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
    """Listens to one agent's events, and remembers curves, the last value of each, the quality of links and
    recent events; safe to read from another thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._began = now, now()
        self._lock = threading.Lock()
        self._curves = {name: Curve() for name in CURVES}
        self._latest: dict[str, float] = {}
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._took_part: dict[str, deque[bool]] = {}

    def observe(self, event: str, details: Mapping[str, Any]) -> None:
        """Take one event."""
        with self._lock:
            match event:
                case "round":
                    self._measured(details)
                    self._mixed(details.get("exchanged", ()), details.get("missed", ()))
                case "agreeing":
                    self._measured(details)
                case "checkpoint":
                    pass
                case _:
                    self._note(event, details)

    def resume(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take the metrics of an earlier start of this run."""
        with self._lock:
            for line in lines:
                self._measured(line)

    def quality(self, peer: str) -> float | None:
        """See `Link.quality`."""
        with self._lock:
            recent = self._took_part.get(peer)
            return sum(recent) / len(recent) if recent else None

    @property
    def latest(self) -> dict[str, float]:
        """The last value of each curve that has one."""
        with self._lock:
            return dict(self._latest)

    @property
    def events(self) -> tuple[Event, ...]:
        """The last `EVENTS` events, oldest first."""
        with self._lock:
            return tuple(self._events)

    def curves(self) -> dict[str, dict[str, list[Any]]]:
        """Rounds and values of each curve that has any, for `json.dumps`."""
        with self._lock:
            return {
                name: {"round": list(curve.rounds), "value": list(curve.values)}
                for name, curve in self._curves.items()
                if curve.rounds
            }

    def _measured(self, line: Mapping[str, Any]) -> None:
        for name, curve in self._curves.items():
            value = line.get(name)
            if value is not None and math.isfinite(value):
                self._latest[name] = value
                curve.add(line["round"], value)

    def _mixed(self, exchanged: Iterable[str], missed: Iterable[str]) -> None:
        for peers, took_part in ((exchanged, True), (missed, False)):
            for peer in peers:
                self._took_part.setdefault(peer, deque(maxlen=RECENT)).append(took_part)

    def _note(self, event: str, details: Mapping[str, Any]) -> None:
        texts = {key: _short(value) for key, value in details.items()}
        new = Event(self._now() - self._began, event, texts)
        for old in list(self._events)[-REPEATS:]:
            if new.repeats(old):
                self._events.remove(old)
                new = replace(new, times=old.times + 1)
        self._events.append(new)


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= TEXT else f"{text[: TEXT - 1]}…"

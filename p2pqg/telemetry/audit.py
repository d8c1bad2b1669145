"""The audit log: who joined, who was refused and why, what was exchanged with whom, who gave which command.

    {"time": "2026-03-01T08:00:00Z", "agent": "bern", "event": "exchanged", "peer": "basel",
     "rounds": [0, 99], "exchanges": 100, "bytes_sent": 4000000, "bytes_received": 4000000}

It is never shortened. Exchanges are summed up for each peer and written at a checkpoint, when the peer
leaves and at the end; after a crash the sums since the last line are lost, and the rounds show the gap. A
peer that is refused again and again for one reason costs one line in `REPEAT_S`. An agent that cannot write
its audit log stops: nothing is exchanged unrecorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from p2pqg.telemetry.jsonl import JsonLines

REPEAT_S = 600.0
MAX_REMEMBERED = 1000
"""Different refusals within `REPEAT_S` that are told apart; beyond them, they are counted together."""

REFUSALS = ("refused", "stranger", "dropped", "slowed")
RECORDED = (
    *REFUSALS,
    "started",
    "connected",
    "disconnected",
    "left",
    "finished",
    "stopped",
    "failed",
    "command",
)
LAST = ("checkpoint", "finished", "stopped", "failed")
"""Events at which sums are written."""


def utc_now() -> str:
    """The date and time, to the second."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


class Audit:
    """Writes the audit log of `agent` to `lines`."""

    def __init__(
        self,
        lines: JsonLines,
        agent: str,
        *,
        date: Callable[[], str] = utc_now,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines, self._agent, self._date, self._now = lines, agent, date, now
        self._sums: dict[str, dict[str, Any]] = {}
        self._refused: dict[tuple[str, ...], int] = {}
        self._refused_until = 0.0

    def observe(self, event: str, details: Mapping[str, Any]) -> None:
        """Take one event. Raises `StorageError` if it cannot be written."""
        if event == "round":
            self._sum_up(details)
        elif event in ("disconnected", "left"):
            self._write_sum(details["peer"])
        if event in LAST:
            for peer in sorted(self._sums):
                self._write_sum(peer)
        if event in REFUSALS and self._is_repeated(event, details):
            return
        if event in RECORDED:
            self._write(event, details)

    def _sum_up(self, details: Mapping[str, Any]) -> None:
        last = details["round"] - 1  # the event says how many rounds are done
        for peer, (sent, received) in details.get("exchanged", {}).items():
            empty = {"rounds": [last, last], "exchanges": 0, "bytes_sent": 0, "bytes_received": 0}
            sums = self._sums.setdefault(peer, empty)
            sums["rounds"][1] = last
            sums["exchanges"] += 1
            sums["bytes_sent"] += sent
            sums["bytes_received"] += received

    def _write_sum(self, peer: str) -> None:
        if sums := self._sums.pop(peer, None):
            self._write("exchanged", {"peer": peer, **sums})

    def _is_repeated(self, event: str, details: Mapping[str, Any]) -> bool:
        """Whether this refusal was written a short while ago; if so it is counted."""
        if self._now() > self._refused_until:
            if repeated := sum(self._refused.values()):
                self._write("refused again", {"times": repeated, "within_s": REPEAT_S})
            self._refused, self._refused_until = {}, self._now() + REPEAT_S
        key = (event, str(details.get("peer")), str(details.get("reason")))
        if len(self._refused) >= MAX_REMEMBERED and key not in self._refused:
            key = (event, "others", "")
        is_new = key not in self._refused
        self._refused[key] = 0 if is_new else self._refused[key] + 1
        return not is_new

    def _write(self, event: str, details: Mapping[str, Any]) -> None:
        self._lines.append({"time": self._date(), "agent": self._agent, "event": event, **details})

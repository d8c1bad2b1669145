"""Events as structured log lines: for people on a terminal, as JSON otherwise, and in the agent's home.

The file in the home is what `p2pqg logs` shows; it is bounded, so a chatty network cannot fill the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, MutableMapping
from math import isfinite
from typing import Any, Literal, TextIO

import structlog

from p2pqg.telemetry.jsonl import JsonLines

Form = Literal["auto", "console", "json"]

WARNINGS = {
    "missed", "disconnected", "refused", "dropped", "slowed", "stranger", "problem", "fallback", "privacy",
    "budget_spent", "mix_lost", "saturated",
}  # fmt: skip
ERRORS = {"failed"}
PROGRESS_S = 10.0
"""A line of progress at most so often."""
MAX_BYTES = 10_000_000
"""Of the file in the home, and of the one before it."""

Record = MutableMapping[str, Any]


def logger(form: Form, stream: TextIO, lines: JsonLines | None = None) -> Any:
    """A structlog logger that writes to `stream`, and as JSON to `lines`.

    "auto" is for people if the stream is a terminal and JSON otherwise.
    """
    human = form == "console" or (form == "auto" and stream.isatty())

    def keep(logger: Any, method: str, record: Record) -> Record:
        if lines is not None:
            lines.append(record)
        return record

    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        keep,
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if human
        else structlog.processors.JSONRenderer(),
    ]
    return structlog.wrap_logger(structlog.PrintLogger(stream), processors=processors)


class Log:
    """Logs one agent's events to `to`; rounds as a line of progress with an estimate, now and then."""

    def __init__(self, to: Any, agent: str, rounds: int, now: Callable[[], float] = time.monotonic) -> None:
        self._log = to.bind(agent=agent)
        self._rounds, self._now = rounds, now
        self._next = now() + PROGRESS_S
        self._began: tuple[float, int] | None = None
        self._missing: dict[str, tuple[int, str]] = {}

    def observe(self, event: str, details: Mapping[str, Any]) -> None:
        """Take one event."""
        if event == "round":
            self._progress(details)
        elif event != "agreeing" and not (event == "missed" and self._is_missing_still(details)):
            level = "error" if event in ERRORS else "warning" if event in WARNINGS else "info"
            getattr(self._log, level)(event, **details)

    def _is_missing_still(self, details: Mapping[str, Any]) -> bool:
        """Whether the peer was missing in the round before, for the same reason."""
        peer, round, reason = details["peer"], details["round"], details["reason"]
        before = self._missing.get(peer)
        self._missing[peer] = (round, reason)
        return before == (round - 1, reason)

    def _progress(self, details: Mapping[str, Any]) -> None:
        now, done = self._now(), details["round"]
        self._began = self._began or (now, done)
        scored = details.get("test_accuracy") is not None
        if now < self._next and not scored:
            return
        self._next = now + PROGRESS_S
        since, first = self._began
        measured = {key: details.get(key) for key in ("loss", "test_accuracy")}
        shown = {  # a private task tells no loss
            key: round(value, 4) for key, value in measured.items() if value is not None and isfinite(value)
        }
        if done > first:
            shown["remaining_s"] = round((self._rounds - done) * (now - since) / (done - first))
        self._log.info("progress", round=f"{done}/{self._rounds}", **shown)

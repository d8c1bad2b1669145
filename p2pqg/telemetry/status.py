"""What an agent is doing, put together from its events; safe to read from another thread."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from p2pqg import __version__

STATES = {
    "listening": "waiting",
    "started": "training",
    "agreeing": "agreeing",
    "finished": "finished",
    "stopped": "stopped",
    "failed": "failed",
}
"""The state an event leads to."""
RECENT_ROUNDS = 50
"""Rounds over which speed is averaged."""


class Status:
    """Listens to one agent's events.

    `about()` is what does not come from events (agent, network, run, rounds, security, ...), `problems()`
    what an operator should do something about; both are asked at each reading.
    """

    def __init__(
        self,
        about: Callable[[], Mapping[str, Any]],
        problems: Callable[[], list[str]] = list,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._about, self._problems, self._now = about, problems, now
        self._lock = threading.Lock()
        self._began = now()
        self._state = "starting"
        self._reason: str | None = None
        self._address: str | None = None
        self._metrics: dict[str, Any] = {}
        self._scores: dict[str, Any] = {}
        self._round_s: deque[float] = deque(maxlen=RECENT_ROUNDS)
        self._peers: dict[str, dict[str, Any]] = {}

    def observe(self, event: str, details: Mapping[str, Any]) -> None:
        """Take one event."""
        with self._lock:
            if event != "agreeing" or self._state == "training":
                self._state = STATES.get(event, self._state)
            match event:
                case "listening":
                    self._address = details["address"]
                case "started":
                    self._metrics["round"] = details["round"]
                    for peer in details["neighbours"]:
                        self._peer(peer)
                case "round":
                    self._round(details)
                case "agreeing":
                    self._metrics |= details
                case "connected":
                    self._peer(details["peer"]).update(connected=True, problem=None)
                case "disconnected" | "left" | "refused" | "dropped":
                    self._peer(details["peer"]).update(connected=False, problem=details["reason"])
                case "slowed":
                    self._peer(details["peer"])["problem"] = details["reason"]
                case "missed":
                    peer = self._peer(details["peer"])
                    peer["missed"] += 1
                    peer["last_missed"] = {"round": details["round"], "reason": details["reason"]}
                case "failed":
                    self._reason = details["reason"]

    def as_json(self) -> dict[str, Any]:
        """All of it, for a machine."""
        with self._lock:
            speed = sum(self._round_s) / len(self._round_s) if self._round_s else None
            about, round = self._about(), self._metrics.get("round", 0)
            left = None if speed is None else (about["rounds"] - round) * speed
            return {
                **about,
                "version": __version__,
                "pid": os.getpid(),
                "state": self._state,
                "reason": self._reason,
                "address": self._address,
                "uptime_s": self._now() - self._began,
                "round": round,
                "round_s": speed,
                "remaining_s": left if self._state == "training" else None,
                "metrics": dict(self._metrics),
                "scores": dict(self._scores),
                "neighbours": sum(peer["connected"] for peer in self._peers.values()),
                "peers": {name: dict(peer) for name, peer in sorted(self._peers.items())},
                "problems": self._problems(),
            }

    def _round(self, details: Mapping[str, Any]) -> None:
        skipped = ("exchanged", "missed")
        self._metrics = {key: value for key, value in details.items() if key not in skipped}
        self._round_s.append(details["round_s"])
        if "test_loss" in details:
            self._scores = {key: details[key] for key in ("round", "test_loss", "test_accuracy")}
        for name, (sent, received) in details.get("exchanged", {}).items():
            peer = self._peer(name)
            peer["rounds"] += 1
            peer["last_round"] = details["round"]
            peer["model_bytes_sent"] += sent
            peer["model_bytes_received"] += received

    def _peer(self, name: str) -> dict[str, Any]:
        return self._peers.setdefault(
            name,
            {
                "connected": False,
                "rounds": 0,
                "last_round": None,
                "missed": 0,
                "last_missed": None,
                "model_bytes_sent": 0,
                "model_bytes_received": 0,
                "problem": None,
            },
        )

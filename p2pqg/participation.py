"""Who took part in how many rounds, and who was missing when and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Participation:
    """Rounds mixed with each peer, and the spans of rounds in which a peer was missing."""

    mixed: dict[str, int] = field(default_factory=dict)
    missing: list[dict[str, Any]] = field(default_factory=list)

    def count(self, round: int, committed: Iterable[str], missed: Mapping[str, str]) -> None:
        """Record one round; a miss for the same reason as in the round before extends that span."""
        for peer in set(committed):
            self.mixed[peer] = self.mixed.get(peer, 0) + 1
        for peer, reason in missed.items():
            last = next((span for span in reversed(self.missing) if span["peer"] == peer), None)
            if last and last["reason"] == reason and last["to"] == round - 1:
                last["to"] = round
            else:
                self.missing.append({"peer": peer, "from": round, "to": round, "reason": reason})

    def as_json(self) -> dict[str, Any]:
        """For the checkpoint and the card."""
        return {"mixed": dict(sorted(self.mixed.items())), "missing": self.missing}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Participation:
        """The inverse of `as_json`."""
        return cls(dict(record["mixed"]), list(record["missing"]))

"""Who took part in how many rounds, and who was missing when and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_SPANS = 500
"""Beyond so many, the oldest of a peer become one: an edge may flap for weeks."""
SEVERAL = "several reasons"


@dataclass
class Participation:
    """Rounds mixed with each peer, and the spans of rounds in which a peer was missing. A span that was made
    of several says in how many of its `rounds`; otherwise it was in all of them."""

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
        if len(self.missing) > MOST_SPANS:
            self._join_oldest()

    def missed(self, peer: str) -> int:
        """Rounds in which `peer` was missing."""
        return sum(missed_rounds(span) for span in self.missing if span["peer"] == peer)

    def as_json(self) -> dict[str, Any]:
        """For the checkpoint and the card."""
        return {"mixed": dict(sorted(self.mixed.items())), "missing": self.missing}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Participation:
        """The inverse of `as_json`."""
        return cls(dict(record["mixed"]), list(record["missing"]))

    def _join_oldest(self) -> None:
        """Make one of two spans of a peer, the oldest there are."""
        seen: dict[str, dict[str, Any]] = {}
        for span in self.missing:
            if (old := seen.setdefault(span["peer"], span)) is not span:
                rounds = missed_rounds(old) + missed_rounds(span)
                reason = old["reason"] if old["reason"] == span["reason"] else SEVERAL
                old |= {"to": max(old["to"], span["to"]), "reason": reason, "rounds": rounds}
                self.missing = [each for each in self.missing if each is not span]
                return


def missed_rounds(span: Mapping[str, Any]) -> int:
    """In how many rounds the peer of a span was missing."""
    return int(span.get("rounds", span["to"] - span["from"] + 1))

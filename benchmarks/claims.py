"""One line of a benchmark's table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """`target` is the least ratio that holds the claim; None only informs."""

    name: str
    measured: str
    ratio: float
    target: float | None = None

    def __str__(self) -> str:
        verdict = "" if self.target is None else "ok" if self.ratio >= self.target else "MISS"
        target = "" if self.target is None else f">= {self.target:.2f}"
        return f"{self.name:<52} {self.measured:<38} {self.ratio:>6.2f}  {target:<8} {verdict}"

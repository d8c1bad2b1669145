"""What a peer may ask of an agent: so much at once, and so much in the long run (a token bucket).

Nothing that a peer counts or claims enters: its messages are paid for by the exchanges that *this* agent
begins and by time. An honest neighbour stays far below that at any speed, without a number of messages a
second that would suit a small model on a fast network and a large one on a slow link alike.
"""

from __future__ import annotations


class Allowance:
    """At most `most` at once, and `per_s` a second in the long run."""

    def __init__(self, most: float, per_s: float) -> None:
        self._most, self._per_s = most, per_s
        self._left, self._at_s = most, 0.0

    def grant(self, amount: float) -> None:
        """Allow `amount` more."""
        self._left = min(self._left + amount, self._most)

    def owed_s(self, amount: float, now: float) -> float:
        """Use `amount`, and say how long to wait until it is paid for; 0 if it is."""
        self._pass(now)
        self._left -= amount
        return max(0.0, -self._left / self._per_s)

    def affords(self, amount: float, now: float) -> bool:
        """Use `amount` if so much is left, and say whether it was."""
        self._pass(now)
        enough = self._left >= amount
        self._left -= amount if enough else 0.0
        return enough

    def _pass(self, now: float) -> None:
        self.grant(self._per_s * max(0.0, now - self._at_s))
        self._at_s = now

"""When an agent that is behind leaves rounds out, and for which round it aims.

Rounds must match to be mixed, so an agent that others have passed can only catch up by doing fewer of
them. It keeps its model and aims at a round that its neighbours have not reached yet: as far beyond theirs
as they went during its own last round, and one more. Then its offer is there before they are, nobody waits
for it, and an agent twenty times slower than its neighbours still takes part in every twenty-first of their
rounds.

What makes an agent believe that it is behind:

* all its neighbours are further than the round it would do next, or one has passed it three rounds in a row
  (after a partition the others of its own side are where it is), or once, if it has mixed with nobody since
  it came in: nobody waits for it before it has;
* and so is a second member, among its neighbours or by what it has heard. A single peer is believed only as
  far as it could have come while the news of others travels (`STALE_S`), and not again for twice as long: it
  can push time forward by half as much again at most. (It could also make the second member up, if it is not
  broken but lies; who must not be able to should not be given a certificate.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from p2pqg.gossip.edge import AHEAD, STALE

STALE_S = 5.0
PASSED_ROUNDS = 3
PASSED_BY_LITTLE_ROUNDS = 6
"""The same for a neighbour that is hardly ahead: the two may find each other by themselves."""
MOST_ROUNDS_BEHIND = 10
"""An agent that was away for more rounds starts again from another's model, not from its own checkpoint."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an agent that starts enters: `round`, after downloading another's state if `download`."""

    round: int
    download: bool
    reason: str


def entry(round: int, *, resumed: bool, neighbours: Iterable[int], last: int) -> Entry:
    """Where an agent enters that is at `round`, given the rounds of the neighbours that take part already.
    It goes by the second most advanced (the only one, if there is one), so that none alone can push it; and
    never beyond `last`."""
    rounds = sorted(neighbours, reverse=True)[:2]
    there = min(rounds[-1], last) if rounds else round
    behind = there - round
    if behind <= 0:
        return Entry(round, False, "nobody is ahead")
    if resumed and behind <= MOST_ROUNDS_BEHIND:
        return Entry(min(there + 1, last), False, f"{behind} rounds behind, with a model of its own")
    return Entry(there, True, f"{behind} rounds behind" if resumed else "new to a running network")


class Pace:
    """The rounds one agent does, and those it leaves out; `last` is the one it never passes. Where neighbours
    do not meet in `every_round`, being ahead says nothing, and no round is left out."""

    def __init__(self, last: int, *, every_round: bool = True) -> None:
        self.last, self._every_round = last, every_round
        self._passed: dict[str, int] = {}
        self._before: Mapping[str, int] = {}
        self._stride = 1
        self._alone_s: float | None = None
        self._is_in = False
        self._done_s: deque[float] = deque(maxlen=10_000)

    def begins(self, peers: Mapping[str, int]) -> None:
        """A round begins; these are the last that the neighbours have done."""
        self._before = dict(peers)

    def offers(self, peers: Mapping[str, int]) -> None:
        """The own step is computed, and the neighbours have done these rounds by now."""
        steps = [at - self._before[peer] for peer, at in peers.items() if peer in self._before]
        self._stride = max(1, min(steps, default=1))

    def after(
        self,
        round: int,
        missed: Mapping[str, str],
        peers: Mapping[str, int],
        members: Mapping[str, int],
        now: float,
    ) -> int:
        """The round to do after `round`, in which neighbours were missed for these reasons: the next, unless
        this agent is behind. `peers` and `members` are the last rounds that its connected neighbours, and
        all it has heard of, have done."""
        following = round + 1
        if not self._every_round:
            return following
        passed = {peer for peer, reason in missed.items() if reason in (AHEAD, STALE)}
        self._passed = {peer: self._passed.get(peer, 0) + 1 for peer in passed}
        self._done_s.append(now)
        while now - self._done_s[0] > STALE_S:
            self._done_s.popleft()
        mixed = not peers.keys() <= missed.keys()
        self._is_in |= mixed
        if self._stride > 1 and mixed:  # in time, because it was early
            return max(following, min(min(peers.values()) + self._stride + 1, self.last))
        beyond = {peer: at for peer, at in peers.items() if at > following}
        tired = {
            peer: at
            for peer, at in peers.items()
            if at >= round and self._passed.get(peer, 0) >= self._patience(at > following)
        }
        ahead = beyond if beyond and len(beyond) == len(peers) else tired
        if not ahead:
            return following
        believed = self._believed(following, max(ahead.values()), {**members, **peers}, now)
        return max(following, min(believed + self._stride + 1, self.last)) if believed else following

    def _patience(self, far: bool) -> int:
        """How often a peer must pass this agent."""
        if not self._is_in:
            return 1
        return PASSED_ROUNDS if far else PASSED_BY_LITTLE_ROUNDS

    def _believed(self, following: int, claimed: int, others: Mapping[str, int], now: float) -> int | None:
        """How far others are, as far as this agent believes it; None if it does not."""
        recent = len(self._done_s) + 1
        ranked = sorted(others.values(), reverse=True)[:2]
        if ranked[-1] > following:  # a second one, or there is only one
            return min(claimed, ranked[-1] + recent)
        if claimed - following > recent:
            return None
        if self._alone_s is not None and now - self._alone_s < 2 * STALE_S:
            return None
        self._alone_s = now
        return claimed

"""Who is there, as one agent sees it: a gossip-style failure detector (van Renesse et al. 1998).

Every agent counts a heartbeat up, once a second, in what it says of itself; what it hears of others it passes
on, the larger heartbeat over the smaller. A member whose heartbeat has not moved for `patience` seconds is
gone. Nobody can say that *another* is dead, so there is nothing to refute: a member that some cannot reach
stays alive for as long as anybody hears it, and after a partition both sides find each other's heartbeats
moving again. SWIM's suspicion and refutation would save traffic in large networks (here it is n records a
second on every edge) for more states and messages.

Nobody can say of another what that one did not say, either: with certificates every record carries its
subject's signature (`Seal`). Whoever passes on a record that is not its subject's is dropped; a record of
somebody who is not let in here is passed over.

Views differ for some seconds after every change. Nothing depends on them being equal; see
`p2pqg.topology.rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Protocol

from p2pqg.gossip.messages import ALIVE, LEFT, MAX_MEMBERS, Member

BEAT_S = 1.0
NEWS_S = 3 * BEAT_S
MOST_MEMBERS = 1024
"""Members that are remembered; nothing a peer says takes more memory."""
MAX_HEARTBEAT = 1 << 63
MAX_NEWS_BYTES = 1 << 15
"""Of the members in one STATUS."""


class Seal(Protocol):
    """Proves who says a record."""

    def sign(self, member: Member) -> Member:
        """The own record with what proves it."""

    def proves(self, member: Member) -> bool:
        """Whether its subject said it, and is one that is let in. Raises `RemoteProtocolError` if it is
        certain that somebody else did."""


class Unsealed:
    """Without certificates nothing can be proved: on one machine, or where `--insecure` is spelled out."""

    def sign(self, member: Member) -> Member:
        return member

    def proves(self, member: Member) -> bool:
        return True


class Membership:
    """The members that `own` has heard of. `admits(name)` says who may be one, `seal` what they said."""

    def __init__(
        self, own: Member, admits: Callable[[str], bool] = lambda name: True, seal: Seal | None = None
    ) -> None:
        self.own = own
        self.admits = admits
        self._seal: Seal = seal or Unsealed()
        self._certified: dict[str, int] = {}
        self._addresses: dict[str, str] = {}
        self._members: dict[str, Member] = {}
        self._silent_s: dict[str, float] = {}
        self._changed: dict[str, int] = {own.name: 1}
        self._changes = 1
        self._beat_s = self._last_tick = math.inf

    @property
    def patience_s(self) -> float:
        """How long a heartbeat may stand still: it spreads one edge a second."""
        return 5 * BEAT_S * max(1.0, math.log2(1 + len(self._members)))

    @property
    def members(self) -> Mapping[str, Member]:
        """Everyone ever heard of, by name, the own agent too."""
        return {self.own.name: self.own, **self._members}

    @property
    def here(self) -> tuple[Member, ...]:
        """All others whose heart beats, in order of names."""
        return tuple(m for name, m in sorted(self._members.items())
                     if m.state != LEFT and self._silent_s[name] < self.patience_s)  # fmt: skip

    def present(self, round: int) -> tuple[Member, ...]:
        """Who belongs to the graph of `round`: who takes part, or is about to and not behind."""
        own = self.own if self.own.state != LEFT else None
        others = (m for m in self.here if m.state == ALIVE or m.round >= round)
        return tuple(sorted((m for m in (own, *others) if m), key=lambda m: m.name))

    def learn(self, name: str, address: str) -> None:
        """`name` may be found at `address`, says somebody who is no member: a file, or the local network.
        That is no sign of life."""
        if name != self.own.name and (name in self._addresses or len(self._addresses) < MOST_MEMBERS):
            self._addresses[name] = address

    def address(self, name: str) -> str:
        """Where `name` can be dialled; empty if it cannot, or nobody knows. What was learnt counts for more
        than what an agent says of itself, because it is how *this* agent reaches it."""
        known = self._members.get(name)
        return self._addresses.get(name) or (known.address if known else "")

    @property
    def absent(self) -> tuple[str, ...]:
        """Those who can be dialled, have not left, and whose heart does not beat here: not started yet, dead,
        or on the other side of a partition. Who left and comes back dials us, unless nobody can."""
        here = {member.name for member in self.here}
        left = {name for name, member in self._members.items() if member.state == LEFT and self.own.address}
        known = self._addresses.keys() | self._members.keys()
        return tuple(sorted(name for name in known - here - left if self.address(name)))

    def say(self, *, state: str | None = None, round: int | None = None, address: str | None = None) -> None:
        """Change what this agent says of itself."""
        own = self.own
        told = replace(
            own,
            state=own.state if state is None else state,
            round=own.round if round is None else round,
            address=own.address if address is None else address,
        )
        if told != own:
            self._set_own(told)

    def tick(self, now: float) -> None:
        """Let time pass. Time in which this agent did not look is not held against the others."""
        passed = max(0.0, min(now - self._last_tick, BEAT_S))
        self._last_tick = now
        for name in self._silent_s:
            self._silent_s[name] += passed
        if not self._beat_s <= now < self._beat_s + BEAT_S:
            self._beat_s = now
            self._set_own(self.own)

    def hear(self, members: Iterable[Member]) -> None:
        """Take over what is newer, and its subject's own. Raises `RemoteProtocolError` for what is forged."""
        for member in members:
            if member.heartbeat >= MAX_HEARTBEAT:
                continue
            known = self.own if member.name == self.own.name else self._members.get(member.name)
            if known is None and (len(self._members) >= MOST_MEMBERS or not self.admits(member.name)):
                continue
            if known is not None and not member.certificate:  # it was told before
                member = replace(member, certificate=known.certificate)
            if known is self.own:
                other = member.heartbeat >= known.heartbeat and _said(member) != _said(known)
                if other and self._seal.proves(member):  # an earlier life of ours
                    self._set_own(replace(self.own, heartbeat=member.heartbeat))
            elif (known is None or member.heartbeat > known.heartbeat) and self._seal.proves(member):
                self._members[member.name] = member
                self._silent_s[member.name] = 0.0
                self._note(member.name)
                if known is None or member.certificate != known.certificate:
                    self._certified[member.name] = self._changes

    def news(self, since: int, to: str = "") -> tuple[tuple[Member, ...], int]:
        """What changed after the change `since`, oldest first and as much as one STATUS holds, and the last
        change that is told. A certificate that was told with an earlier change is left out. A member whose
        heart stands still is no news, because a newcomer would take it for alive; save to itself (`to`),
        which learns so how far it was in an earlier life."""
        self._sign_own()
        everyone, told, size = self.members, list[Member](), 0
        changed = sorted((at, name) for name, at in self._changed.items() if at > since)
        known = (each for each in changed if each[1] == to or self._is_news(everyone[each[1]]))
        for at, name in islice(known, MAX_MEMBERS):
            member = everyone[name]
            if self._certified.get(name, 0) <= since:
                member = replace(member, certificate=b"")
            size += len(member.certificate) + len(member.signature) + 4 * len(name + member.address) + 64
            if told and size > MAX_NEWS_BYTES:
                break
            told.append(member)
            last = at
        return tuple(told), last if told else since

    def _is_news(self, member: Member) -> bool:
        return member.state == LEFT or self._silent_s.get(member.name, 0.0) < NEWS_S

    def _sign_own(self) -> None:
        if not self.own.signature:
            before, self.own = self.own.certificate, self._seal.sign(self.own)
            if self.own.certificate != before:
                self._certified[self.own.name] = self._changed[self.own.name]

    def _set_own(self, own: Member) -> None:
        self.own = replace(own, heartbeat=own.heartbeat + 1, signature=b"")
        self._note(own.name)

    def _note(self, name: str) -> None:
        self._changes += 1
        self._changed[name] = self._changes


def _said(member: Member) -> Member:
    """What a record says, without what proves it."""
    return replace(member, certificate=b"", signature=b"")

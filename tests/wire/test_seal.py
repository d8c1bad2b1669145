"""What members say of themselves, with real certificates: passed on by others, changed or made up by none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from p2pqg.errors import RemoteProtocolError
from p2pqg.gossip.membership import Membership
from p2pqg.gossip.messages import ALIVE, LEFT, Member, Status
from p2pqg.security import TlsFiles, issue
from p2pqg.security.authority import Authority
from p2pqg.security.seal import CertificateSeal
from p2pqg.wire.codec import decode, encode

A, B, C = "agent-000", "agent-001", "agent-002"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, TlsFiles]:
    return issue(tmp_path / "network", [A, B, C])


def member(files: dict[str, TlsFiles], name: str, run: str = "1") -> Membership:
    identity = files[name].read()
    view = Membership(
        Member(name, 1, ALIVE, f"there:{name}"), seal=CertificateSeal(lambda: identity, "w", run)
    )
    view.tick(0.0)
    return view


def tell(teller: Membership, hearer: Membership, since: int = 0) -> int:
    """One STATUS, as it crosses the wire."""
    members, told = teller.news(since)
    status = decode(encode(Status(0, 1.0, members=members)))
    assert isinstance(status, Status)
    hearer.hear(status.members)
    return told


def test_what_an_agent_says_travels_through_others_and_its_certificate_once(
    files: dict[str, TlsFiles],
) -> None:
    a, b, c = (member(files, name) for name in (A, B, C))
    to_b = to_a = 0
    for round in range(3):
        c.say(round=round)
        members, _ = c.news(to_b)
        assert [bool(m.certificate) for m in members] == [round == 0]
        to_b = tell(c, b, to_b)
        to_a = tell(b, a, to_a)
        assert a.members[C].round == round
    assert {m.name for m in a.here} == {B, C}
    late = member(files, A)
    tell(b, late)
    assert late.members[C].round == 2, "who comes later is told the certificate again"


FORGERIES: dict[str, Callable[[Member, Member], Member]] = {
    "evicted": lambda own, other: replace(other, heartbeat=other.heartbeat + 1, state=LEFT),
    "kept alive": lambda own, other: replace(other, heartbeat=other.heartbeat + 1),
    "moved elsewhere": lambda own, other: replace(other, heartbeat=other.heartbeat + 1, address="evil:1"),
    "pushed ahead": lambda own, other: replace(other, heartbeat=other.heartbeat + 1, round=10**6),
    "signed by another": lambda own, other: replace(own, name=C, heartbeat=other.heartbeat + 1),
    "nonsense": lambda own, other: replace(other, heartbeat=9**9, certificate=b"1", signature=b"2"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_whoever_speaks_for_another_is_found_out(files: dict[str, TlsFiles], forgery: str) -> None:
    a, b, c = (member(files, name) for name in (A, B, C))
    tell(c, b)
    tell(b, a)
    before = a.members[C]
    forged = FORGERIES[forgery](b.news(0)[0][-1], before)
    for stripped in (forged, replace(forged, certificate=b"")):
        with pytest.raises(RemoteProtocolError, match=f"an announcement of {C} that {C} did not sign"):
            a.hear([stripped])
    assert a.members[C] == before


def test_what_proves_nothing_is_passed_over(files: dict[str, TlsFiles], tmp_path: Path) -> None:
    a, c = member(files, A), member(files, C)
    (said,) = c.news(0)[0]
    a.hear([replace(said, signature=b""), replace(said, certificate=b"")])
    assert C not in a.members
    a.hear([said])
    c.say(state=LEFT)
    left = c.news(0)[0][0]
    a.hear([left, said])
    assert a.members[C].state == LEFT, "what is older counts no more"
    stranger = issue(tmp_path / "other", ["zoe"])
    a.hear(member(stranger, "zoe").news(0)[0])
    assert "zoe" not in a.members


def test_another_run_and_a_revoked_member(files: dict[str, TlsFiles], tmp_path: Path) -> None:
    a, c = member(files, A), member(files, C)
    with pytest.raises(RemoteProtocolError, match="did not sign"):
        tell(member(files, C, run="2"), a)
    tell(c, a)
    Authority.open(tmp_path / "network").revoke(C)
    heartbeat = a.members[C].heartbeat
    c.say(round=1)
    tell(c, a)
    assert a.members[C].heartbeat == heartbeat, "its heart beats no more for those who have the list"


def test_nobody_can_make_an_agent_use_up_its_heartbeats(files: dict[str, TlsFiles]) -> None:
    """It goes beyond those of an earlier life, which it signed itself."""
    a, earlier = member(files, A), member(files, A)
    for round in range(5):
        earlier.say(round=round)
    tell(earlier, a)
    assert a.own.heartbeat > earlier.own.heartbeat
    before = a.own.heartbeat
    with pytest.raises(RemoteProtocolError):
        a.hear([replace(a.news(0)[0][0], heartbeat=1 << 62)])
    assert a.own.heartbeat == before

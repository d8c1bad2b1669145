"""When an agent leaves rounds out, and where one that starts comes in."""

from __future__ import annotations

import pytest

from p2pqg.gossip.edge import AHEAD, STALE
from p2pqg.gossip.pace import MOST_ROUNDS_BEHIND, PASSED_ROUNDS, STALE_S, Entry, Pace, entry


@pytest.mark.parametrize(
    ("round", "resumed", "neighbours", "found"),
    [
        (0, False, [], (0, False)),
        (0, False, [0, 0], (0, False)),
        (5, True, [5, 4], (5, False)),
        (5, True, [8, 8], (9, False)),  # keeps its model, one beyond theirs
        (5, True, [5 + MOST_ROUNDS_BEHIND] * 2, (6 + MOST_ROUNDS_BEHIND, False)),
        (5, True, [6 + MOST_ROUNDS_BEHIND] * 2, (6 + MOST_ROUNDS_BEHIND, True)),
        (0, False, [3, 3], (3, True)),  # nothing of its own to go on with
        (5, True, [10**9, 7], (8, False)),  # nobody alone can push it
        (5, True, [10**9, 10**9], (100, True)),  # and never beyond the end
        (5, True, [9], (10, False)),  # unless it is the only one there
    ],
)
def test_entry(round: int, resumed: bool, neighbours: list[int], found: tuple[int, bool]) -> None:
    where = entry(round, resumed=resumed, neighbours=neighbours, last=100)
    assert (where.round, where.download) == found
    assert isinstance(where, Entry)
    assert where.reason


def test_in_step_nothing_is_left_out() -> None:
    pace = Pace(100)
    for round in range(20):
        pace.begins({"a": round, "b": round})
        assert pace.after(round, {}, {"a": round + 1, "b": round}, {}, now=float(round)) == round + 1


def test_a_slow_agent_aims_as_far_ahead_as_the_others_go_in_its_round() -> None:
    pace = Pace(1000)
    pace.begins({"a": 10, "b": 10})
    pace.offers({"a": 30, "b": 30})
    following = pace.after(10, {"a": AHEAD, "b": AHEAD}, {"a": 30, "b": 30}, {}, now=20.0)
    assert following == 30 + 20 + 1
    pace.begins({"a": 30, "b": 30})
    pace.offers({"a": 50, "b": 50})
    following = pace.after(following, {}, {"a": 51, "b": 51}, {}, now=42.0)
    assert following == 51 + 20 + 1, "at once, so that nobody waits for it in between"
    pace.begins({"a": 51, "b": 51})
    pace.offers({"a": 71, "b": 51})
    assert pace.after(following, {}, {"a": 72, "b": 72}, {}, now=44.0) == following + 1, "one is as slow"


def test_one_peer_alone_is_believed_as_far_as_it_can_have_come_and_seldom() -> None:
    pace = Pace(10**6)
    for round in range(5):  # a second each
        pace.begins({"a": round, "liar": round})
        pace.after(round, {}, {"a": round, "liar": round}, {}, now=float(round))
    jumps = 0
    round, now = 5, 5.0
    while now < 100:
        peers = {"a": round, "liar": round + 4}
        pace.begins(peers)
        following = pace.after(round, {"liar": STALE}, peers, {}, now)
        jumps += following > round + 1
        round, now = following, now + 1
    assert 1 <= jumps <= 1 + 95 / (2 * STALE_S)
    assert round <= 100 * 1.6 + 10
    pace = Pace(10**6)
    for k in range(10):
        pace.begins({"a": k, "liar": 10**9})
        assert pace.after(k, {"liar": AHEAD}, {"a": k, "liar": 10**9}, {}, float(k)) == k + 1


def test_after_a_partition_the_side_that_is_behind_follows() -> None:
    """One neighbour of its own side keeps step, the other is far ahead, and so are others beyond it."""
    pace = Pace(10**6)
    round = 100
    members = {"far": 140, "further": 138, "near": 100}
    for _ in range(PASSED_ROUNDS):
        assert round < 103
        peers = {"near": round, "far": 140}
        pace.begins(peers)
        round = pace.after(round, {"far": AHEAD}, peers, members, now=float(round))
    assert 138 <= round <= 144


def test_who_comes_in_too_late_tries_again_at_once() -> None:
    """Nobody waits for it before it has mixed, so there is no use in the next round either."""
    for mixed_before, following in ((False, 18), (True, 15)):
        pace = Pace(100)
        if mixed_before:
            pace.after(13, {}, {"a": 13, "b": 13}, {}, now=0.0)
        pace.begins({"a": 15, "b": 15})
        assert pace.after(14, {"a": AHEAD, "b": STALE}, {"a": 15, "b": 16}, {}, now=0.1) == following


def test_nobody_goes_beyond_the_end() -> None:
    pace = Pace(50)
    pace.begins({"a": 10})
    assert pace.after(10, {"a": AHEAD}, {"a": 49}, {}, now=0.0) == 50

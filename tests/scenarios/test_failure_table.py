"""The failure table of `docs/faults.md`: what happens, what becomes of the mean, what it costs.

Two machines and a script for each row, which the docstring names. Rows that only a connection or a process
can show are tested with real agents; `docs/faults.md` names the tests of every row.
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from pair import COORDINATOR, PARTICIPANT, RULES, TIMEOUT_S, D, Pair, greeting
from pair import End as Device

from p2pqg.gossip.edge import AHEAD, PATIENCE, STALE
from p2pqg.gossip.messages import (
    Abort,
    Begin,
    Commit,
    Data,
    End,
    Message,
    Prepared,
    Settle,
    Settled,
    Skip,
)

ROOT = Path(__file__).parents[2]


PASSED = (STALE, AHEAD)


class Once:
    """Loses the first message of each of the given types."""

    def __init__(self, *kinds: type[Message]) -> None:
        self.left = set(kinds)

    def __call__(self, message: Message) -> bool:
        lost = type(message) in self.left
        self.left.discard(type(message))
        return lost


def assert_back_to_normal(pair: Pair) -> None:
    """The next rounds mix, at once and exactly."""
    for _ in range(3):
        pair.round()
        assert [end.reason() for end in pair.ends] == [None, None]
    assert pair.exact


def assert_missed(pair: Pair, *reasons: str) -> None:
    assert [end.waiting for end in pair.ends] == [False, False]
    for pattern, end in zip(reasons, pair.ends, strict=True):
        assert re.search(pattern, end.reason() or "nothing missed"), end.reason()


@pytest.mark.parametrize("kind", [Begin, Data, End])
@pytest.mark.parametrize("sender", [COORDINATOR, PARTICIPANT])
def test_data_or_end_lost(kind: type[Message], sender: str) -> None:
    """DATA/END lost: neither end applies, the self weight absorbs; one missed edge."""
    pair = Pair()
    once = Once(kind)
    start = pair.a.x, pair.b.x
    pair.lose = lambda m: (pair.speaker == sender) and once(m)
    pair.round()
    pair.wait((1 + PATIENCE) * TIMEOUT_S)
    assert_missed(pair, "bytes arrived|deadline", "bytes arrived|deadline")
    assert torch.equal(pair.a.x, start[0])
    assert torch.equal(pair.b.x, start[1])
    assert_back_to_normal(pair)


@pytest.mark.parametrize("kind", [Begin, Data, End])
def test_stream_reset_before_prepared(kind: type[Message]) -> None:
    """DATA/END lost, stream reset before PREPARED: known at once, without a deadline."""
    pair = Pair()
    pair.begin()
    pair.flow(until=lambda m: isinstance(m, kind))
    pair.disconnect()
    assert_missed(pair, "connection lost", "connection lost")
    assert pair.exact
    pair.connect()
    assert_back_to_normal(pair)


def test_prepared_lost() -> None:
    """PREPARED lost: the coordinator aborts at its deadline, the participant learns it."""
    pair = Pair()
    pair.lose = Once(Prepared)
    pair.round()
    assert pair.b.edge.committing
    pair.wait(TIMEOUT_S + 0.2)
    assert_missed(pair, "deadline", "deadline")
    assert not pair.b.edge.in_doubt
    assert_back_to_normal(pair)


def test_prepared_and_abort_lost() -> None:
    """PREPARED lost: a participant that does not hear the verdict asks, and learns ABORT."""
    pair = Pair()
    pair.lose = Once(Prepared, Abort, Settle)
    pair.round()
    pair.wait((1 + PATIENCE) * TIMEOUT_S + 0.2)
    assert_missed(pair, "deadline", "no verdict")
    pair.wait(1.0)
    assert not pair.b.edge.in_doubt
    assert not pair.b.gossip.late(exchange=0)
    assert_back_to_normal(pair)


def test_commit_lost() -> None:
    """COMMIT lost: the coordinator applied, the participant is in doubt, asks, and applies late."""
    pair = Pair()
    pair.lose = Once(Commit, Settle)
    pair.round()
    assert pair.a.reason() is None
    assert not pair.exact
    pair.wait((1 + PATIENCE) * TIMEOUT_S + 0.2)
    assert_missed(pair, "nothing missed", "no verdict")
    pair.wait(1.0)
    assert not pair.b.edge.in_doubt
    pair.settle()
    assert pair.exact
    assert pair.a.edge.leaked == pair.b.edge.leaked == 0
    assert_back_to_normal(pair)


def test_commit_lost_costs_the_edge_while_it_is_unsettled() -> None:
    """COMMIT lost: the coordinator goes on at once; the participant refuses its offers until it knows, and
    the verdict is kept however many exchanges that takes."""
    pair = Pair()
    once = Once(Commit)
    pair.lose = lambda m: once(m) or isinstance(m, Settle)
    pair.begin()
    pair.flow()
    for _ in range(20):
        pair.begin(pair.a)
        pair.flow()
        assert pair.a.reason() == "in doubt"
    assert not pair.exact
    pair.lose = lambda m: False
    pair.wait(1.0)
    pair.settle()
    assert pair.exact
    while pair.b.round < pair.a.round:
        pair.begin(pair.b)
        pair.flow()
        assert pair.b.reason() in PASSED
    assert_back_to_normal(pair)


@pytest.mark.parametrize("decided", [False, True])
def test_stream_reset_after_prepared(decided: bool) -> None:
    """COMMIT lost with the stream: HELLO names what is undecided, and the answer settles it."""
    pair = Pair()
    pair.begin()
    pair.flow(until=lambda m: isinstance(m, Commit if decided else Prepared))
    pair.disconnect()
    assert pair.b.edge.in_doubt
    assert pair.exact is not decided
    assert pair.a.edge.unsettled is decided, "whoever knows the verdict must not leave before the other does"
    pair.connect()
    assert not pair.a.edge.unsettled
    pair.settle()
    assert pair.exact
    assert_back_to_normal(pair)


def test_participant_crashes_before_prepared() -> None:
    """participant crashes before PREPARED: abort; exact over survivors; reconnect."""
    pair = Pair()
    pair.round()
    before, checkpoint = pair.a.x, pair.b.x
    pair.begin()
    pair.flow(until=lambda m: isinstance(m, End))
    pair.kill(pair.b)
    pair.restart(pair.b, checkpoint, round=1)
    assert pair.a.reason() == "connection lost"
    assert torch.equal(pair.a.x, before)
    assert pair.a.edge.leaked == 0
    pair.sum = pair.a.x + pair.b.x
    pair.begin(pair.b)
    pair.flow()
    assert pair.b.reason() in PASSED
    assert_back_to_normal(pair)


def test_participant_crashes_after_prepared() -> None:
    """participant crashes after PREPARED: the coordinator applied; the verdict is dropped and counted."""
    pair = Pair()
    before = pair.b.x
    pair.begin()
    pair.flow(until=lambda m: isinstance(m, Commit))
    assert pair.a.reason() is None
    pair.kill(pair.b)
    pair.restart(pair.b, before, round=0)
    assert pair.a.edge.leaked == 1
    off = (pair.a.x + pair.b.x - pair.sum) / 2
    expected = 0.5 * (before - torch.arange(4.0).double()) / 2  # w ||dQ|| / n
    torch.testing.assert_close(off, expected)
    pair.sum = pair.a.x + pair.b.x
    pair.begin(pair.b)
    pair.flow()
    assert_back_to_normal(pair)
    assert pair.a.edge.leaked == 1


@pytest.mark.parametrize("decided", [False, True])
def test_coordinator_crashes(decided: bool) -> None:
    """coordinator crashes before / after deciding: a participant presumes ABORT only on a new incarnation;
    one that is merely unreachable leaves it in doubt."""
    pair = Pair()
    checkpoint, before = pair.a.x, pair.b.x
    pair.begin()
    pair.flow(until=lambda m: isinstance(m, Commit if decided else Prepared))
    pair.kill(pair.a)
    pair.disconnect()
    pair.wait(20 * TIMEOUT_S, pair.b)
    assert pair.b.edge.in_doubt
    assert pair.b.edge.leaked == 0
    pair.restart(pair.a, checkpoint, round=0)
    assert not pair.b.edge.in_doubt
    assert pair.b.edge.leaked == 1
    assert torch.equal(pair.b.x, before)
    assert pair.exact, "the checkpoint is from before the exchange"
    pair.begin(pair.a)
    pair.flow()
    assert_back_to_normal(pair)


def test_both_crash() -> None:
    """both crash, all crash: restart from checkpoints; HELLO aligns the numbers; mean of checkpoints."""
    pair = Pair()
    pair.round()
    checkpoints = pair.a.x, pair.b.x
    pair.begin()
    pair.flow(until=lambda m: isinstance(m, Commit))
    pair.restart(pair.a, checkpoints[0], round=1)
    pair.restart(pair.b, checkpoints[1], round=1)
    assert pair.exact
    assert_back_to_normal(pair)


def test_slow_peer() -> None:
    """slow peer (`lockstep`): everyone within reach waits, at most for one deadline."""
    pair = Pair()
    pair.begin(pair.a)
    pair.wait(TIMEOUT_S - 0.2)
    assert pair.a.waiting
    pair.begin(pair.b)
    pair.flow()
    assert pair.a.reason() is None
    assert_back_to_normal(pair)
    pair.begin(pair.a)
    pair.wait(TIMEOUT_S)
    assert pair.a.reason() == "deadline"
    pair.begin(pair.b)
    pair.flow()
    assert pair.b.reason() in PASSED, "the straggler does not wait in vain"
    assert_back_to_normal(pair)


@pytest.mark.parametrize("frozen", ["a", "b"])
def test_silent_peer(frozen: str) -> None:
    """SIGSTOP / half-open TCP: one deadline, then the peer is not waited for until it speaks."""
    pair = Pair()
    pair.round()
    asleep: Device = getattr(pair, frozen)
    awake = pair.other(asleep)
    asleep.frozen = True
    pair.begin(awake)
    pair.wait((1 + PATIENCE) * TIMEOUT_S + 0.2, awake)
    assert awake.reason() == "deadline"
    for _ in range(5):
        pair.begin(awake)
        assert "silent" in (awake.reason() or "")
    assert pair.exact
    asleep.frozen = False
    pair.wait(1.0)
    while asleep.round < awake.round:
        pair.begin(asleep)
        pair.flow()
        assert asleep.reason() in PASSED
    assert_back_to_normal(pair)


def test_own_process_starved() -> None:
    """own process starved: time in which an end did not look is no evidence against its peer."""
    pair = Pair()
    pair.wait(1.0)
    pair.now += 1000.0
    pair.a.gossip.tick(pair.now)
    pair.begin()
    pair.flow()
    assert [end.reason() for end in pair.ends] == [None, None]


def test_duplicated_messages() -> None:
    """duplicate message: seq and offset drop it."""
    pair = Pair()
    pair.copies = 3
    assert_back_to_normal(pair)
    assert pair.a.edge.strikes == pair.b.edge.strikes == 0


def test_replay() -> None:
    """replay: every message of an earlier round once more, from both ends; never applied twice."""
    pair = Pair()
    said: list[tuple[Device, Message]] = []
    pair.lose = lambda m: said.append((pair.listener, m)) is not None
    pair.round()
    pair.round()
    pair.lose = lambda m: False
    after = pair.a.x, pair.b.x
    for listener, message in said:
        pair.deliver(listener, message)
    pair.flow()
    pair.settle()
    assert torch.equal(pair.a.x, after[0])
    assert torch.equal(pair.b.x, after[1])
    assert_back_to_normal(pair)


def test_reordered_messages() -> None:
    """reordered message: the exchange fails, nothing else does."""
    pair = Pair()
    pair.begin()
    begin, data, end = pair.b.inbox
    pair.b.inbox.clear()
    pair.b.inbox.extend((begin, end, data))
    pair.flow()
    assert_missed(pair, "0 of 32 bytes arrived", "0 of 32 bytes arrived")
    assert pair.b.edge.strikes == 1
    assert_back_to_normal(pair)


def test_two_streams() -> None:
    """two streams: a newer connection of the same incarnation replaces the older."""
    pair = Pair()
    pair.begin()
    pair.flow(until=lambda m: isinstance(m, Prepared))
    pair.disconnect()
    pair.connect()
    assert not pair.b.edge.in_doubt
    assert pair.exact
    assert_back_to_normal(pair)


@pytest.mark.parametrize("behind", ["a", "b"])
def test_stale_round(behind: str) -> None:
    """stale round: SKIP(stale); never applied, and nobody waits."""
    ahead = (
        {"participant": greeting(PARTICIPANT, round=7)}
        if behind == "a"
        else {"coordinator": greeting(COORDINATOR, round=7)}
    )
    pair = Pair(**ahead)
    straggler: Device = getattr(pair, behind)
    for _ in range(7):
        pair.begin(straggler)
        pair.flow()
        assert straggler.reason() in PASSED
    assert pair.exact
    assert_back_to_normal(pair)


@pytest.mark.parametrize("behind", ["a", "b"])
def test_future_round(behind: str) -> None:
    """future round: nobody is pushed forward; the end that is behind hurries through its own rounds."""
    ahead = (
        {"participant": greeting(PARTICIPANT, round=7)}
        if behind == "a"
        else {"coordinator": greeting(COORDINATOR, round=7)}
    )
    pair = Pair(**ahead)
    straggler: Device = getattr(pair, behind)
    pair.begin(pair.other(straggler))
    pair.flow()
    for _ in range(7):
        pair.begin(straggler)
        assert straggler.reason() == "the peer is ahead"
    pair.begin(straggler)
    pair.flow()
    assert [end.reason() for end in pair.ends] == [None, None]
    assert_back_to_normal(pair)


@pytest.mark.parametrize(
    ("item", "changes"),
    [
        ("network", {"network": "other"}),
        ("run", {"run": "other"}),
        ("agent", {"agent": "agent-007"}),
        ("protocol version", {"versions": (2, 3)}),
        ("beta", {"settings": {"beta": "0.8"}}),
        ("dtype", {"settings": {"beta": "0.9", "dtype": "float16"}}),
    ],
)
def test_different_settings(item: str, changes: dict[str, Any]) -> None:
    """wrong shape, dtype, names, run, version: refused on both sides, with the item, expected and found."""
    pair = Pair(participant=greeting(PARTICIPANT, **changes))
    for end in pair.ends:
        assert end.edge.refused is not None
        assert end.drops[0].refused
        assert end.drops[0].reason.startswith(f"{item} differs: expected ")
        assert " found " in end.drops[0].reason
    assert not pair.a.gossip.live
    pair.begin()
    assert_missed(pair, f"refused: {item} differs", f"refused: {item} differs")
    assert pair.exact


def test_an_older_incarnation() -> None:
    """replay of a whole connection: an incarnation that is over is refused."""
    pair = Pair(coordinator=greeting(COORDINATOR, incarnation=5))
    pair.disconnect()
    pair.b.gossip.connected(COORDINATOR)
    pair.deliver(pair.b, greeting(COORDINATOR, incarnation=4))
    assert pair.b.drops[0].reason == "incarnation differs: expected 5 or later, found 4"


def broken(pair: Pair, values: list[float], **end: Any) -> None:
    """The coordinator begins a round with the given values, and an END that may say something else."""
    data = np.array(values).tobytes()
    pair.begin(pair.b)
    pair.deliver(pair.b, Begin(pair.seq, pair.b.round - 1, 0, 1, RULES.vector_bytes, "float64", 1.0))
    pair.deliver(pair.b, Data(pair.seq, 0, data))
    pair.deliver(pair.b, End(pair.seq, end.get("checksum", xxhash.xxh3_64_intdigest(data)), 0.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(value: float) -> None:
    """NaN/Inf: the exchange is refused, with a strike."""
    pair = Pair()
    broken(pair, [1.0, 2.0, value, 3.0])
    assert pair.b.reason() == "payload holds a value that is not finite"
    assert pair.b.edge.strikes == 1
    assert isinstance(pair.a.inbox[-1], Skip)
    assert pair.exact


def test_checksum_wrong() -> None:
    """checksum wrong: the exchange is refused, with a strike."""
    pair = Pair()
    broken(pair, [1.0, 2.0, 3.0, 4.0], checksum=1)
    assert pair.b.reason() == "checksum differs"
    assert pair.b.edge.strikes == 1
    assert pair.exact


def test_repeated_strikes_drop_the_peer() -> None:
    """NaN/Inf, checksum wrong: five of them, and the peer is dropped with the reason."""
    pair = Pair()
    for strike in range(5):
        assert not pair.b.drops
        pair.seq = strike
        broken(pair, [math.nan] * D)
    drop = pair.b.drops[0]
    assert drop.reason == "5 broken exchanges, the last: payload holds a value that is not finite"
    assert not drop.refused


@pytest.mark.parametrize("size", [8, RULES.vector_bytes + 8, 2 * RULES.vector_bytes, 1 << 62])
def test_declared_size_too_big(size: int) -> None:
    """declared size too big: compared with what was agreed, refused before any allocation."""
    pair = Pair()
    pair.begin(pair.b)
    pair.deliver(pair.b, Begin(0, 0, 0, 1, size, "float64", 1.0))
    assert pair.b.drops[0].reason == (
        f"expected at most 1 vectors of {RULES.vector_bytes} bytes, found a payload of {size}"
    )


@pytest.mark.parametrize("first", ["peer", "self"])
def test_declared_size_is_not_the_one_of_this_exchange(first: str) -> None:
    """declared size: nothing at all, where a vector is due; whether before our own offer or after."""
    pair = Pair()
    if first == "self":
        pair.begin(pair.b)
    pair.deliver(pair.b, Begin(0, 0, 0, 1, 0, "float64", 1.0))
    if first == "peer":
        pair.begin(pair.b)
    assert pair.b.reason() == "expected a payload of 32 bytes in round 0, found 0"
    assert pair.b.edge.strikes == 1


def test_wrong_wire_type() -> None:
    """wrong dtype on the wire, though HELLO agreed: the peer is dropped."""
    pair = Pair()
    pair.deliver(pair.b, Begin(0, 0, 0, 1, RULES.vector_bytes, "float16", 1.0))
    assert pair.b.drops[0].reason == "expected float64 on the wire, found float16"


def test_a_promised_payload_cannot_be_replaced() -> None:
    """A coordinator that begins anew instead of deciding: the promise stays, the connection goes."""
    pair = Pair()
    pair.begin()
    pair.flow(until=lambda m: isinstance(m, Prepared))
    assert pair.b.edge.committing
    pair.deliver(pair.b, Begin(0, 5, 0, 1, RULES.vector_bytes, "float64", 1.0))
    assert "is promised" in pair.b.drops[0].reason
    assert pair.b.edge.in_doubt
    pair.a.gossip.disconnected(PARTICIPANT, "connection lost")
    pair.connect()
    pair.settle()
    assert pair.exact
    assert_back_to_normal(pair)


def test_a_stale_message_does_not_touch_a_promise() -> None:
    """stale round: a BEGIN of an earlier round that comes after PREPARED of the same exchange."""
    pair = Pair()
    pair.round()
    pair.begin()
    pair.flow(until=lambda m: isinstance(m, Prepared))
    pair.deliver(pair.b, Begin(1, 0, 0, 1, RULES.vector_bytes, "float64", 1.0))
    pair.flow()
    assert [end.reason() for end in pair.ends] == [None, None]
    assert_back_to_normal(pair)


@pytest.mark.parametrize("message", [Commit(0), Commit(7), Begin(2, 0, 0, 1, 32, "float64", 1.0)])
@pytest.mark.parametrize("end", ["a", "b"])
def test_verdicts_and_numbers_nobody_is_at(message: Message, end: str) -> None:
    """A COMMIT that was not prepared, or an exchange out of sequence: the peer is dropped."""
    pair = Pair()
    target: Device = getattr(pair, end)
    pair.begin(target)
    pair.deliver(target, message)
    assert len(target.drops) == 1
    assert target.reason()


def test_numbers_cannot_run_out() -> None:
    """HELLO with the largest number there is would leave none for the next exchange."""
    pair = Pair()
    pair.disconnect()
    pair.b.gossip.connected(COORDINATOR)
    pair.deliver(pair.b, replace(greeting(COORDINATOR), next_seq=2**64 - 1))
    assert "next exchange" in pair.b.drops[0].reason
    pair.connect()
    assert_back_to_normal(pair)


def test_goodbye_while_the_participant_is_in_doubt() -> None:
    """A coordinator that leaves still answers, and the doubt is settled before both part."""
    pair = Pair()
    pair.lose = Once(Commit, Settle, Settled)
    pair.round()
    pair.a.gossip.goodbye("finished")
    pair.carry_out(pair.a)
    pair.flow()
    assert pair.b.edge.in_doubt
    assert not pair.a.edge.parted
    pair.wait(2.0)
    assert not pair.b.edge.in_doubt
    assert pair.a.edge.parted
    assert pair.b.edge.parted
    pair.settle()
    assert pair.exact


def test_no_module_reads_the_wall_clock() -> None:
    """clock jump: only monotonic time is used, save for the dates of certificates and of the audit log."""
    wall = {
        ("time", "time"),
        ("time", "time_ns"),
        ("datetime", "now"),
        ("datetime", "utcnow"),
        ("date", "today"),
    }
    reading = set()
    for path in (ROOT / "p2pqg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if (node.value.id, node.attr) in wall:
                    reading.add(path.name)
            elif isinstance(node, ast.ImportFrom) and node.module == "time":
                assert not {"time", "time_ns"} & {alias.name for alias in node.names}
    assert reading == {"certificates.py", "audit.py"}


def test_the_page_names_tests_that_exist() -> None:
    """Every test that `docs/faults.md` names is there."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert not {name for name in named if f"def {name}(" not in sources}

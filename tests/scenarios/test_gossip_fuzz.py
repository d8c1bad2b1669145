"""Any sequence of messages, from a peer that may be anything: nothing is raised, and nothing grows."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields
from typing import Any, get_args

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pair import COORDINATOR, PARTICIPANT, RULES, greeting

from p2pqg.gossip.edge import Rules
from p2pqg.gossip.machine import Exchanged, Gossip, Send
from p2pqg.gossip.messages import (
    STATES,
    Begin,
    Data,
    End,
    Member,
    Message,
    Prepared,
    Settle,
    Skip,
)
from p2pqg.wire.codec import encode

PEERS = ("agent-000", "agent-002")
ME = "agent-001"
OWN = np.arange(4.0).tobytes()
OWN_CHECKSUM = xxhash.xxh3_64_intdigest(OWN)

small = st.integers(0, 4)
numbers = small | st.integers(0, 2**64 - 1)
payloads = st.sampled_from([OWN, OWN[:8], OWN[:5], OWN + OWN, np.full(4, np.nan).tobytes(), b""])
BY_FIELD: dict[str, st.SearchStrategy[Any]] = {
    "seq": numbers,
    "round": numbers,
    "reached": numbers,
    "exchange": st.just(0) | numbers,
    "payload_bytes": st.sampled_from([0, 8, 32, 64]) | numbers,
    "offset": st.sampled_from([0, 8, 32]) | numbers,
    "payload": payloads,
    "wire": st.sampled_from(["float64", "float64", "float32"]),
    "checksum": st.just(OWN_CHECKSUM) | numbers,
    "received": st.just(OWN_CHECKSUM) | numbers,
    "sent": st.just(OWN_CHECKSUM) | numbers,
    "network": st.sampled_from(["n", "n", "other"]),
    "run": st.just("r"),
    "agent": st.sampled_from([*PEERS, ME]),
    "settings": st.just({"beta": "0.9"}) | st.just({}),
    "versions": st.sampled_from([(1, 1), (1, 1), (2, 2)]),
    "incarnation": st.sampled_from([1, 1, 2, 2**64 - 1]),
    "undecided": st.none() | numbers,
    **dict.fromkeys(["committed", "joining", "fetches", "waiting"], st.booleans()),
    "remembered": st.sampled_from([0, 0, 1]) | numbers,
    "members": st.lists(
        st.builds(Member, st.sampled_from([*PEERS, ME]), numbers, st.sampled_from(STATES), round=numbers),
        max_size=3,
    ).map(tuple),
    **dict.fromkeys(["deadline_s", "norm"], st.floats(0, allow_nan=False, allow_infinity=False)),
    **dict.fromkeys(["note", "sent_s", "echo_s"], st.floats(allow_nan=False, allow_infinity=False)),
    **dict.fromkeys(["item", "expected", "found", "reason"], st.text("ab ", max_size=5)),
}
messages = st.one_of(
    st.builds(kind, **{field.name: BY_FIELD.get(field.name, numbers) for field in fields(kind)})
    for kind in get_args(Message)
)
peers = st.sampled_from(PEERS)
events = st.one_of(
    st.tuples(st.just("received"), peers, messages),
    st.tuples(st.just("received"), peers, messages),
    st.tuples(st.just("offer"), peers, st.tuples(small, small)),
    st.tuples(st.just("connected"), peers, st.none()),
    st.tuples(st.just("disconnected"), peers, st.none()),
    st.tuples(st.just("begin"), peers, st.sampled_from(["both", "in", "out"])),
    st.tuples(st.just("tick"), peers, st.floats(0, 20)),
    st.tuples(st.just("leave"), peers, st.none()),
    st.tuples(st.just("goodbye"), peers, st.none()),
)


class Machine:
    """A machine and the only thing its owner has to know: whether an exchange is open."""

    def __init__(self) -> None:
        self.gossip = Gossip(greeting(ME), PEERS, RULES)
        self.now, self.round, self.open = 0.0, 0, False

    def happen(self, kind: str, peer: str, detail: Any) -> None:
        match kind:
            case "received":
                self.gossip.received(peer, detail, self.now)
            case "offer":  # a whole, honest-looking exchange
                seq, round = detail
                for message in (
                    Begin(seq, round, 0, 1, len(OWN), "float64", 1.0),
                    Data(seq, 0, OWN),
                    End(seq, OWN_CHECKSUM, 1.0),
                    Prepared(seq, OWN_CHECKSUM, OWN_CHECKSUM),
                ):
                    self.gossip.received(peer, message, self.now)
            case "connected":
                self.gossip.disconnected(peer, "replaced")
                self.gossip.connected(peer)
                self.gossip.received(peer, greeting(peer), self.now)
            case "disconnected":
                self.gossip.disconnected(peer, "gone")
            case "begin" if not self.open:
                self.open = True
                self.gossip.begin((self.round, 0), memoryview(OWN), checksum=OWN_CHECKSUM, norm=1.0,
                                  incoming=PEERS if detail != "out" else (), now=self.now,
                                  outgoing=PEERS if detail != "in" else ())  # fmt: skip
                self.round += 1
            case "tick":
                self.now += detail
                self.gossip.tick(self.now)
            case "leave":
                self.gossip.leave()
            case "goodbye":
                self.gossip.goodbye("done")
        for output in self.gossip.outputs():
            if isinstance(output, Send):
                assert isinstance(encode(output.message), bytes), "what is said can be sent"
            elif isinstance(output, Exchanged):
                self.open = False
                for c in (*output.contributions, *output.late):
                    if c.weight:
                        assert np.isfinite(np.frombuffer(c.theirs)).all()
                        assert len(c.theirs) == len(c.own)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@given(st.lists(events, max_size=40))
def test_any_sequence_of_messages_raises_nothing(sequence: list[tuple[str, str, Any]]) -> None:
    machine = Machine()
    for peer in PEERS:
        machine.happen("connected", peer, None)
    for event in sequence:
        machine.happen(*event)
    for _ in range(round(10 * RULES.round_timeout_s)):
        machine.happen("tick", PEERS[0], 1.0)
    assert not machine.open, "every exchange ends"


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=5000)
@given(st.lists(events, max_size=80))
def test_any_long_sequence_of_messages_raises_nothing(sequence: list[tuple[str, str, Any]]) -> None:
    test_any_sequence_of_messages_raises_nothing.hypothesis.inner_test(sequence)  # type: ignore[attr-defined]


BIG = 1 << 20


def begins(seq: int) -> list[Message]:
    return [Begin(seq, round, 0, 1, BIG, "float64", 1.0) for round in range(500)]


@pytest.mark.parametrize(
    "flood",
    [
        begins(0),
        [m for b in begins(0) for m in (b, Data(0, 0, bytes(1 << 16)))],
        [m for k in range(500) for m in (Begin(k, k, 0, 1, BIG, "float64", 1.0), Skip(k, 0, 0, ""))],
        [Settle(k % 7) for k in range(500)],
        [Prepared(k % 7, k, k) for k in range(500)],
        [greeting(COORDINATOR)] * 500,
    ],
    ids=["begin", "begin-data", "begin-skip", "settle", "prepared", "hello"],
)
def test_a_flood_takes_no_memory(flood: list[Message]) -> None:
    """At most one payload an edge, however many were announced; at most one answer to a message."""
    gossip = Gossip(greeting(PARTICIPANT), [COORDINATOR], Rules(BIG, "float64", 1, 10.0))
    gossip.connected(COORDINATOR)
    gossip.received(COORDINATOR, greeting(COORDINATOR), 0.0)
    gossip.outputs()
    tracemalloc.start()
    try:
        for message in flood:
            gossip.received(COORDINATOR, message, 0.0)
            assert len(gossip.outputs()) <= 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * BIG

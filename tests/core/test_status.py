"""What is remembered of a run is bounded, spread over all of it, and short."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from p2pqg.status import CURVES, EVENTS, POINTS, RECENT, TEXT, Curve, Journal


@given(n=st.integers(1, 5 * POINTS))
def test_a_curve_is_bounded_and_spans_the_run(n: int) -> None:
    curve = Curve()
    for round in range(n):
        curve.add(round, float(-round))
    assert len(curve.rounds) <= POINTS
    assert curve.values == [-float(round) for round in curve.rounds]
    gaps = [b - a for a, b in zip(curve.rounds, curve.rounds[1:], strict=False)]
    assert max(gaps, default=0) == min(gaps, default=0), "evenly spread"
    assert curve.rounds[0] == 0
    assert n - 1 - curve.rounds[-1] <= max(gaps, default=0)


def test_a_journal_keeps_what_is_a_number() -> None:
    journal = Journal()
    journal.measured(1, {"loss": math.nan, "round_s": 0.5, "lr": 0.1, "test_accuracy": None})
    journal.measured(2, {"loss": 2.0, "round_s": 1.5})
    assert journal.latest == {"loss": 2.0, "round_s": 1.5}
    assert journal.pace_s == 1.0
    assert set(journal.as_json()) <= set(CURVES)
    assert json.loads(json.dumps(journal.as_json(), allow_nan=False))["loss"] == {
        "round": [2],
        "value": [2.0],
    }


def test_events_are_bounded_in_number_and_length() -> None:
    journal = Journal()
    for i in range(EVENTS + 10):
        journal.note("refused", {"peer": i, "reason": "x" * 10_000, "peers": ["a", "b"]}, float(i))
    assert [event.at_s for event in journal.events] == [10.0 + i for i in range(EVENTS)]
    assert len(journal.events[-1].details["reason"]) == TEXT
    assert journal.events[-1].details["peers"] == "a, b"


def test_what_happens_again_is_one_event() -> None:
    journal = Journal()
    for round in range(100):
        for peer in ("bern", "chur"):
            journal.note("missed", {"peer": peer, "round": round, "reason": "not connected"}, float(round))
    journal.note("missed", {"peer": "bern", "round": 100, "reason": "late"}, 100.0)
    assert [(e.details["peer"], e.times, e.at_s) for e in journal.events] == [
        ("bern", 100, 99.0),
        ("chur", 100, 99.0),
        ("bern", 1, 100.0),
    ]


def test_quality_looks_at_recent_rounds() -> None:
    journal = Journal()
    assert journal.quality("bern") is None
    for _ in range(RECENT):
        journal.mixed([], ["bern"])
    assert journal.quality("bern") == 0.0
    for _ in range(RECENT // 2):
        journal.mixed(["bern"], [])
    assert journal.quality("bern") == 0.5

"""What is remembered of a run is bounded, spread over all of it, and short."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from p2pqg.telemetry.journal import CURVES, EVENTS, POINTS, RECENT, TEXT, Curve, Journal


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


def a_round(done: int, mixed: Iterable[str] = (), missed: Iterable[str] = (), **more: Any) -> dict[str, Any]:
    return {
        "round": done,
        "exchanged": dict.fromkeys(mixed, (1, 1)),
        "missed": dict.fromkeys(missed, "x"),
        **more,
    }


def test_a_journal_keeps_what_is_a_number() -> None:
    journal = Journal()
    journal.observe("round", a_round(1, loss=math.nan, round_s=0.5, lr=0.1, test_accuracy=None))
    journal.observe("round", a_round(2, loss=2.0, round_s=1.5))
    assert journal.latest == {"loss": 2.0, "round_s": 1.5}
    assert set(journal.curves()) <= set(CURVES)
    assert json.loads(json.dumps(journal.curves(), allow_nan=False))["loss"] == {"round": [2], "value": [2.0]}


def test_a_journal_goes_on_after_a_restart() -> None:
    journal = Journal()
    journal.resume([{"round": 1, "loss": 3.0}, {"round": 2, "loss": 2.0}])
    journal.observe("round", a_round(3, loss=1.0))
    journal.observe("agreeing", {"round": 4, "disagreement": 0.5})
    assert journal.curves()["loss"] == {"round": [1, 2, 3], "value": [3.0, 2.0, 1.0]}
    assert journal.curves()["disagreement"] == {"round": [4], "value": [0.5]}


def test_events_are_bounded_in_number_and_length() -> None:
    journal = Journal(now=itertools.count().__next__)
    for i in range(EVENTS + 10):
        journal.observe("refused", {"peer": i, "reason": "x" * 10_000, "peers": ["a", "b"]})
    assert [event.at_s for event in journal.events] == [11 + i for i in range(EVENTS)]
    assert len(journal.events[-1].details["reason"]) == TEXT
    assert journal.events[-1].details["peers"] == "a, b"


def test_what_happens_again_is_one_event() -> None:
    journal = Journal()
    for round in range(100):
        for peer in ("bern", "chur"):
            journal.observe("missed", {"peer": peer, "round": round, "reason": "not connected"})
    journal.observe("missed", {"peer": "bern", "round": 100, "reason": "late"})
    assert [(e.details["peer"], e.times, e.details["round"]) for e in journal.events] == [
        ("bern", 100, "99"),
        ("chur", 100, "99"),
        ("bern", 1, "100"),
    ]


def test_quality_looks_at_recent_rounds() -> None:
    journal = Journal()
    assert journal.quality("bern") is None
    for round in range(RECENT):
        journal.observe("round", a_round(round, missed=["bern"]))
    assert journal.quality("bern") == 0.0
    for round in range(RECENT // 2):
        journal.observe("round", a_round(round, mixed=["bern"]))
    assert journal.quality("bern") == 0.5

"""Scripts of faults, what each of them is said to have cost, and what a soak makes of it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from p2pqg_simulator.faults import ENDS, Cost, Fault, Ledger, broken_promises, script
from p2pqg_simulator.hosts import Resources
from p2pqg_simulator.soak import LONG_LIFE, Lives

NAMES = tuple("abcdefgh")
USUAL_S, TIMEOUT_S = 0.1, 5.0


@given(st.integers(0, 10_000), st.floats(20.0, 500.0), st.integers(1, 4))
def test_whatever_begins_ends_in_time_and_is_allowed(seed: int, until_s: float, at_once: int) -> None:
    faults = script(seed, NAMES, until_s=until_s, every_s=5.0, lasts_s=(0.5, 40.0), at_once=at_once)
    assert faults == script(seed, NAMES, until_s=until_s, every_s=5.0, lasts_s=(0.5, 40.0), at_once=at_once)
    open_faults: dict[tuple[str, ...], str] = {}
    for fault in faults:
        assert 0 < fault.at_s <= until_s
        if fault.kind in ENDS:
            assert (fault.kind == "part", *fault.agents) not in open_faults
            assert fault.kind == "part" or fault.agents[0] != "a"
            assert len(fault.agents) <= len(NAMES) / 2
            open_faults[fault.kind == "part", *fault.agents] = fault.kind
            assert len(open_faults) <= at_once
        else:
            begun = open_faults.pop((fault.kind == "heal", *fault.agents))
            assert fault.kind in ENDS[begun]  # type: ignore[index]
    assert not open_faults


def ledger(*faults: Fault) -> Ledger:
    """Where these happened."""
    ledger = Ledger(USUAL_S)
    for fault in faults:
        ledger.happened(fault, fault.at_s)
    return ledger


def test_a_round_belongs_to_the_first_fault_in_it() -> None:
    costs = ledger(*(Fault(at, kind, ("b",)) for at, kind in [(10.0, "kill"), (12.0, "restart")]))
    costs.round("a", 9.0, 4.0, 2, 1)  # before any
    costs.round("a", 14.0, 5.0, 1, 1)  # over both
    costs.round("c", 14.0, 1.0, 2, 0)  # after both
    costs.round("c", 14.1, 2 * USUAL_S, 2, 0)  # noise
    kill, restart = costs.costs
    assert (kill.waited_s, kill.missed, kill.longest_s) == ({"a": 5.0 - USUAL_S}, 1, 5.0)
    assert (restart.waited_s, restart.missed) == ({"c": 1.0 - USUAL_S}, 0)


def test_what_a_frozen_agent_loses_is_no_cost_to_others() -> None:
    costs = ledger(Fault(10.0, "freeze", ("b",)), Fault(12.0, "kill", ("c",)), Fault(40.0, "thaw", ("b",)))
    costs.round("b", 40.5, 31.0, 0, 2)
    costs.round("b", 45.0, 4.0, 2, 0)
    assert [cost.waited_s for cost in costs.costs] == [{}, {}, {}]


def test_rounds_alone_are_counted_until_an_agent_mixes() -> None:
    costs = ledger(Fault(10.0, "kill", ("b",)), Fault(12.0, "restart", ("b",)))
    for at_s, mixed in [(15.0, 0), (15.1, 0), (15.2, 1), (15.3, 0)]:
        costs.round("b", at_s, USUAL_S, mixed, 2 - mixed)
    _, restart = costs.costs
    assert restart.back_rounds == 3
    assert math.isclose(restart.back_s or 0, 3.2)
    assert not restart.waited_s
    assert restart.missed == 0, "its own misses are no cost to others"


def broken(*costs: tuple[float, str, float, int | None]) -> list[str]:
    listed = []
    for at_s, kind, lost_s, back in costs:
        fault = Fault(at_s, kind, ("b" if kind not in ("part", "slow") else "c",))  # type: ignore[arg-type]
        listed.append(Cost(fault, at_s, {"a": lost_s}, back_rounds=back))
    return broken_promises(listed, USUAL_S, TIMEOUT_S)


def test_what_costs_more_than_was_promised_is_named() -> None:
    assert broken((10, "kill", 7.0, None), (40, "restart", 0.0, 3)) == []
    assert broken((10, "kill", 9.0, None)) == ["kill b at 10 s cost another agent 9.0 s"]
    assert broken((10, "leave", 0.0, None), (40, "join", 0.0, 4)) == [
        "join b at 40 s: mixing again after 4 rounds"
    ]
    assert broken((38, "leave", 0.0, None), (40, "join", 0.0, 4)) == [], "views still differ"
    assert broken((9, "slow", 30.0, None), (10, "kill", 9.0, None)) == [], "somebody is slow"


def test_a_process_that_grows_is_named() -> None:
    def problems(grown: float, count: int = LONG_LIFE) -> list[str]:
        seen = [Resources(100.0 + grown * k / count, 20, 9) for k in range(count)]
        return Lives({("b", 1): seen}).problems()

    assert problems(2.0) == []
    assert problems(100.0, count=LONG_LIFE - 4) == [], "too young to tell"
    assert problems(100.0) == ["b (start 1): memory_mib grew from 136 to 186"]

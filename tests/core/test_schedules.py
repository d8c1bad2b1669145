"""The learning rate is a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pqg.errors import ConfigError
from p2pqg.schedules import Schedule, constant, cosine, milestones


def test_constant() -> None:
    assert {constant(0.3)(t) for t in range(1000)} == {0.3}


def test_milestones_multiply_from_their_step_on() -> None:
    schedule = milestones(1.0, at=(10, 20), decay=0.5)
    assert [schedule(t) for t in (0, 9, 10, 19, 20, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_cosine_is_half_a_period_down_to_the_floor() -> None:
    schedule = cosine(2.0, steps=100, floor=0.1)
    assert schedule(0) == 2.0
    assert schedule(50) == pytest.approx((2.0 + 0.2) / 2)
    assert schedule(25) == pytest.approx(0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2)
    assert schedule(100) == schedule(1000) == pytest.approx(0.2)


def test_cosine_after_a_warm_up() -> None:
    schedule = cosine(1.1, steps=110, warmup_steps=10)
    assert [schedule(t) for t in (0, 5, 10)] == pytest.approx([0.1, 0.6, 1.1])
    assert schedule(60) == pytest.approx((1.1 + 0.011) / 2)


def test_a_peak_at_or_below_the_start_has_no_warm_up() -> None:
    for schedule in (Schedule(0.1, warmup_steps=10), cosine(0.05, steps=100, warmup_steps=10)):
        assert {schedule(t) for t in range(11)} == {schedule.lr}


def test_a_round_of_local_steps_takes_consecutive_rates() -> None:
    schedule = Schedule(1.0, warmup_steps=9)
    assert schedule.steps(2, 3) == (schedule(6), schedule(7), schedule(8))


@given(
    lr=st.floats(1e-6, 10),
    warmup_steps=st.integers(0, 20),
    span=st.one_of(st.none(), st.integers(1, 50)),
    t=st.integers(0, 200),
)
def test_rates_stay_positive_and_never_exceed_the_larger_of_peak_and_start(
    lr: float, warmup_steps: int, span: int | None, t: int
) -> None:
    schedule = Schedule(lr, warmup_steps=warmup_steps, cosine_steps=span and warmup_steps + span)
    assert 0 < schedule(t) <= max(lr, schedule.warmup_from) * (1 + 1e-12)


def test_description_tells_schedules_apart_and_ignores_what_has_no_effect() -> None:
    different = [
        Schedule(1.0),
        Schedule(0.5),
        Schedule(1.0, warmup_steps=5),
        Schedule(1.0, warmup_steps=5, warmup_from=0.2),
        Schedule(1.0, milestones=(5,)),
        Schedule(1.0, milestones=(5, 6)),
        Schedule(1.0, milestones=(5,), decay=0.5),
        Schedule(1.0, cosine_steps=10),
        Schedule(1.0, cosine_steps=10, floor=0.5),
        Schedule(1.0, cosine_steps=10, warmup_steps=5),
    ]
    assert len({schedule.describe() for schedule in different}) == len(different)
    same = [Schedule(1), Schedule(1.0, warmup_from=0.3), Schedule(1.0, decay=0.5), Schedule(1.0, floor=0.5)]
    assert {schedule.describe() for schedule in same} == {Schedule(1.0).describe()}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": -1.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"lr": math.inf}, "lr"),
        ({"lr": 1.0, "warmup_steps": -1}, "warmup_steps"),
        ({"lr": 1.0, "warmup_from": 0.0}, "warmup_from"),
        ({"lr": 1.0, "milestones": (20, 10)}, "milestones"),
        ({"lr": 1.0, "milestones": (10, 10)}, "milestones"),
        ({"lr": 1.0, "milestones": (0,)}, "milestones"),
        ({"lr": 1.0, "decay": 0.0}, "decay"),
        ({"lr": 1.0, "decay": 1.5}, "decay"),
        ({"lr": 1.0, "floor": 0.0}, "floor"),
        ({"lr": 1.0, "cosine_steps": 5, "warmup_steps": 5}, "cosine_steps"),
        ({"lr": 1.0, "cosine_steps": 50, "milestones": (10,)}, "milestones"),
    ],
)
def test_impossible_rates_are_refused_by_key(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=r"expected .* found") as caught:
        Schedule(**settings)
    assert caught.value.key == f"schedule.{key}"

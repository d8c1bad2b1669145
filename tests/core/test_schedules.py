"""The learning rate is a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pqg.errors import ConfigError
from p2pqg.schedules import Schedule, constant, cosine, epoch_steps, milestones, paper_schedule


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


def test_the_papers_schedule_follows_the_trace_of_the_released_code() -> None:
    """Paper-protocol, section 5: n = 16 on CIFAR-10."""
    schedule = paper_schedule("cifar", 16, 50_000)
    trace = {
        0: 0.1,
        98: 0.24,
        490: 0.8,
        14_699: 0.8,
        14_700: 0.08,
        22_049: 0.08,
        22_050: 0.008,
        29_399: 0.008,
    }
    assert {t: schedule(t) for t in trace} == pytest.approx(trace)


@pytest.mark.parametrize(("n", "steps"), [(4, 391), (8, 196), (16, 98), (32, 49), (48, 33)])
def test_epochs_are_as_long_as_in_the_paper(n: int, steps: int) -> None:
    assert epoch_steps(n, 50_000, 32) == steps
    schedule = paper_schedule("cifar", n, 50_000)
    assert schedule.lr == pytest.approx(0.05 * n)
    assert schedule.warmup_steps == 5 * steps
    assert schedule.milestones == (150 * steps, 225 * steps)


def test_the_papers_schedule_for_imagenet_and_text() -> None:
    epoch = epoch_steps(16, 1_281_167, 64)
    schedule = paper_schedule("imagenet", 16, 1_281_167)
    assert schedule.lr == pytest.approx(1.6)
    assert schedule.milestones == (30 * epoch, 60 * epoch, 80 * epoch)
    assert {paper_schedule("text", 16, 96_000)(t) for t in range(2000)} == {1e-5}


def test_the_papers_schedule_scales_with_its_factor_and_length() -> None:
    assert paper_schedule("cifar", 16, 1600, epochs=2, factor=2).describe() == "lr=0.1, decay=0.1 at 4 8"
    milestones = paper_schedule("cifar", 16, 1600, batch_size=100, epochs=7, factor=1).milestones
    assert milestones == (4, 5)  # floor(3.5 + 0.5), floor(5.25 + 0.5)

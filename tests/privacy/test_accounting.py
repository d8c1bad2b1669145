"""Epsilon against Opacus's own accountants and against a closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
from private_tasks import mechanism
from scipy.optimize import brentq
from scipy.stats import norm

from p2pqg.config import PrivacySettings, RunSettings, validate
from p2pqg.errors import ConfigError
from p2pqg.privacy.accounting import PRV_LIMIT, Accountant, epsilon, noise_multiplier

accountants = pytest.importorskip("opacus.accountants")

CASES = [(1.0, 0.01, 500), (2.0, 0.1, 50)]


@pytest.mark.parametrize(("noise", "rate", "steps"), CASES)
@pytest.mark.parametrize("kind", ["prv", "rdp"])
def test_epsilon_is_that_of_opacus_step_by_step(
    noise: float, rate: float, steps: int, kind: Accountant
) -> None:
    theirs = accountants.create_accountant(mechanism=kind)
    for _ in range(steps):
        theirs.step(noise_multiplier=noise, sample_rate=rate)
    ours = epsilon(((noise, rate, steps),), 1e-5, kind)
    assert ours == pytest.approx(theirs.get_epsilon(1e-5), rel=0.02)


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Epsilon of one Gaussian mechanism of sensitivity 1: Balle & Wang 2018, Theorem 8."""

    def excess(eps: float) -> float:
        first = norm.cdf(1 / (2 * noise) - eps * noise)
        return float(first - math.exp(eps) * norm.cdf(-1 / (2 * noise) - eps * noise) - delta)

    return float(brentq(excess, 0, 100))


@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_all_records_in_every_step_is_the_gaussian_mechanism(noise: float) -> None:
    """T steps with q = 1 and sigma are one with sigma / sqrt(T)."""
    exact = gaussian_epsilon(noise, 1e-5)
    for steps in (1, 9):
        history = ((noise * math.sqrt(steps), 1.0, steps),)
        assert exact <= epsilon(history, 1e-5, "prv") + 1e-3
        assert epsilon(history, 1e-5, "prv") == pytest.approx(exact, abs=0.03)
        assert exact < epsilon(history, 1e-5, "rdp") < 1.3 * exact


def test_prv_is_never_above_rdp_and_gives_way_to_it() -> None:
    history = ((1.0, 0.05, 100),)
    assert epsilon(history, 1e-5, "prv") <= epsilon(history, 1e-5, "rdp")
    hopeless = ((0.4, 0.05, 2000),)
    assert epsilon(hopeless, 1e-5, "prv") == epsilon(hopeless, 1e-5, "rdp") > PRV_LIMIT


def test_nothing_costs_nothing_and_no_noise_costs_all() -> None:
    assert epsilon(((1.0, 0.1, 0),), 1e-5) == 0
    assert epsilon(((0.0, 0.1, 1),), 1e-5) == math.inf


@pytest.mark.parametrize(
    ("kind", "target"),
    [("rdp", 0.5), ("rdp", 10.0), pytest.param("prv", 3.0, marks=pytest.mark.slow)],
)
def test_noise_for_a_target_keeps_to_it_and_wastes_little(kind: Accountant, target: float) -> None:
    noise = noise_multiplier(target, 1e-5, 0.05, 200, kind)
    assert 0.95 * target < epsilon(((noise, 0.05, 200),), 1e-5, kind) <= target
    own = mechanism(noise_multiplier=noise, sample_rate=0.05, planned=200, budget=target, accountant=kind)
    assert 200 <= own.affordable() < 220


def test_a_target_out_of_reach_is_said() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.target_epsilon"):
        noise_multiplier(1e-9, 1e-5, 1.0, 1000)


def test_affordable_steps_are_the_most() -> None:
    own = mechanism(noise_multiplier=1.0, sample_rate=0.05, planned=100, budget=2.5, accountant="rdp")
    steps = own.affordable()
    assert own.epsilon(steps) <= 2.5 < own.epsilon(steps + 1)
    before = ((1.0, 0.05, 10),)
    assert own.affordable(before) == steps - 10
    assert mechanism(budget=1.0, noise_multiplier=0.0).affordable() == 0


def test_the_shown_figure_is_never_too_small() -> None:
    own = mechanism(noise_multiplier=1.0, sample_rate=0.05, planned=200, accountant="rdp")
    figures = [own.shown(steps) for steps in range(0, 201, 7)]
    assert all(figure >= own.epsilon(steps) for figure, steps in zip(figures, range(0, 201, 7), strict=True))
    assert own.shown(200) == own.epsilon(200)
    assert len(set(figures)) <= 21


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"dp": True}, "privacy.target_epsilon"),
        ({"dp": True, "noise_multiplier": 1.0, "rounds": 10}, "privacy.rounds"),
        ({"dp": True, "target_epsilon": 0}, "privacy.target_epsilon"),
        ({"dp": True, "noise_multiplier": 1.0, "max_grad_norm": 0}, "privacy.max_grad_norm"),
        ({"dp": True, "noise_multiplier": 1.0, "target_delta": 1.5}, "privacy.target_delta"),
        ({"dp": True, "noise_multiplier": 1.0, "accountant": "gdp"}, "privacy.accountant"),
        ({"epsilon": 3}, "privacy.epsilon"),
    ],
)
def test_settings_that_make_no_sense_are_named(table: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")) as caught:
        validate(RunSettings, {"privacy": table}, where="agent.toml")
    assert caught.value.where == "agent.toml"


def test_the_noise_of_settings_is_what_the_rounds_can_afford() -> None:
    settings = PrivacySettings(dp=True, target_epsilon=3.0, rounds=20, accountant="rdp")
    own = settings.mechanism(samples=1000, batch_size=50, rounds=100, local_steps=2)
    assert own is not None
    assert (own.planned, own.sample_rate, own.budget) == (40, 0.05, 3.0)
    assert 2.8 < own.epsilon(40) <= 3.0
    assert PrivacySettings(target_epsilon=3.0).mechanism(10, 1, 1, 1) is None

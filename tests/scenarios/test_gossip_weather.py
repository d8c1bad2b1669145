"""The machines alone, in bad weather: after every event the ledger of `VirtualNetwork` must balance."""

from __future__ import annotations

import pytest
from virtual_network import LONGEST_S, VirtualNetwork, Weather

TOPOLOGIES = [
    ("ring", 2),
    ("ring", 5),
    ("star", 5),
    ("complete", 4),
    ("one-peer-hypercube", 8),
    ("one-peer-exponential", 6),
]
UNTIL_S = 8.0
WEATHERS = {
    "calm": Weather(until_s=0.0),
    "slow": Weather(delay_s=0.5, duplicate=0.2, until_s=UNTIL_S),
    "fast": Weather(delay_s=0.001, think_s=0.02, drop=0.02, duplicate=0.02, breaks=0.5, until_s=UNTIL_S),
    "lossy": Weather(drop=0.05, duplicate=0.1, until_s=UNTIL_S),
    "breaking": Weather(breaks=2.0, until_s=UNTIL_S),
    "freezing": Weather(freezes=0.5, until_s=UNTIL_S),
    "deadly": Weather(kills=0.5, breaks=0.5, until_s=UNTIL_S),
    "all": Weather(drop=0.03, duplicate=0.05, breaks=0.5, kills=0.3, freezes=0.3, until_s=UNTIL_S),
}


def weathered(weather: Weather, topology: str, n: int, seed: int) -> VirtualNetwork:
    network = VirtualNetwork(seed, topology, n, rounds=25, weather=weather)
    network.run()
    assert network.longest_s <= LONGEST_S
    if not network.killed:
        assert not network.leaks
        assert not network.counted
    return network


@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize(("topology", "n"), TOPOLOGIES)
def test_the_sum_is_kept_and_every_exchange_ends(weather: str, topology: str, n: int) -> None:
    assert sum(weathered(WEATHERS[weather], topology, n, seed).committed for seed in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize(("topology", "n"), TOPOLOGIES)
def test_the_sum_is_kept_for_many_seeds(weather: str, topology: str, n: int) -> None:
    for seed in range(40):
        weathered(WEATHERS[weather], topology, n, seed)


@pytest.mark.parametrize(("topology", "n"), TOPOLOGIES)
def test_in_calm_weather_nothing_is_missed(topology: str, n: int) -> None:
    network = weathered(WEATHERS["calm"], topology, n, seed=7)
    assert not network.missed
    assert not network.late


@pytest.mark.parametrize("weather", ["lossy", "breaking"])
def test_the_weather_is_bad_enough_to_leave_verdicts_in_doubt(weather: str) -> None:
    networks = [weathered(WEATHERS[weather], "complete", 4, seed) for seed in range(8)]
    assert sum(network.late for network in networks)


@pytest.mark.parametrize(("topology", "n"), TOPOLOGIES[:-1])
def test_a_leak_takes_a_death_between_promise_and_verdict_and_is_counted(topology: str, n: int) -> None:
    leaks = 0
    for seed in range(12):
        network = VirtualNetwork(seed, topology, n, rounds=15, weather=Weather(until_s=4.0))
        for _ in range(200 + 7 * seed):
            network.step()
        network.kill(seed % n)
        network.wait(3.0)
        network.restart(seed % n)
        network.run()
        leaks += network.leaks
        assert network.counted >= network.leaks
    assert leaks

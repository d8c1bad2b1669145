"""Agents with secure sums that were away: nobody gives them a model."""

from __future__ import annotations

from typing import Any

import pytest
from test_agents_equal_the_matrix import settings
from village import Village, play

from p2pqg.config import RunSettings
from p2pqg.errors import TransportError

N = 4


def secure(rounds: int) -> RunSettings:
    return settings("qg-dsgdm-n", rounds=rounds, finish={"max_rounds": 0}, privacy={"secure_sums": True})


def test_an_agent_that_returns_is_given_nobodys_model() -> None:
    """State transfer would hand a single model over. Whoever was away goes on with its own."""

    async def story() -> Village:
        village = Village(N, membership="fixed", run=secure(60))
        village.start(*range(N))
        await village.until(village.at_round(0, 20))
        await village.kill(2)
        await village.until(village.at_round(0, 40))
        village.start(2)
        await village.ended()
        return village

    village = play(story())
    newcomer = village.lives[2].agent
    assert newcomer.training.round >= 60
    assert newcomer.sums
    assert newcomer.sums.tally.masked > 5
    assert not village.of("fetched")
    assert not village.of("donated")
    neighbour = village.lives[1].agent.sums
    assert neighbour
    assert neighbour.tally.lost > 0, "a ring of 4 has no 2 senders without it"


def test_a_state_that_is_asked_for_all_the_same_is_not_given() -> None:
    async def story() -> Any:
        village = Village(N, membership="fixed", run=secure(1000))
        village.start(*range(N))
        await village.until(village.at_round(0, 5))
        curious = village.lives[1].agent
        with pytest.raises(TransportError, match="an agent without secure sums"):
            await curious.neighbourhood.fetch_state(curious.training.tensors(), 2.0)
        for i in range(N):
            await village.leave(i)

    play(story())

"""A wall clock that is wrong, and one that jumps: no wall time crosses the wire, so nothing changes."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from test_agents_equal_the_matrix import settings
from torch import Tensor
from village import Village, play


def train(monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[Tensor, list[Any]]:
    """Five agents, one of which dies and comes back; the models, and when every round ended with whom."""
    village = Village(5, run=settings("qg-dsgdm-n", rounds=25, finish={"max_rounds": 0}))

    async def story() -> None:
        village.start(*range(5))
        await village.until(village.at_round(0, 8))
        if monkeypatch:
            monkeypatch.setattr(time, "time", lambda: true_s() - 3600)
            monkeypatch.setattr(time, "time_ns", lambda: int((true_s() - 3600) * 1e9))
        await village.until(village.at_round(0, 16))
        if monkeypatch:
            monkeypatch.setattr(time, "time", lambda: true_s() + 86_400)
        await village.ended()

    true_s = time.time
    play(story())
    return village.models, list(village.rounds.values())


def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back an hour and forth a day, in the middle of a run: the same numbers at the same monotonic times."""
    (x, rounds), (x_jumped, rounds_jumped) = train(), train(monkeypatch)
    assert torch.equal(x, x_jumped)
    assert rounds == rounds_jumped

"""A donor that dies while it sends its state to an agent that joins: the next one goes on, or starts anew."""

from __future__ import annotations

import asyncio

import pytest
import torch
from test_agents_equal_the_matrix import settings
from village import DELAY_S, Village, play

from p2pqg import neighbourhood
from p2pqg.config import RunSettings, agent_names
from p2pqg.gossip.messages import Data, Message, StateHead
from p2pqg.tasks import Task
from p2pqg.tasks.quadratic import make_task
from p2pqg.transport import memory
from p2pqg.transport.memory import Faults

D, BYTES_S, NEWCOMER = 500, 20_000.0, 3
STATE_BYTES = 2 * D * 8


def same_data(run: RunSettings, name: str, names: tuple[str, ...]) -> Task:
    """So that all agents hold the same model at every round."""
    return make_task(run.context(names[0], names))


@pytest.mark.parametrize("same", [True, False], ids=["same snapshot", "other snapshot"])
def test_the_next_donor_goes_on_from_the_same_snapshot_or_starts_anew(
    same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbourhood, "CHUNK_BYTES", 400)
    monkeypatch.setattr(memory, "WINDOW_BYTES", 800)  # else all of it is on its way at once
    heads: list[tuple[str, StateHead]] = []
    sent = dict.fromkeys(agent_names(3), 0)

    def look(sender: str, receiver: str, message: Message) -> bool:
        if isinstance(message, StateHead):
            heads.append((sender, message))
        if isinstance(message, Data) and heads and not village.of("fetched"):
            sent[sender] += len(message.payload) * (receiver == village.names[NEWCOMER])
        return False

    run = settings(
        "qg-dsgdm-n",
        rounds=12,
        finish={"max_rounds": 0},
        task={"name": "quadratic", "dtype": "float64", "options": {"noise": 0.1, "d": D}},
    )
    village = Village(
        4,
        topology="complete",
        membership="fixed",
        run=run,
        lose=look,
        make=same_data if same else None,
        faults=Faults(delay_s=(DELAY_S, DELAY_S), bytes_per_s=BYTES_S),
    )

    async def story() -> None:
        village.start(*range(4), step_s=5.0)
        await village.until(village.at_round(0, 1))
        await village.kill(NEWCOMER)
        await village.until(village.at_round(0, 3))
        village.start(NEWCOMER, step_s=5.0)
        await village.until(lambda: bool(heads))
        await asyncio.sleep(STATE_BYTES / BYTES_S / 2)
        await village.kill(0)
        x = village.lives[1].agent.training.x.clone()
        await village.until(lambda: bool(village.of("fetched", village.names[NEWCOMER])))
        await asyncio.sleep(0.01)
        assert torch.equal(village.lives[NEWCOMER].agent.training.x, x)
        await village.ended()

    play(story())
    (first, at_first), (second, at_second) = heads
    assert (first, at_first.offset) == ("agent-000", 0)
    assert second == "agent-001"
    assert (at_first.snapshot == at_second.snapshot) == same
    assert (0 < at_second.offset < STATE_BYTES) == same
    assert sent["agent-001"] == STATE_BYTES - at_second.offset
    assert village.rounds[village.names[NEWCOMER]][-1][2] == ("agent-001", "agent-002")

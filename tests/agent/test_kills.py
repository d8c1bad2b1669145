"""kill -9 at every message: whoever is left goes on, and the dead comes back from its checkpoint.

A ring of four; agent 1 is the participant towards 0 and the coordinator towards 2. Deaths are data
(`FailAt`).
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from test_agents_equal_the_matrix import settings
from torch import Tensor
from village import DELAY_S, STEP_S, TIMEOUT_S, FailAt, Village, play

from p2pqg.gossip.edge import PATIENCE
from p2pqg.gossip.messages import (
    Abort,
    Begin,
    Bye,
    Commit,
    Data,
    End,
    GetState,
    Hello,
    Key,
    Masked,
    Message,
    Prepared,
    Ready,
    Refuse,
    Senders,
    Settle,
    Settled,
    Skip,
    StateHead,
    Status,
)

ROUND_S = STEP_S + 3 * DELAY_S
"""An undisturbed round: a step, and BEGIN, PREPARED and COMMIT one behind the other."""
SLACK_S = 0.15
"""A tick and a step more."""
DEADLINE_S = (1 + PATIENCE) * TIMEOUT_S
"""Of a participant; a coordinator's is shorter."""
VICTIM, DEATH, ROUNDS, EVERY = 1, 8, 24, 5

Case = tuple[type[Message], int | None, str]
Loss = tuple[type[Message], int, int]
"""A type of message, from whom and to whom: the first one in the round of the death is lost."""


class Once:
    """Loses one message."""

    def __init__(self, loss: Loss | None) -> None:
        self.loss = loss
        self.village: Village

    def __call__(self, sender: str, receiver: str, message: Message) -> bool:
        if self.loss is None or self.village.lives[VICTIM].agent.training.round < DEATH:
            return False
        kind, *ends = self.loss
        lost = isinstance(message, kind) and [self.village.names[i] for i in ends] == [sender, receiver]
        self.loss = None if lost else self.loss
        return lost


def each(kind: type[Message], moments: Sequence[str], *peers: int | None) -> list[Case]:
    return [(kind, peer, moment) for peer in peers for moment in moments]


OWN, BOTH = ("unsent", "sent"), ("unsent", "sent", "received")
UNDISTURBED: list[Case] = [
    case for kind in (Begin, Data, End, Status) for case in each(kind, BOTH, 0, 2)
] + [
    *each(Prepared, OWN, 0), (Prepared, 2, "received"),
    *each(Commit, OWN, 2), (Commit, 0, "received"),
]  # fmt: skip
"""What is said in a round without faults."""
AFTER_A_LOSS: list[tuple[Loss, Case]] = [
    *(((Prepared, 2, 1), case) for case in each(Abort, OWN, 2)),
    ((Prepared, 1, 0), (Abort, 0, "received")),
    *(((Data, 0, 1), case) for case in each(Skip, OWN, 0)),
    ((Data, 1, 2), (Skip, 2, "received")),
    *(((Commit, 0, 1), case) for case in each(Settle, OWN, 0)),
    ((Commit, 1, 2), (Settle, 2, "received")),
    *(((Commit, 1, 2), case) for case in each(Settled, OWN, 2)),
    ((Commit, 0, 1), (Settled, 0, "received")),
]
"""What else is said in a round in which a message is lost."""
COMING_BACK: list[Case] = [
    *each(Hello, BOTH, None), *each(GetState, OWN, None), *each(StateHead, ("received",), None),
]  # fmt: skip
LEAVING: list[Case] = each(Bye, BOTH, None)
REFUSING: list[Case] = each(Refuse, OWN, 2)


def test_there_is_a_death_at_every_message() -> None:
    tables = [*UNDISTURBED, *(case for _, case in AFTER_A_LOSS), *COMING_BACK, *LEAVING, *REFUSING]
    of_sums = {Key, Ready, Senders, Masked}  # test_secure_networks.py kills at these
    assert {kind for kind, _, _ in tables} == set(get_args(Message)) - of_sums


def ident(value: object) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


class Story:
    """Agent 1 dies at a message and comes back, and what that costs."""

    def __init__(
        self, fail_at: FailAt | None, homes: Path | None, loss: Loss | None = None, rounds: int = ROUNDS
    ) -> None:
        run = settings("qg-dsgdm-n", rounds=rounds, finish={"max_rounds": 0})
        self.once = Once(loss)
        self.village = self.once.village = Village(
            4,
            membership="fixed",
            run=run,
            homes=homes,
            fail_at=fail_at,
            lose=self.once,
            checkpoint_every=EVERY,
        )
        self.others = [self.village.names[i] for i in (0, 2, 3)]
        self.resumed: tuple[int, Tensor] | None = None
        self.trouble_s = self.back_s = math.inf
        self.died_in = 0

    async def death(self) -> None:
        await self.village.until(self.village.at_round(VICTIM, DEATH))
        self.trouble_s = self.village.now
        await self.village.until(lambda: self.village.fail_at is None and VICTIM not in self.village.lives)
        self.died_in = self.village.rounds[name_of(VICTIM)][-1][1] + 1

    async def back(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self.back_s = self.village.now
        self.village.start(VICTIM)
        training = self.village.lives[VICTIM].agent.training
        self.resumed = training.round, training.x.clone()

    def assert_others_lost(self, deadlines: int) -> None:
        """So many at most, one behind the other; later rounds pay nothing."""
        waited_s = deadlines * DEADLINE_S + SLACK_S
        for name in self.others:
            ends = [when for when, _, _ in self.village.rounds[name]]
            slow = [(end, end - start) for start, end in pairwise(ends) if end - start > ROUND_S + SLACK_S]
            assert sum(took_s - ROUND_S for _, took_s in slow) <= waited_s
            assert all(end - self.trouble_s <= waited_s + 3 * ROUND_S for end, _ in slow), "not once more"

    def assert_back(self) -> None:
        """Mixing within three rounds, and to the end."""
        own = [partners for when, _, partners in self.village.rounds[name_of(VICTIM)] if when > self.back_s]
        assert any(own[:3])
        assert len(own[-1]) == 2


def name_of(i: int) -> str:
    return f"agent-{i:03d}"


@functools.cache
def checkpointed() -> Tensor:
    """The victim's model after `EVERY` rounds, when nobody dies."""
    story = Story(None, None)

    async def undisturbed() -> Tensor:
        story.village.start(*range(4))
        await story.village.until(story.village.at_round(VICTIM, EVERY))
        x = story.village.lives[VICTIM].agent.training.x.clone()
        await story.village.ended()
        return x

    return play(undisturbed())


def kill_and_restart(
    fail_at: FailAt, homes: Path, loss: Loss | None = None, *, after_s: float = 0.5, rounds: int = ROUNDS
) -> Story:
    story = Story(fail_at, homes, loss, rounds)

    async def main() -> None:
        story.village.start(*range(4))
        await story.death()
        await story.back(after_s)
        await story.village.ended()

    play(main())
    assert story.once.loss is None
    assert story.resumed is not None
    round, x = story.resumed
    assert 0 <= story.died_in - round < EVERY, "only its own work since the checkpoint is lost"
    assert round > EVERY or torch.equal(x, checkpointed())
    story.assert_back()
    return story


def parameters(cases: Iterable[Case], fast: Callable[[Case], bool]) -> list[Any]:
    return [pytest.param(*case, marks=() if fast(case) else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("kind", "peer", "moment"),
    parameters(UNDISTURBED, lambda case: case[2] == "sent" and case[0] not in (Data, Status)),
    ids=ident,
)
def test_a_kill_at_any_message_costs_the_others_nothing(
    kind: type[Message], peer: int, moment: str, tmp_path: Path
) -> None:
    """The system closes the dead one's connections, which is noticed at once."""
    kill_and_restart(FailAt(VICTIM, DEATH, kind, peer, moment), tmp_path).assert_others_lost(0)


@pytest.mark.parametrize(
    ("kind", "peer", "moment"),
    parameters(
        (case for case in UNDISTURBED if case[0] in (Begin, Prepared, Commit)),
        lambda case: case[2] == "unsent" and case[0] is not Begin,
    ),
    ids=ident,
)
def test_a_power_cut_at_any_message_costs_the_others_one_deadline_once(
    kind: type[Message], peer: int, moment: str, tmp_path: Path
) -> None:
    """No connection ends: they find out by waiting. It is back when they have."""
    fail_at = FailAt(VICTIM, DEATH, kind, peer, moment, silent=True)
    kill_and_restart(fail_at, tmp_path, after_s=8.0, rounds=60).assert_others_lost(1)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "case"), AFTER_A_LOSS, ids=lambda value: ident(value[0]))
def test_a_kill_while_a_lost_message_is_made_up_for(loss: Loss, case: Case, tmp_path: Path) -> None:
    """The loss costs a deadline, the death nothing more."""
    kill_and_restart(FailAt(VICTIM, DEATH, *case), tmp_path, loss).assert_others_lost(1)


@pytest.mark.parametrize(
    ("kind", "peer", "moment"), parameters(COMING_BACK, lambda case: case[2] == "received"), ids=ident
)
def test_a_second_kill_while_it_comes_back(kind: type[Message], peer: int | None, moment: str) -> None:
    """It has nothing on disk, so it also asks for a state."""
    story = Story(None, None, rounds=60)
    village = story.village

    async def main() -> None:
        village.start(*range(4))
        await village.until(village.at_round(VICTIM, DEATH))
        await village.kill(VICTIM)
        story.trouble_s = village.now
        village.fail_at = FailAt(VICTIM, 0, kind, peer, moment)
        await story.back(0.2)
        await village.until(lambda: VICTIM not in village.lives)
        await story.back(0.2)
        await village.ended()

    play(main())
    assert village.fail_at is None
    story.assert_back()
    story.assert_others_lost(0)


@pytest.mark.parametrize(("kind", "peer", "moment"), parameters(LEAVING, lambda case: False), ids=ident)
def test_a_kill_while_it_says_goodbye(
    kind: type[Message], peer: int | None, moment: str, tmp_path: Path
) -> None:
    story = Story(FailAt(VICTIM, DEATH, kind, peer, moment), tmp_path)
    village = story.village

    async def main() -> None:
        village.start(*range(4))
        await village.until(village.at_round(VICTIM, DEATH))
        story.trouble_s = village.now
        village.lives[VICTIM].agent.stop()
        await village.until(lambda: VICTIM not in village.lives)
        await story.back(0.2)
        await village.ended()

    play(main())
    assert story.resumed is not None
    assert story.resumed[0] >= DEATH, "it wrote its checkpoint before it said goodbye"
    story.assert_back()
    story.assert_others_lost(0)


@pytest.mark.parametrize(("kind", "peer", "moment"), parameters(REFUSING, lambda case: False), ids=ident)
def test_a_kill_while_it_refuses_somebody(
    kind: type[Message], peer: int, moment: str, tmp_path: Path
) -> None:
    """The neighbour that is refused has died, too, and is back with other settings; it is replaced."""
    story = Story(None, tmp_path)
    village = story.village
    other = settings("dsgd", rounds=ROUNDS, finish={"max_rounds": 0})

    async def main() -> None:
        village.start(*range(4))
        await village.until(village.at_round(VICTIM, DEATH))
        story.trouble_s = village.now
        await village.kill(peer)
        village.fail_at = FailAt(VICTIM, DEATH, kind, peer, moment)
        homes, village.homes = village.homes, None
        village.start(peer, run=other)
        village.homes = homes
        await village.until(lambda: VICTIM not in village.lives)
        await village.kill(peer)
        await story.back(0.2)
        village.start(peer)
        await village.ended()

    play(main())
    story.others.remove(name_of(peer))
    story.assert_back()
    story.assert_others_lost(0)

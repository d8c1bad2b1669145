"""No silent death: a background task that dies takes its agent with it, and the agent says which it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from village import Village, play

from p2pqg.errors import StorageError, TaskDied
from p2pqg.supervision import Background

TASKS = ["clock", "dial agent-002", "write to agent-000"]
"""Those of agent-001, in a ring of three."""


def tasks_of(agent: str) -> dict[str, asyncio.Task[Any]]:
    named = {task.get_name(): task for task in asyncio.all_tasks()}
    return {name.partition(": ")[2]: t for name, t in named.items() if name.startswith(f"{agent}: ")}


@pytest.mark.parametrize("name", TASKS)
def test_a_cancelled_task_ends_the_agent_by_name(name: str) -> None:
    village = Village(3)

    async def story() -> None:
        village.start(0, 1, 2)
        await village.until(village.at_round(1, 5))
        assert set(TASKS) <= tasks_of("agent-001").keys()
        tasks_of("agent-001")[name].cancel()
        with pytest.raises(TaskDied, match=f"'{name}' was cancelled"):
            await village.lives.pop(1).running
        await village.ended()  # the others go on
        assert not tasks_of("agent-001")

    play(story())


@pytest.mark.parametrize(
    ("method", "name"), [("tick", "clock"), ("connected", "serve agent-000|'dial agent-002'")]
)
def test_a_failing_task_ends_the_agent_by_name(method: str, name: str) -> None:
    """In a task of its own, and in one that the transport made for an inbound connection."""
    village = Village(3)

    async def story() -> None:
        village.start(0, 1, 2)
        await village.until(village.at_round(1, 5))

        def fail(*_: Any) -> None:
            raise KeyError("a bug")

        setattr(village.lives[1].agent.gossip, method, fail)
        village.memory.lose("agent-000", "agent-001")
        village.memory.lose("agent-001", "agent-002")
        village.memory.restore("agent-000", "agent-001")
        village.memory.restore("agent-001", "agent-002")
        with pytest.raises(TaskDied, match=f"({name}).* died: KeyError: 'a bug' .*test_supervision.py"):
            await village.lives.pop(1).running
        await village.ended()

    play(story())


def death_of(background: Background, story: Callable[[Background], Any]) -> BaseException:
    """The one error with which the block is left."""

    async def main() -> None:
        async with background:
            await story(background)

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(main())
    (error,) = caught.value.exceptions
    return error


async def forever() -> None:
    await asyncio.Event().wait()


def test_a_lasting_task_may_not_even_end() -> None:
    async def story(background: Background) -> None:
        background.start("short", asyncio.sleep(0))
        background.start("watch", asyncio.sleep(0), lasting=True)
        await forever()

    assert str(death_of(Background("a"), story)) == "background task 'watch' ended"


def test_an_error_of_ours_stays_what_it_is() -> None:
    async def full() -> None:
        raise StorageError("disk full")

    async def story(background: Background) -> None:
        background.start("audit", full())
        await forever()

    assert isinstance(death_of(Background("a"), story), StorageError)


def test_what_is_stopped_or_left_behind_is_no_death() -> None:
    async def main() -> None:
        async with Background("a") as background:
            background.stop(background.start("one", forever()))
            background.start("two", forever(), lasting=True)
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_whoever_is_cancelled_from_outside_is_cancelled() -> None:
    async def inside() -> None:
        async with Background("a") as background:
            background.start("one", forever(), lasting=True)
            await forever()

    async def main() -> None:
        task = asyncio.create_task(inside())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

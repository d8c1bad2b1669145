"""Tasks in the background that cannot die in silence.

A task that nobody awaits fails unseen: asyncio speaks of it when it is collected, a `TaskGroup` not at all if
it was cancelled, and the agent goes on deaf, or without a clock. Here, whatever ends a task that is still
needed ends everything, and the error names the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from p2pqg.errors import P2PQGError, TaskDied


class Background:
    """The background tasks of `owner`; enter it for as long as they are needed.

    If one of them fails, or is cancelled by anybody but `stop`, the block is left with an exception group
    that holds the error: what this package raises on purpose as it is, anything else as `TaskDied`. Leaving
    the block ends those that still run.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._group = asyncio.TaskGroup()
        self._stopped: set[asyncio.Task[None]] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._ending = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        for task in self._running:
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    def start(
        self, name: str, work: Coroutine[Any, Any, None], *, lasting: bool = False
    ) -> asyncio.Task[None]:
        """Do `work` in a task; one that is `lasting` may not even end."""
        group = asyncio if self._ending else self._group  # a group that ends takes no more
        task = group.create_task(self._watched(name, work, lasting), name=f"{self._owner}: {name}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(self._stopped.discard)
        task.add_done_callback(lambda _: work.close())  # it may have been cancelled before its first step
        return task

    def stop(self, task: asyncio.Task[None]) -> None:
        """Cancel a task that is not needed any more."""
        if not task.done():
            self._stopped.add(task)
            task.cancel()

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """For a task that somebody else made: what fails inside ends everything, too."""
        try:
            yield
        except Exception as error:
            if not self._ending:
                self._ending = True
                self._group.create_task(_raise(self._death(name, error)))

    async def _watched(self, name: str, work: Coroutine[Any, Any, None], lasting: bool) -> None:
        try:
            await work
        except asyncio.CancelledError:
            if self._ending or asyncio.current_task() in self._stopped:
                raise
            self._ending = True
            raise TaskDied(f"background task {name!r} was cancelled") from None
        except Exception as error:
            self._ending = True
            raise self._death(name, error) from error
        if lasting and not self._ending:
            self._ending = True
            raise TaskDied(f"background task {name!r} ended")

    @staticmethod
    def _death(name: str, error: Exception) -> P2PQGError:
        if isinstance(error, P2PQGError):
            return error
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""
        death = TaskDied(f"background task {name!r} died: {type(error).__name__}: {error}{where}")
        death.__cause__ = error
        return death


async def _raise(error: Exception) -> None:
    raise error

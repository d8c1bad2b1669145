"""What is going on, for whoever looks at a terminal: real agents as a table, a simulation as a bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .swarm import Member, Swarm

PLAIN_EVERY_S = 5.0


@contextmanager
def bar(*, shown: bool = True) -> Iterator[Callable[..., None]]:
    """A bar on stderr, if that is a terminal and it is to be `shown`. Yields what sets its `description`,
    `completed`, `total` and `note`."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        yield partial(progress.update, progress.add_task("", note=""))


@contextmanager
def live(swarm: Swarm) -> Iterator[Callable[[list[Member]], None]]:
    """A function that shows the members of a swarm: a live table on a terminal, else a line now and then."""
    console = Console(stderr=True)
    rounds = swarm.settings.rounds
    if not console.is_terminal:
        shown_s = time.monotonic()

        def say(members: list[Member]) -> None:
            nonlocal shown_s
            if time.monotonic() - shown_s >= PLAIN_EVERY_S:
                shown_s = time.monotonic()
                done = min(member.latest.get("round", 0) for member in members)
                console.print(f"round {min(done, rounds)} of {rounds}")

        yield say
        return
    with Live(console=console, auto_refresh=False) as display:
        yield lambda members: display.update(table(members, rounds), refresh=True)


def table(members: list[Member], rounds: int) -> Table:
    """One row an agent: round, training loss, accuracy of its own model, neighbours in the last round, and
    megabytes sent so far."""
    result = Table(title="Real agents, one process each, over gRPC")
    result.add_column("agent")
    for heading in ("round", "loss", "local test accuracy", "neighbours", "sent"):
        result.add_column(heading, justify="right")
    for member in members:
        latest = member.latest
        result.add_row(
            member.name,
            _state(member, rounds),
            _number(latest.get("loss"), ".4f"),
            _number(latest.get("test_accuracy"), ".1%"),
            _number(latest.get("neighbours"), "d"),
            _number(latest.get("bytes_sent", 0) / 1e6, ".1f") + " MB",
        )
    return result


def _state(member: Member, rounds: int) -> str:
    done = member.latest.get("round", 0)
    if member.exit_code == 0:
        return f"[green]{min(done, rounds)}/{rounds} done[/green]"
    if member.exit_code is not None:
        return f"[red]failed ({member.exit_code})[/red]"
    if not done:
        return "starting"
    return f"{done}/{rounds}" if done <= rounds else f"{rounds}/{rounds} agreeing"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

"""A soak: agents as processes on hosts of their own, for as long as you like, while a seeded script kills,
restarts, removes, parts, freezes and slows them.

    SOAK_MINUTES=30 SOAK_SEED=0 make soak

First nothing happens for a while: that is what a round usually takes. Then the script, then calm. Every line
of ``soak.jsonl`` is a fault with what it cost, or a process with what it held. The run fails (exit code 1) if

* an agent ends that nobody told to, or leaves with another exit code than 0;
* an agent that is killed, leaves or comes back costs another one more than a deadline and the grace of one,
  while nothing else is wrong; or it is not back within three of its rounds;
* memory, file descriptors or threads of a process grow;
* at the end not everybody mixes with everybody they should, in the same rounds;
* the mean accuracy is more than a point below that of as many undisturbed rounds. Agents follow the
  simulation (`tests/agent/test_agents_equal_the_matrix.py`), so the undisturbed run is the simulator's.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from p2pqg.config import SimulationSettings
from p2pqg.telemetry import JsonLines

from . import faults
from .faults import Cost, broken_promises
from .hosts import Hosts, Resources, hosts
from .simulate import simulate

N = 8
MINUTES = 30.0
TIMEOUT_S = 10.0
RUN: dict[str, Any] = {
    "task": {"name": "digits", "alpha": 1.0},
    "schedule": {"lr": 0.05},
}
UNDISTURBED, CALM = 0.1, 0.15
"""Shares of the time before the first fault and after the last."""
SAMPLE_S = 2.0
POINT = 0.01
MOST_ROUNDS = 2000
"""The accuracy does not change any more after so many; the simulation need not do more."""
LEAKS = {"memory_mib": 0.05, "descriptors": 0.25, "threads": 0.25}
"""How much more the last quarter of a process's life may hold than its second, as a share."""
LONG_LIFE = 40
"""Samples from which on a process is old enough to be judged."""


@dataclass
class Lives:
    """What each process held, from its start on; a new start begins a new life."""

    samples: dict[tuple[str, int], list[Resources]] = field(default_factory=dict)

    def sample(self, world: Hosts) -> None:
        """Look at all that run."""
        for site in world.running:
            assert site.process is not None
            try:
                seen = Resources.of(site.process.pid)
            except (OSError, KeyError):
                continue  # it ended just now
            self.samples.setdefault((site.name, site.starts), []).append(seen)

    def rows(self) -> Iterable[tuple[str, int, int, dict[str, tuple[float, float]]]]:
        """Agent, number of its start, samples; and of each resource the median in the second quarter of that
        life and in its last."""
        for (name, start), seen in sorted(self.samples.items()):
            quarter = max(1, len(seen) // 4)
            early, late = seen[quarter : 2 * quarter] or seen, seen[-quarter:]
            yield (
                name,
                start,
                len(seen),
                {
                    what: tuple(
                        statistics.median(getattr(each, what) for each in part) for part in (early, late)
                    )
                    for what in LEAKS
                },
            )

    def problems(self) -> list[str]:
        """Where a process that lived long enough grew."""
        return [
            f"{name} (start {start}): {what} grew from {early:.0f} to {late:.0f}"
            for name, start, count, held in self.rows()
            for what, (early, late) in held.items()
            if count >= LONG_LIFE and late > early * (1 + LEAKS[what])
        ]


async def at_the_end(world: Hosts) -> tuple[float, int, list[str]]:
    """The mean accuracy, the round the agents are in, and what is wrong with them."""
    problems, accuracies, rounds = [], [], []
    for site in world.sites:
        status, score = await world.ask(site, "status"), await world.ask(site, "evaluate")
        if status is None or score is None:
            problems.append(f"{site.name} does not answer at the end")
            continue
        accuracies.append(score["accuracy"])
        rounds.append(status["round"])
        if (live := sum(link["state"] == "live" for link in status["links"])) < 2:
            problems.append(f"{site.name} has {live} neighbours at the end")
    if rounds and max(rounds) - min(rounds) > max(3, 0.01 * max(rounds)):
        problems.append(f"at the end the agents are in rounds {sorted(rounds)}")
    return statistics.fmean(accuracies or [0.0]), max(rounds, default=0), problems


def undisturbed_accuracy(rounds: int) -> float:
    """Of the same agents without a fault, after so many rounds."""
    run = {"agents": N, "topology": "ring", "rounds": rounds, "finish": {"max_rounds": 0}}
    iterates = simulate(SimulationSettings.model_validate(RUN | run))
    scores = deque(iterates, maxlen=1)[0].scores
    assert scores is not None
    assert scores.mean_accuracy is not None
    return scores.mean_accuracy


async def soak(world: Hosts, minutes: float, seed: int, lines: JsonLines, console: Console) -> list[str]:
    """Run it; what must not be."""
    total_s = 60 * minutes
    lives = Lives()
    names = [site.name for site in world.sites]
    until_s = total_s * (1 - UNDISTURBED - CALM)
    script = faults.script(
        seed, names, until_s=until_s, every_s=max(5.0, until_s / 60), lasts_s=(1.0, min(60.0, until_s / 5)),
        kinds=world.kinds,
    )  # fmt: skip
    for site in world.sites:
        site.start()
    while not all(site.home.joinpath("metrics.jsonl").exists() for site in world.sites):
        await world.watch(1.0)
        if world.problems:
            return world.problems
    world.round_s.clear()

    async def sample() -> None:
        while True:
            lives.sample(world)
            await asyncio.sleep(SAMPLE_S)

    async with asyncio.TaskGroup() as group:
        sampling = group.create_task(sample())
        await world.watch(total_s * UNDISTURBED)
        usual_s = world.ledger.usual_s = statistics.median(world.round_s)
        console.print(f"undisturbed: {len(world.round_s) // N} rounds, {usual_s:.3f} s each; "
                      f"{len(script)} faults follow, seed {seed}")  # fmt: skip
        began_s = time.monotonic()
        playing = group.create_task(faults.play(script, world.carry_out))
        while not playing.done():
            await world.watch(1.0)
        await world.watch(total_s * CALM)
        accuracy, rounds, problems = await at_the_end(world)
        sampling.cancel()
    costs = world.ledger.costs
    for site in world.sites:
        if site.running:
            await world.leave(site)
    for cost in costs:
        cost.at_s -= began_s
        lines.append(cost.as_json())
    for name, start, count, held in lives.rows():
        lines.append({"agent": name, "start": start, "lived_s": count * SAMPLE_S, **held})
    console.print(cost_table(costs), resource_table(lives))
    reference = undisturbed_accuracy(min(rounds, MOST_ROUNDS))
    console.print(f"{rounds} rounds; accuracy {accuracy:.2%}, undisturbed {reference:.2%}")
    problems += world.problems + broken_promises(costs, usual_s, TIMEOUT_S) + lives.problems()
    if accuracy < reference - POINT:
        problems.append(f"accuracy {accuracy:.2%}, undisturbed {reference:.2%}")
    lines.append({"minutes": minutes, "seed": seed, "rounds": rounds, "usual_round_s": usual_s,
                  "accuracy": accuracy, "undisturbed": reference, "problems": problems})  # fmt: skip
    return problems


def cost_table(costs: Sequence[Cost]) -> Table:
    """Every fault and what it cost the others."""
    table = Table("at", "fault", "most that another lost", "longest round", "exchanges missed", "back after")
    for cost in costs:
        back = "" if cost.back_rounds is None else f"{cost.back_rounds} rounds, {cost.back_s:.1f} s"
        table.add_row(
            f"{cost.at_s:.0f} s", str(cost.fault), f"{cost.worst_s:.1f} s", f"{cost.longest_s:.1f} s",
            str(cost.missed), back,
        )  # fmt: skip
    return table


def resource_table(lives: Lives) -> Table:
    """What each process held early and late in its life."""
    table = Table("agent", "start", "lived", "memory of its own, MiB", "descriptors", "threads")
    for name, start, count, held in lives.rows():
        told = [f"{early:.0f} → {late:.0f}" for early, late in held.values()]
        table.add_row(name, str(start), f"{count * SAMPLE_S:.0f} s", *told)
    return table


def main() -> None:
    """Entry point of ``make soak``."""
    minutes = float(os.environ.get("SOAK_MINUTES", MINUTES))
    seed = int(os.environ.get("SOAK_SEED", "0"))
    out = Path(os.environ.get("SOAK_OUT") or tempfile.mkdtemp(prefix="p2pqg-soak-"))
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    run = RUN | {"rounds": 10**7, "agent": {"round_timeout_s": TIMEOUT_S, "checkpoint_every": 50}}
    network = {"name": "soak", "topology": "ring", "membership": "alive", "at_least": N}
    with hosts(out, N, network, run) as world, JsonLines(out / "soak.jsonl") as lines:
        where = "hosts of their own" if world.lan else "loopback (no namespaces, so no partitions)"
        console.print(f"{N} agents on {where}, {minutes:g} minutes; everything is in {out}")
        problems = asyncio.run(soak(world, minutes, seed, lines, console))
    for problem in problems:
        console.print(f"[red]violated:[/] {problem}")
    console.print("[green]nothing was violated[/]" if not problems else f"{len(problems)} violations")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()

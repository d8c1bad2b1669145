"""What each fault costs the other agents, beside undisturbed rounds of the same run.

    python benchmarks/faults.py

Eight agents, one process and (where network namespaces can be made) one host each, in a ring over whoever
is alive, with mutual TLS; models of digits' size, a step that costs nothing, deadlines of `TIMEOUT_S`. Every
agent is pulled its own way and all pulls add up to 0 (`tasks.Pull`), so without faults the mean of all models
stays where it is. How far a fault moved it is given in units of the models' root mean square distance from
it, after taking out what the agent that was away did not pull meanwhile: that is work not done, not lost.

Prints the table of docs/faults.md.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tasks import Pull

from p2pqg.config import agent_names
from p2pqg.tasks import TaskContext
from p2pqg_simulator.faults import Fault, Kind
from p2pqg_simulator.hosts import Hosts, hosts

N = 8
D, LR = 9930, 0.01
TIMEOUT_S = 5.0
CALM_S = 6.0
BACK_S = 60.0
"""How long to wait for an agent to come back."""
PULL = f"{Path(__file__).with_name('tasks.py').resolve()}:make_pull"
RUN = {
    "rounds": 10**7,
    "task": {"name": PULL, "dtype": "float64", "options": {"d": D}},
    "algorithm": {"name": "dsgd"},
    "schedule": {"lr": LR},
    "agent": {"round_timeout_s": TIMEOUT_S, "checkpoint_every": 50},
}
NETWORK = {"name": "faults", "topology": "ring", "membership": "alive", "at_least": N}


COLUMNS = (
    "fault", "round before it", "longest round of another", "lost by it", "lost at its end",
    "exchanges missed", "mixing again after", "in its own round", "rounds of work not done",
    "rest of the drift",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A fault, how long it lasts, and what ends it."""

    name: str
    kind: Kind
    lasts_s: float
    end: Kind
    agents: tuple[int, ...] = (3,)


CASES = [
    *(Case(f"kill -9 at any moment, restart ({k})", "kill", 5.0, "restart", (k + 1,)) for k in (1, 2, 3)),
    Case("kill -9, a new device in its place", "kill", 5.0, "join"),
    Case("leave, and come back", "leave", 5.0, "restart", (5,)),
    Case("partition of 10 s, four and four", "part", 10.0, "heal", (4, 5, 6, 7)),
    Case("SIGSTOP for 10 s", "freeze", 10.0, "thaw", (6,)),
    Case("20 times slower for 10 s", "slow", 10.0, "quick", (2,)),
]


async def models(world: Hosts) -> torch.Tensor:
    """All agents' models `[n, d]`; they stand still while nothing happens."""
    paths = [Path((await world.ask(site, "export") or {})["path"]) for site in world.sites]
    return torch.stack([load_file(path)["x"] for path in paths])


def drift(before: torch.Tensor, after: torch.Tensor, away: Sequence[int]) -> tuple[float, float]:
    """How far the mean of all models moved: the rounds in which those `away` did not pull, and what these do
    not explain, in units of the models' root mean square distance from their mean."""
    moved = after.mean(0) - before.mean(0)
    names = agent_names(N)
    pulls = [Pull(TaskContext(name, names, 0, dtype=torch.float64, options={"d": D})).g for name in names]
    step = LR * torch.stack([pulls[i] for i in away]).sum(0) / N
    undone = moved @ step / (step @ step)
    spread = (before - before.mean(0)).norm() / N**0.5
    return float(undone), float((moved - undone * step).norm() / spread)


async def mixed_across(world: Hosts, side: set[str]) -> int:
    """Exchanges so far between the two sides."""
    count = 0
    for site in world.running:
        links = (await world.ask(site, "status") or {"links": []})["links"]
        count += sum(link["mixed"] for link in links if (link["peer"] in side) != (site.name in side))
    return count


async def play(world: Hosts, case: Case) -> tuple[str, ...]:
    """One row of the table."""
    ledger = world.ledger
    world.round_s.clear()
    await world.watch(CALM_S)
    ledger.usual_s = statistics.median(world.round_s)
    before = await models(world)
    names = tuple(world.sites[i].name for i in case.agents)
    start = len(ledger.costs)
    await world.carry_out(Fault(0.0, case.kind, names))
    await world.watch(case.lasts_s)
    apart = await mixed_across(world, set(names)) if case.kind == "part" else 0
    await world.carry_out(Fault(0.0, case.end, names))
    end = ledger.costs[-1]
    began_s = time.monotonic()

    async def back() -> bool:
        if case.kind == "part":
            return await mixed_across(world, set(names)) > apart
        return end.back_rounds is not None or case.kind == "slow"

    while not await back() and time.monotonic() < began_s + BACK_S:
        await world.watch(0.2)
    back_s = time.monotonic() - began_s
    await world.watch(CALM_S)
    after = await models(world)
    undone, rest = drift(before, after, case.agents)
    costs = ledger.costs[start:]
    came = f"{end.back_rounds}" if end.back_rounds is not None else "-"
    return (
        case.name,
        f"{1000 * ledger.usual_s:.0f} ms",
        f"{max(cost.longest_s for cost in costs):.1f} s",
        f"{costs[0].worst_s:.1f} s",
        f"{costs[1].worst_s:.1f} s",
        f"{sum(cost.missed for cost in costs)}",
        "-" if case.kind == "slow" else f"{back_s:.1f} s",
        came,
        f"{undone:.0f}",
        f"{rest:.2g}",
    )


async def measure(world: Hosts) -> None:
    """Print the table."""
    for site in world.sites:
        site.start()
    while not all(site.home.joinpath("metrics.jsonl").exists() for site in world.sites):
        await world.watch(0.5)
    await world.watch(CALM_S)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for case in CASES:
        if case.kind not in world.kinds:
            continue
        print("|", " | ".join(await play(world, case)), "|", flush=True)
    for problem in world.problems:
        print(problem)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, hosts(Path(folder), N, NETWORK, RUN) as world:
        asyncio.run(measure(world))


if __name__ == "__main__":
    main()

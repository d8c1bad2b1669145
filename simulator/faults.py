"""Faults as data: what goes wrong in a network and when, drawn from a seed; and what each of them cost.

A script is a list of `Fault`s, the ends of faults among them: a restart is a fault of its own, because it
may disturb others too. They overlap: an agent may die while the network is in two parts. Whoever plays a
script (`tests/agent/test_soak.py` in virtual time, `soak.py` with processes) tells a `Ledger` what happened
when, and of every round that an agent did.

What a round lost belongs to the first fault that fell into it, and if there was none, to the last one before
it. Faults that overlap cannot be told apart better than that without playing each of them alone, which is
what `benchmarks/faults.py` does.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from p2pqg import seeds
from p2pqg.gossip.edge import PATIENCE

Kind = Literal[
    "kill", "restart", "leave", "join", "part", "heal", "slow", "quick", "freeze", "thaw"
]  # fmt: skip
ENDS: Mapping[Kind, tuple[Kind, ...]] = {
    "kill": ("restart", "join"),
    "leave": ("restart", "join"),
    "part": ("heal",),
    "slow": ("quick",),
    "freeze": ("thaw",),
}
"""What may end each fault. An agent restarts with its home, and joins without: a new device of that name."""
BACK_ROUNDS = 3
"""An agent that comes back mixes again within so many of its rounds."""
SLACK_ROUNDS = 10
TROUBLE = {"part", "slow", "freeze"}
RELIEF = {"heal", "quick", "thaw"}
STALL = 3.0
"""A round that took so many times as long as usual was held up; less is noise."""


@dataclass(frozen=True, slots=True)
class Fault:
    """At `at_s`, something happens to `agents`: one of them, or in a partition one of its sides."""

    at_s: float
    kind: Kind
    agents: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {' '.join(self.agents)}"


def script(
    seed: int,
    agents: Sequence[str],
    *,
    until_s: float,
    every_s: float,
    lasts_s: tuple[float, float],
    kinds: Iterable[Kind] = ("kill", "leave", "part", "slow"),
    at_once: int = 2,
) -> tuple[Fault, ...]:
    """Faults of `kinds` that begin every `every_s` on average (exponential) and last between the two times
    of `lasts_s` (uniform in the logarithm), `at_once` at most; all of them are over at `until_s`. The first
    agent is never taken away, so that something lives from the start to the end."""
    random = seeds.numpy_generator(seed, "faults")
    kinds = tuple(kinds)
    faults: list[Fault] = []
    free_s = dict.fromkeys(agents, 0.0)
    ends_s: list[float] = []
    whole_s = at_s = 0.0
    while (at_s := at_s + random.exponential(every_s)) < until_s:
        ends_s = [end_s for end_s in ends_s if end_s > at_s]
        kind = kinds[random.integers(len(kinds))]
        free = [agent for agent in agents[1:] if free_s[agent] <= at_s]
        if len(ends_s) >= at_once or not free or (kind == "part" and whole_s > at_s):
            continue
        end_s = min(at_s + float(np.exp(random.uniform(*np.log(lasts_s)))), until_s)
        if kind == "part":
            size = int(random.integers(1, len(agents) // 2 + 1))
            concerned = tuple(sorted(str(agent) for agent in random.permutation(agents)[:size]))
            whole_s = end_s
        else:
            concerned = (free[random.integers(len(free))],)
            free_s[concerned[0]] = end_s
        ends = ENDS[kind]
        faults.append(Fault(at_s, kind, concerned))
        faults.append(Fault(end_s, ends[random.integers(len(ends))], concerned))
        ends_s.append(end_s)
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


async def play(faults: Iterable[Fault], carry_out: Callable[[Fault], Awaitable[None]]) -> None:
    """Carry out each fault at its time, counted from now, on the clock of the running loop."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for fault in faults:
        await asyncio.sleep(max(0.0, began_s + fault.at_s - loop.time()))
        await carry_out(fault)


@dataclass(slots=True)
class Cost:
    """What one fault cost. `waited_s`: by agent that it did not happen to, the seconds beyond the usual in
    rounds that were held up; `longest_s`, their longest round; `missed`, the exchanges that failed. Of the
    agent that came back: `back_rounds`, those of its rounds until the first in which it mixed (None: not
    yet, or nobody came back)."""

    fault: Fault
    at_s: float
    waited_s: dict[str, float] = field(default_factory=dict)
    longest_s: float = 0.0
    missed: int = 0
    back_rounds: int | None = None
    back_s: float | None = None
    _alone: int = 0

    @property
    def worst_s(self) -> float:
        """The most that one agent lost."""
        return max(self.waited_s.values(), default=0.0)

    def as_json(self) -> dict[str, Any]:
        """For the log."""
        return {
            "at_s": round(self.at_s, 3),
            "fault": self.fault.kind,
            "agents": list(self.fault.agents),
            "lost_s": round(self.worst_s, 3),
            "longest_round_s": round(self.longest_s, 3),
            "missed": self.missed,
            "back_rounds": self.back_rounds,
            "back_s": None if self.back_s is None else round(self.back_s, 3),
        }


class Ledger:
    """What each fault cost, where an undisturbed round takes `usual_s`. Its memory grows with the faults
    only."""

    def __init__(self, usual_s: float) -> None:
        self.usual_s = usual_s
        self.costs: list[Cost] = []
        self.rounds: dict[str, int] = {}

    def happened(self, fault: Fault, at_s: float) -> None:
        """`fault` happened just now."""
        self.costs.append(Cost(fault, at_s))

    def round(self, agent: str, at_s: float, took_s: float, mixed: int, missed: int) -> None:
        """`agent` ended a round at `at_s` that `took_s`, `mixed` with so many neighbours, and `missed` so
        many."""
        self.rounds[agent] = self.rounds.get(agent, 0) + 1
        self._came_back(agent, at_s, mixed)
        cost = self._responsible(at_s - took_s, at_s)
        if cost is None or self._concerned(agent, at_s - took_s, cost):
            return
        cost.missed += missed
        cost.longest_s = max(cost.longest_s, took_s)
        if took_s > STALL * self.usual_s:
            cost.waited_s[agent] = cost.waited_s.get(agent, 0.0) + took_s - self.usual_s

    def _concerned(self, agent: str, since_s: float, responsible: Cost) -> bool:
        """Whether the last fault of the agent itself is not over, fell into a round that began at `since_s`,
        or is the one that is responsible for it: what it loses then is no cost to others."""
        for cost in reversed(self.costs):
            if cost.fault.agents == (agent,) and cost.fault.kind not in ("part", "heal"):
                return cost is responsible or cost.at_s > since_s or cost.fault.kind in ENDS
        return False

    def _responsible(self, began_s: float, ended_s: float) -> Cost | None:
        after = bisect_right(self.costs, began_s, key=lambda cost: cost.at_s)
        if after < len(self.costs) and self.costs[after].at_s <= ended_s:
            return self.costs[after]
        return self.costs[after - 1] if after else None

    def _came_back(self, agent: str, at_s: float, mixed: int) -> None:
        own = (c for c in reversed(self.costs) if c.fault.agents == (agent,))
        last = next(own, None)
        if last is None or last.fault.kind not in ("restart", "join", "thaw") or last.back_rounds is not None:
            return
        last._alone += 1
        if mixed:
            last.back_rounds, last.back_s = last._alone, at_s - last.at_s


def broken_promises(costs: Sequence[Cost], usual_s: float, timeout_s: float) -> list[str]:
    """Agents that came, left or died and cost another one more than the failure table promises, a deadline
    and the patience beyond it; or that mixed again later than in their third round. What happens while the
    network is in two parts, or somebody is slow or frozen, or just after, is not judged; nor how soon an
    agent is back, if something else happened within a deadline, because views differ for some seconds."""
    most_s = (1 + PATIENCE) * timeout_s + SLACK_ROUNDS * usual_s
    problems = []
    troubled = set[tuple[str, ...]]()
    for before, cost, after in zip([None, *costs[:-1]], costs, [*costs[1:], None], strict=True):
        fault = cost.fault
        troubled -= {(kind, *fault.agents) for kind in ENDS if fault.kind in ENDS[kind]}
        if fault.kind in TROUBLE:
            troubled.add((fault.kind, *fault.agents))
        if troubled or {fault.kind, before.fault.kind if before else ""} & RELIEF:
            continue
        if cost.worst_s > most_s:
            problems.append(f"{fault} at {cost.at_s:.0f} s cost another agent {cost.worst_s:.1f} s")
        began_s = before.at_s if before else -math.inf
        alone = began_s + timeout_s < cost.at_s and (after is None or cost.at_s + timeout_s < after.at_s)
        if alone and cost.back_rounds is not None and cost.back_rounds > BACK_ROUNDS:
            problems.append(f"{fault} at {cost.at_s:.0f} s: mixing again after {cost.back_rounds} rounds")
    return problems

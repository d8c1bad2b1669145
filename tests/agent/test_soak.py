"""Real agents live for thousands of rounds, in virtual time, while a seeded script takes them down, parts
them, slows them and brings them back. `make soak` does the same with processes."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_agents_equal_the_matrix import settings
from torch import Tensor
from village import DELAY_S, STEP_S, TIMEOUT_S, Village, play

from p2pqg_simulator import faults
from p2pqg_simulator.faults import Fault, Ledger

N = 8
ROUND_S = STEP_S + 3 * DELAY_S
CALM_S = 20.0
"""So long after the last fault, everybody's view is the same and nothing may be open any more."""
BLOCKS = 2000
"""Allocated blocks by which a thousand rounds of eight agents, with their faults, may grow: spans of missed
rounds and costs of faults are kept."""
RUN = settings(
    "qg-dsgdm-n",
    rounds=1_000_000,
    weight_decay=0.0,
    task={"name": "quadratic", "dtype": "float64", "options": {"condition": 3.0}},
    schedule={"lr": 0.05},
)
"""Without noise, the models go to one point, and forget what happened on the way."""


@dataclass(frozen=True)
class Sample:
    """What the process held, at a moment when the network had been whole for a while."""

    rounds: int
    blocks: int
    tasks: int
    threads: int


class Soak(Village):
    """A village in which faults happen by a script."""

    def __init__(self, homes: Path, **table: Any) -> None:
        super().__init__(N, run=RUN, homes=homes, checkpoint_every=20, **table)
        self.ledger = Ledger(ROUND_S)
        self.ended_s = dict.fromkeys(self.names, 0.0)
        self.told: Counter[tuple[int, str, str]] = Counter()
        self.samples: list[Sample] = []
        self.furthest = 0.0
        self.expected: list[set[str]] = []
        """For each fault, what its agents, or others about them, must say."""
        self._open: set[tuple[str, ...]] = set()
        self._calm_s: float | None = 0.0

    async def play(self, script: tuple[Fault, ...], until_s: float) -> Tensor:
        """Start everybody, play the script, stop everybody at `until_s`; the models at the end."""
        self.start(*range(N))
        await self.until(self.at_round(0, 1))
        playing = asyncio.create_task(faults.play(script, self._carry_out))
        while self.now < until_s:
            await asyncio.sleep(1.0)
            self._raise_errors()
            self._look()
            if playing.done():
                playing.result()
        await playing
        models = torch.stack([self.lives[i].agent.training.x for i in range(N)])
        for life in self.lives.values():
            life.agent.stop()
        await self.ended()
        return models

    def seen(self, name: str, event: str, details: Mapping[str, Any]) -> None:
        if event == "round":
            took_s = self.now - self.ended_s[name]
            self.ended_s[name] = self.now
            self.ledger.round(name, self.now, took_s, len(details["exchanged"]), len(details["missed"]))
        elif self.ledger.costs:
            self.told[len(self.ledger.costs) - 1, event, details.get("peer", name)] += 1

    async def _carry_out(self, fault: Fault) -> None:
        self.ledger.happened(fault, self.now)
        self.expected.append(self._expected(fault))
        i = self.names.index(fault.agents[0])
        match fault.kind:
            case "kill":
                await self.kill(i)
            case "leave":
                await self.leave(i)
            case "restart" | "join":
                if fault.kind == "join":
                    for file in (self.homes / fault.agents[0]).iterdir():  # type: ignore[operator]
                        file.unlink()
                self.ended_s[fault.agents[0]] = self.now
                self.start(i)
            case "part" | "heal":
                change = self.memory.lose if fault.kind == "part" else self.memory.restore
                for a in fault.agents:
                    for b in set(self.names) - set(fault.agents):
                        change(a, b)
            case "slow" | "quick":
                self.lives[i].agent.step_s = STEP_S * (20 if fault.kind == "slow" else 1)
        if fault.kind in faults.ENDS:
            self._open.add((fault.kind, *fault.agents))
        else:
            begun = [kind for kind, ends in faults.ENDS.items() if fault.kind in ends]
            self._open -= {(kind, *fault.agents) for kind in begun}
        self._calm_s = None if self._open else self.now

    def _expected(self, fault: Fault) -> set[str]:
        """An agent that nobody was connected to dies unnoticed."""
        others = [life.agent for life in self.lives.values() if life.agent.name not in fault.agents]
        noticed = any(peer in fault.agents for agent in others for peer in agent.gossip.live)
        said = {"kill": "disconnected", "leave": "left", "part": "disconnected"}.get(fault.kind)
        if said is None:
            return {"listening"} if fault.kind in ("restart", "join") else set()
        return {said} if noticed else set()

    def _look(self) -> None:
        task = self.lives[0].agent.training.task
        errors = [task.evaluate(x, {}).loss - task.least for x in self.models]  # type: ignore[attr-defined]
        self.furthest = max(self.furthest, *errors)
        if self._calm_s is None or self.now - self._calm_s < CALM_S:
            return
        self._calm_s = None  # once
        for life in self.lives.values():
            assert life.agent.gossip.in_doubt == (), f"{life.agent.name} is in doubt at {self.now:.0f} s"
            assert len(life.agent.gossip.live) >= 2
        gc.collect()
        self.samples.append(
            Sample(
                sum(self.ledger.rounds.values()) // N,
                sys.getallocatedblocks(),
                len(asyncio.all_tasks()),
                threading.active_count(),
            )
        )


def script(until_s: float, every_s: float, seed: int) -> tuple[Fault, ...]:
    names = tuple(f"agent-{i:03d}" for i in range(N))
    return faults.script(seed, names, until_s=until_s, every_s=every_s, lasts_s=(0.3, 3 * every_s))


def lived(homes: Path, script: tuple[Fault, ...], until_s: float) -> tuple[Soak, Tensor]:
    """A soak and its models at the end."""
    soak = Soak(homes)
    return soak, play(soak.play(script, until_s))


def check(soak: Soak) -> None:
    """What holds whatever happens."""
    assert soak.ledger.costs
    assert faults.broken_promises(soak.ledger.costs, ROUND_S, TIMEOUT_S) == []
    for number, cost in enumerate(soak.ledger.costs):
        told = {event for at, event, about in soak.told if at == number and about in cost.fault.agents}
        assert soak.expected[number] <= told, f"{cost.fault} is in nobody's events: {told}"


def test_hundreds_of_rounds_twice(tmp_path: Path) -> None:
    """The same script gives the same run, bit for bit."""
    story = script(9.0, 1.0, seed=0)
    (once, models), (again, same) = (lived(tmp_path / name, story, 14.0) for name in ("one", "two"))
    check(once)
    assert {fault.kind for fault in story} >= {"kill", "leave", "join", "restart", "part", "slow"}
    assert torch.equal(models, same)
    assert [cost.as_json() for cost in once.ledger.costs] == [cost.as_json() for cost in again.ledger.costs]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thousands_of_rounds(tmp_path: Path) -> None:
    """Nothing grows, nothing stays open, and what happened is forgotten: the models end where they end in a
    network that nothing happens to."""
    soak, models = lived(tmp_path / "disturbed", script(540.0, 15.0, seed=0), 660.0)
    check(soak)
    assert min(soak.ledger.rounds.values()) >= 3000
    _, undisturbed = lived(tmp_path / "undisturbed", (), 120.0)
    assert torch.allclose(models, undisturbed, rtol=0.0, atol=1e-8)
    assert soak.furthest < 10.0, "nobody was ever far off"

    early, *_, late = [sample for sample in soak.samples if sample.rounds > 500]
    thousands = (late.rounds - early.rounds) / 1000
    assert thousands > 1
    assert late.threads == early.threads
    assert abs(late.tasks - early.tasks) <= N
    assert (late.blocks - early.blocks) / thousands < BLOCKS

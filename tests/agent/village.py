"""Real agents that come and go, over the memory network and in virtual time; each step takes a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from test_agents_equal_the_matrix import settings
from torch import Tensor

from p2pqg.agent import Agent, Outcome
from p2pqg.config import AgentTable, NetworkFile, RunSettings, agent_names
from p2pqg.gossip.messages import Message
from p2pqg.home import Home
from p2pqg.tasks import Task
from p2pqg.tasks.quadratic import make_task
from p2pqg.transport import virtual_time
from p2pqg.transport.memory import Drop, Faults, MemoryNetwork

T = TypeVar("T")
STEP_S = 0.1
DELAY_S = 0.01
TIMEOUT_S = 5.0


class Paced(Agent):
    """An agent whose local steps take `step_s` of virtual time."""

    step_s = STEP_S

    async def _compute(self, function: Callable[..., T], *arguments: Any) -> T:
        if isinstance(function, partial) and function.func == self.training.begin:
            await asyncio.sleep(self.step_s)
        return await super()._compute(function, *arguments)


@dataclass(frozen=True)
class FailAt:
    """A death at a message: `agent` is killed in `round`, or after it, at a `message` that it exchanges with
    `peer` (None: with anybody), which is lost with it ("unsent"), or has just reached the peer ("sent"), or
    has just come from the peer ("received")."""

    agent: int
    round: int
    message: type[Message]
    peer: int | None
    moment: str
    silent: bool = False
    """The power fails, so that no connection ends. Else it is kill -9, and the system closes them."""

    def strikes(self, sender: int, receiver: int, message: Message, round: int) -> bool:
        """Whether it happens at this message, with the agent in this round."""
        agent, peer = (receiver, sender) if self.moment == "received" else (sender, receiver)
        return (
            isinstance(message, self.message)
            and agent == self.agent
            and self.peer in (None, peer)
            and round >= self.round
        )


@dataclass
class Life:
    """One incarnation of an agent and the task that runs it."""

    agent: Paced
    running: asyncio.Task[Outcome]


class Village:
    """`n` agents of one network, to be started, killed and told to stop by number."""

    def __init__(
        self,
        n: int,
        *,
        topology: str = "ring",
        membership: str = "alive",
        run: RunSettings | None = None,
        homes: Path | None = None,
        dial_only: tuple[int, ...] = (),
        faults: Faults | None = None,
        fail_at: FailAt | None = None,
        lose: Drop = lambda sender, receiver, message: False,
        make: Callable[[RunSettings, str, tuple[str, ...]], Task] | None = None,
        **table: Any,
    ) -> None:
        self.run = run or settings("qg-dsgdm-n", rounds=60, finish={"max_rounds": 0})
        names = agent_names(n)
        agents = [
            {"name": name} | ({} if i in dial_only else {"address": f"memory:{name}"})
            for i, name in enumerate(names)
        ]
        self.network = NetworkFile.model_validate(
            {"name": "village", "topology": topology, "membership": membership, "agents": agents}
        )
        self.memory = MemoryNetwork(0, faults or Faults(delay_s=(DELAY_S, DELAY_S)), self._on_the_wire)
        self.fail_at, self._lose = fail_at, lose
        self.names, self.homes = names, homes
        self.table = {"round_timeout_s": TIMEOUT_S, "start_timeout_s": 20.0, "checkpoint_every": 5} | table
        self.lives: dict[int, Life] = {}
        self.events: list[tuple[float, str, str, Mapping[str, Any]]] = []
        self.rounds: dict[str, list[tuple[float, int, tuple[str, ...]]]] = {name: [] for name in names}
        """By agent: when a round ended, which, and with whom it was mixed."""
        self._make = make or (lambda run, name, names: make_task(run.context(name, names)))

    def start(self, *numbers: int, step_s: float = STEP_S, run: RunSettings | None = None) -> None:
        """Bring agents to life."""
        for i in numbers:
            name = self.names[i]
            settings = run or self.run
            agent = Paced(
                AgentTable.model_validate({"name": name, **self.table}),
                self.network,
                settings,
                self._make(settings, name, self.names),
                self.memory.transport(name),
                home=Home(self.homes / name) if self.homes else None,
                observe=partial(self.seen, name),
            )
            agent.step_s = step_s
            self.lives[i] = Life(agent, asyncio.create_task(agent.run()))

    async def kill(self, i: int) -> None:
        """Without a word."""
        await asyncio.wait([self._die(i).running])

    def _die(self, i: int, *, silent: bool = False) -> Life:
        life = self.lives.pop(i)
        (self.memory.vanish if silent else self.memory.crash)(self.names[i])
        life.running.cancel()
        return life

    def _on_the_wire(self, sender: str, receiver: str, message: Message) -> bool:
        """Whether a message is lost, with or without its sender."""
        fault = self.fail_at
        if fault and fault.agent in self.lives:
            ends = self.names.index(sender), self.names.index(receiver)
            if fault.strikes(*ends, message, self.lives[fault.agent].agent.training.round):
                self.fail_at = None
                if fault.moment == "unsent":
                    self._die(fault.agent, silent=fault.silent)
                    return True
                loop = asyncio.get_running_loop()
                loop.call_later(1.5 * DELAY_S, partial(self._die, fault.agent, silent=fault.silent))
        return self._lose(sender, receiver, message)

    async def leave(self, i: int) -> None:
        """With a goodbye."""
        life = self.lives.pop(i)
        life.agent.stop()
        await life.running

    async def until(self, condition: Callable[[], bool], timeout_s: float = 1000.0) -> None:
        """Look every few milliseconds."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._raise_errors()
                await asyncio.sleep(0.005)

    async def ended(self) -> dict[int, Outcome]:
        """What became of all who are alive."""
        await asyncio.gather(*(life.running for life in self.lives.values()))
        return {i: life.running.result() for i, life in self.lives.items()}

    def at_round(self, i: int, round: int) -> Callable[[], bool]:
        return lambda: i not in self.lives or self.lives[i].agent.training.round >= round

    def _raise_errors(self) -> None:
        for life in self.lives.values():
            if life.running.done():
                life.running.result()

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def models(self) -> Tensor:
        return torch.stack([life.agent.training.x for life in self.lives.values()])

    @property
    def distance(self) -> float:
        """Root mean square distance of the models from their mean."""
        return float((self.models - self.models.mean(0)).norm() / len(self.lives) ** 0.5)

    def pauses(self, name: str) -> list[float]:
        """How long an agent's rounds took."""
        ends = [when for when, _, _ in self.rounds[name]]
        return [b - a for a, b in pairwise(ends)]

    def partners(self, name: str, round: int) -> tuple[str, ...]:
        return next(with_whom for _, at, with_whom in self.rounds[name] if at == round)

    def of(self, event: str, name: str | None = None) -> list[tuple[float, str, Mapping[str, Any]]]:
        return [(w, n, d) for w, n, e, d in self.events if e == event and name in (None, n)]

    def seen(self, name: str, event: str, details: Mapping[str, Any]) -> None:
        """Something happened at agent `name`."""
        if event == "round":
            self.rounds[name].append((self.now, details["round"] - 1, tuple(sorted(details["exchanged"]))))
        else:
            self.events.append((self.now, name, event, details))


def play(story: Coroutine[Any, Any, T]) -> T:
    """Run a story in virtual time."""
    return virtual_time.run(story)

"""What a neighbour sees of a victim, and networks trained side by side to look at it many times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from p2pqg.config import SimulationSettings
from p2pqg.errors import ConfigError
from p2pqg.privacy import Secret
from p2pqg.tasks.supervised import SupervisedTask
from p2pqg.topology import Topology
from p2pqg.topology.graph import Graph

from ..engine import Iterate, Simulation
from ..masks import round_of_sums
from ..private import protected

MESSAGES, SUMS = "messages", "sums"
VIEWS = (MESSAGES, SUMS)


def view(graph: Graph, attacker: int, victim: int, kind: str) -> Tensor:
    """How much of each agent's message `[n]`, float64, the attacker sees as one model.

    MESSAGES: the victim's own. SUMS: all that a secure sum tells, sum_{j in N} w_j x_j over the attacker's
    neighbours N, divided by sum_j w_j, which is public. Raises `ConfigError` if the two are no neighbours.
    """
    row = graph.row(attacker)
    if victim not in row:
        raise ConfigError(f"expected a neighbour of agent {attacker}, found agent {victim}", key="topology")
    weights = {victim: 1.0} if kind == MESSAGES else row
    seen = torch.zeros(graph.n, dtype=torch.float64)
    seen[list(weights)] = torch.tensor(list(weights.values()), dtype=torch.float64)
    return seen / seen.sum()


class Tapped(Simulation):
    """A simulation that keeps what left the agents in the last exchange, `sent: [n, d]` a vector."""

    sent: tuple[Tensor, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.blocks = [slice(self.spec.d)]  # whole vectors leave

    def exchange(self, vectors: tuple[Tensor, ...], round: int) -> tuple[Tensor, ...]:
        self.sent = vectors
        return super().exchange(vectors, round)


class Networks:
    """K networks of the same settings, each with its own `tasks[k]`, trained as one simulation of K n agents
    that are joined only within their network. Private noise comes from `secret`. Raises `ConfigError` for
    tasks that cannot be batched, and for a graph that changes."""

    def __init__(
        self, settings: SimulationSettings, tasks: Sequence[Sequence[SupervisedTask]], secret: Secret
    ) -> None:
        graph = static(settings.graph)
        self.settings, self.count, self.n = settings, len(tasks), graph.n
        names = [f"network-{k:03d}-{name}" for k in range(len(tasks)) for name in settings.names]
        own = [task for network in tasks for task in network]
        self.simulation = Tapped(
            protected(own, settings, names, secret),
            Topology("networks", (side_by_side(graph, len(tasks)),)),
            settings.algorithm.build(),
            settings.schedule.build(),
            names=names,
            weighting=settings.task.weighting,
            engine="vmap",  # many small models with small mini-batches: half the time of a loop
        )
        self.cpu_s = self.wall_s = 0.0
        self.last: Iterate = self.simulation.start(settings.seed)

    def rounds(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Train, and yield all models before each round and what was sent in it, each `[K, n, d]`."""
        for _ in range(self.settings.rounds):
            before, began_s, began_cpu_s = self.models, time.monotonic(), time.process_time()
            self.last = self.simulation.advance(self.last)
            self.wall_s += time.monotonic() - began_s
            self.cpu_s += time.process_time() - began_cpu_s
            yield before, self.simulation.sent[0].view(self.count, self.n, -1)
        self.last = self.simulation.scored(self.last)

    @property
    def models(self) -> Tensor:
        """All agents' models as they are now, `[K, n, d]`."""
        return self.last.x.view(self.count, self.n, -1)

    @property
    def accuracies(self) -> list[float]:
        """Mean held-out accuracy over each network's agents after training."""
        assert self.last.scores is not None
        local = torch.tensor([own.accuracy for own in self.last.scores.local], dtype=torch.float64)
        means: list[float] = local.view(self.count, self.n).mean(1).tolist()
        return means

    def per_agent_round(self) -> dict[str, dict[str, float]]:
        """What a round cost an agent on average, for each view: seconds of CPU and on the clock, and bytes
        sent. Of sums, with their masks, measured by themselves: masks cancel, so networks train without."""
        agent_rounds = self.count * self.n * self.last.round
        training = {"cpu_s": self.cpu_s / agent_rounds, "wall_s": self.wall_s / agent_rounds}
        sent = {"bytes": float(self.last.sent.double().mean()) / self.last.round}
        masking = _measured(round_of_sums(self.models[0, 0]))
        with_masks = {name: spent + masking[name] for name, spent in training.items()}
        return {MESSAGES: training | sent, SUMS: with_masks | sent}


def _measured(work: Callable[[], None], times: int = 21) -> dict[str, float]:
    """Medians of what `work` takes."""
    cpu_s, wall_s = [], []
    for _ in range(times):
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        work()
        wall_s.append(time.monotonic() - began_s)
        cpu_s.append(time.process_time() - began_cpu_s)
    return {"cpu_s": statistics.median(cpu_s), "wall_s": statistics.median(wall_s)}


def static(topology: Topology) -> Graph:
    """The graph of a topology that has only one. Raises `ConfigError` for others."""
    if topology.period > 1:
        raise ConfigError(f"expected a graph that stays the same, found {topology.name}", key="topology")
    return topology.graph(0)


def side_by_side(graph: Graph, copies: int) -> Graph:
    """So many copies of a graph with no edge between them."""
    return Graph(tuple(tuple(j + k * graph.n for j in row) for k in range(copies) for row in graph.incoming))

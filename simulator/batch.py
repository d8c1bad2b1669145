"""Several runs that advance together, as one simulation over the disjoint union of their networks.

A learning-rate grid, seeds and partitions of one cell differ in tasks and rates only. Stacked, `r` runs of
`n` agents are `r * n` agents of whom those of different runs never talk: one mini-batch pass, one product
with a block-diagonal W and one update serve all of them. On an accelerator, and for small dense models, that
is faster than one run after the other; each run's numbers are those it would have had alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p2pqg.algorithms import Rate
from p2pqg.errors import ConfigError
from p2pqg.topology import Graph, Topology

from .engine import Iterate, Simulation
from .gradients import Engine


class Batch(Simulation):
    """The union of `runs`, each its own `Simulation` with its own seed.

    Runs share model, algorithm, number of agents and the period of their graphs; tasks, graphs and schedules
    are their own. `overwrite` as of `Simulation`. Raises `ConfigError` if they share less.
    """

    def __init__(
        self,
        runs: Sequence[Simulation],
        seeds: Sequence[int],
        engine: Engine = "auto",
        rounds: int | None = None,
        overwrite: bool = False,
    ) -> None:
        first = runs[0]
        for run in runs:
            for what in ("n", "spec", "algorithm", "device"):
                if getattr(run, what) != getattr(first, what):
                    raise ConfigError(f"expected runs of the same {what} to advance together")
            if run.topology.period != first.topology.period or (run.scale is None) != (first.scale is None):
                raise ConfigError("expected runs of graphs and weightings of one kind to advance together")
        self.runs, self.seeds = tuple(runs), tuple(seeds)
        super().__init__(
            [task for run in runs for task in run.tasks],
            _union([run.topology for run in runs]),
            first.algorithm,
            first.schedule,
            names=[f"run {r} {name}" for r, run in enumerate(runs) for name in run.names],
            engine=engine,
            device=first.device,
            rounds=rounds,
            overwrite=overwrite,
        )
        scales = [run.scale for run in runs if run.scale is not None]
        self.scale = torch.cat(scales) if scales else None

    def start(self, seed: int = 0) -> Iterate:
        """Every run at the initial parameters of its own seed; `seed` is not looked at."""
        return _stacked([run.start(own) for run, own in zip(self.runs, self.seeds, strict=True)])

    def part(self, iterate: Iterate, r: int) -> Iterate:
        """Run r's rows of an iterate of the union."""
        n = self.runs[r].n
        rows = slice(r * n, (r + 1) * n)
        rates = self.runs[r].schedule.steps(iterate.round - 1, self.algorithm.local_steps)
        return Iterate(
            round=iterate.round,
            x=iterate.x[rows],
            state={name: tensor[rows] for name, tensor in iterate.state.items()},
            buffers=iterate.buffers[rows],
            sent=iterate.sent[rows],
            losses=None if iterate.losses is None else iterate.losses[rows],
            lr=rates[-1] if iterate.round else None,
        )

    def only(self, kept: Sequence[int], iterate: Iterate) -> Iterate:
        """The rows of some of the runs, for a batch of these."""
        return _stacked([self.part(iterate, r) for r in kept])

    def _lrs(self, round: int) -> Sequence[Rate]:
        steps = [run.schedule.steps(round, self.algorithm.local_steps) for run in self.runs]
        if all(own == steps[0] for own in steps):
            return steps[0]
        columns = torch.tensor(steps, dtype=self.spec.dtype, device=self.device)  # [r, local steps]
        return [column.repeat_interleave(self.runs[0].n)[:, None] for column in columns.T]

    def _mean(self, v: Tensor) -> Tensor:
        by_run = v.view(len(self.runs), -1, v.shape[-1])
        return by_run.mean(1, keepdim=True).expand_as(by_run).reshape(v.shape)


def _stacked(parts: Sequence[Iterate]) -> Iterate:
    """Iterates of one round, their agents side by side."""
    if len(parts) == 1:
        return parts[0]
    losses = [part.losses for part in parts if part.losses is not None]
    return Iterate(
        round=parts[0].round,
        x=torch.cat([part.x for part in parts]),
        state={name: torch.cat([part.state[name] for part in parts]) for name in parts[0].state},
        buffers=tuple(own for part in parts for own in part.buffers),
        sent=torch.cat([part.sent for part in parts]),
        losses=torch.cat(losses) if losses else None,
    )


def _union(topologies: Sequence[Topology]) -> Topology:
    """The graphs of all networks side by side."""
    if len(topologies) == 1:
        return topologies[0]
    graphs = []
    for round in range(topologies[0].period):
        incoming: list[tuple[int, ...]] = []
        for topology in topologies:
            first = len(incoming)
            incoming += [tuple(first + j for j in own) for own in topology.graphs[round].incoming]
        graphs.append(Graph(tuple(incoming)))
    return Topology("union", tuple(graphs))

"""Who mixes with whom, round by round, and with which weight.

A row of the mixing matrix W is computed from an agent's own degree and its neighbours' degrees and from
nothing else, so a device that met its peers a second ago and a simulator that holds the whole graph call
the same function. The weight of a neighbour that is missing in a round stays at home (`w_ii += w_ij`):
under a symmetric loss W stays doubly stochastic, which renormalising would not keep.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_

import torch
from torch import Tensor

from p2pqg.errors import ConfigError


def metropolis_hastings(degree: int, neighbour_degree: int) -> float:
    """Weight of one edge: w_ij = 1 / (1 + max(deg_i, deg_j)).

    Symmetric in its arguments, so both ends agree. Ring: 1/3. Complete graph: 1/n. A one-peer round: 1/2.
    """
    return 1.0 / (1 + max(degree, neighbour_degree))


@dataclass(frozen=True)
class Graph:
    """One round's communication graph: `incoming[i]` are the agents that i receives from, in order.

    The degree of an agent is the number of agents it receives from. An undirected graph is one in which
    every edge goes both ways; a directed one is accepted only if its W is doubly stochastic.
    """

    incoming: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for i, neighbours in enumerate(self.incoming):
            if list(neighbours) != sorted(set(neighbours)) or i in neighbours:
                raise ConfigError(f"agent {i}: expected sorted, distinct neighbours other than itself, "
                                  f"found {neighbours}", key="topology")  # fmt: skip
            if neighbours and not 0 <= neighbours[0] <= neighbours[-1] < self.n:
                raise ConfigError(f"agent {i}: expected neighbours from 0 to {self.n - 1}, "
                                  f"found {neighbours}", key="topology")  # fmt: skip
        columns = self.matrix().sum(0)
        if not torch.allclose(columns, torch.ones_like(columns), rtol=0, atol=1e-12):
            raise ConfigError("expected a graph with a doubly stochastic mixing matrix, found one whose "
                              "column sums differ from 1", key="topology")  # fmt: skip

    @property
    def n(self) -> int:
        """Number of agents."""
        return len(self.incoming)

    @cached_property
    def outgoing(self) -> tuple[tuple[int, ...], ...]:
        """`outgoing[i]`: the agents that i sends to, in order."""
        out: list[list[int]] = [[] for _ in self.incoming]
        for i, neighbours in enumerate(self.incoming):
            for j in neighbours:
                out[j].append(i)
        return tuple(map(tuple, out))

    @property
    def symmetric(self) -> bool:
        """Whether every edge goes both ways."""
        return self.incoming == self.outgoing

    def degree(self, i: int) -> int:
        """How many agents i receives from."""
        return len(self.incoming[i])

    def row(self, i: int) -> dict[int, float]:
        """Weights that agent i gives to its neighbours; the rest, 1 - sum, it gives to itself."""
        return {j: metropolis_hastings(self.degree(i), self.degree(j)) for j in self.incoming[i]}

    def matrix(self) -> Tensor:
        """W as float64 `[n, n]`; row i is `row(i)` with the self weight on the diagonal."""
        W = torch.zeros(self.n, self.n, dtype=torch.float64)
        for i in range(self.n):
            row = self.row(i)
            for j, w in row.items():
                W[i, j] = w
            W[i, i] = 1 - sum(row.values())
        return W


@dataclass(frozen=True)
class Topology:
    """A sequence of graphs that repeats: round t uses `graphs[t % period]`."""

    name: str
    graphs: tuple[Graph, ...]

    @property
    def n(self) -> int:
        """Number of agents."""
        return self.graphs[0].n

    @property
    def period(self) -> int:
        """Number of rounds after which the graphs repeat; 1 for a static graph."""
        return len(self.graphs)

    @property
    def symmetric(self) -> bool:
        """Whether every graph is undirected."""
        return all(graph.symmetric for graph in self.graphs)

    @property
    def complete(self) -> bool:
        """Whether every round averages over all agents exactly (W = 11ᵀ/n)."""
        return all(graph.degree(i) == self.n - 1 for graph in self.graphs for i in range(self.n))

    def graph(self, round: int) -> Graph:
        """The graph of round `round`."""
        return self.graphs[round % self.period]

    def neighbours(self, i: int) -> tuple[int, ...]:
        """Every agent that i ever exchanges a message with, in order."""
        return tuple(sorted({j for graph in self.graphs for j in graph.incoming[i] + graph.outgoing[i]}))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any edge of any round."""
        edges = repr([graph.incoming for graph in self.graphs])
        return hashlib.blake2b(edges.encode(), digest_size=8).hexdigest()

    @cached_property
    def diameter(self) -> int:
        """Rounds after which what one agent knew in round 0 has reached every agent, starting in any
        round of the period; 0 for a single agent. Raises `ConfigError` if it never does."""
        return max(self._rounds_to_reach_all(start) for start in range(self.period))

    def _rounds_to_reach_all(self, start: int) -> int:
        # Bit j of heard[i]: i has heard of j. Sets would take seconds for a ring of 1,000.
        heard = [1 << i for i in range(self.n)]
        everyone = (1 << self.n) - 1
        rounds = 0
        while any(h != everyone for h in heard):
            if rounds > self.n * self.period:
                raise ConfigError("expected a connected graph, found agents that never hear of each other",
                                  key="topology")  # fmt: skip
            graph = self.graph(start + rounds)
            heard = [reduce(or_, (heard[j] for j in graph.incoming[i]), h) for i, h in enumerate(heard)]
            rounds += 1
        return rounds

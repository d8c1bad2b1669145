"""Whom an agent exchanges with in a round: by a topology that is fixed, or by a rule over who is alive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from p2pqg.gossip.membership import Membership
from p2pqg.topology import Topology
from p2pqg.topology.rules import Choice, Edges, choose

Exchanges = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of those an agent receives from in a round, and of those it sends to."""


class Graphs(Protocol):
    """The graphs of one agent's rounds."""

    @property
    def sought(self) -> tuple[str, ...]:
        """Everyone to be connected to."""

    @property
    def remark(self) -> str:
        """What is wrong with the graph, empty if nothing is."""

    def exchanges(self, round: int) -> Exchanges:
        """With whom in `round`. Changes take effect here, so at a round boundary."""

    def senders_to(self, receiver: str, round: int) -> tuple[str, ...]:
        """Those whom another agent receives from in `round`."""

    def topology(self) -> Topology:
        """The graphs that repeat from here on, as far as anybody knows."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All pairs of agents that exchange in these, by name."""


class FixedGraphs:
    """`topology` over `names`, whoever is there: the weight of a neighbour that is missing stays at home."""

    remark = ""

    def __init__(self, own: str, names: Sequence[str], topology: Topology) -> None:
        self._names, self._topology = tuple(names), topology
        self._own = self._names.index(own)

    @property
    def sought(self) -> tuple[str, ...]:
        return self._of(self._topology.neighbours(self._own))

    def exchanges(self, round: int) -> Exchanges:
        graph = self._topology.graph(round)
        return self._of(graph.incoming[self._own]), self._of(graph.outgoing[self._own])

    def senders_to(self, receiver: str, round: int) -> tuple[str, ...]:
        return self._of(self._topology.graph(round).incoming[self._names.index(receiver)])

    def topology(self) -> Topology:
        return self._topology

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return _pairs(self._names, self._topology)

    def _of(self, indices: Sequence[int]) -> tuple[str, ...]:
        return tuple(self._names[j] for j in indices)


class LivingGraphs:
    """The graph that `rule` (or `edges`) makes over those who are alive in the own view."""

    def __init__(self, rule: str, edges: Edges | None, membership: Membership) -> None:
        self._rule, self._edges, self._membership = rule, edges, membership
        self._seen: dict[str, bool] = {}
        self._choice = choose(rule, {}, edges)

    @property
    def sought(self) -> tuple[str, ...]:
        return self._at(self._membership.own.round).neighbours(self._membership.own.name)

    @property
    def remark(self) -> str:
        return self._choice.remark

    def exchanges(self, round: int) -> Exchanges:
        neighbours = self._at(round).neighbours(self._membership.own.name)
        return neighbours, neighbours

    def senders_to(self, receiver: str, round: int) -> tuple[str, ...]:
        return self._at(round).neighbours(receiver)

    def topology(self) -> Topology:
        return Topology(self._rule, (self._choice.graph,))

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return _pairs(self._choice.names, self.topology())

    def _at(self, round: int) -> Choice:
        seen = {member.name: bool(member.address) for member in self._membership.present(round)}
        if seen != self._seen:
            self._seen, self._choice = seen, choose(self._rule, seen, self._edges)
        return self._choice


def _pairs(names: Sequence[str], topology: Topology) -> tuple[tuple[str, str], ...]:
    edges = {
        (min(i, j), max(i, j))
        for graph in topology.graphs
        for i, incoming in enumerate(graph.incoming)
        for j in incoming
    }
    return tuple((names[i], names[j]) for i, j in sorted(edges))

"""Who mixes with whom when nobody knows beforehand who will be there: a graph by rule over who is alive.

The graph is a function of the members' names and of who can be dialled, of nothing else, so agents that see
the same members choose the same edges. Where their views differ for a moment, an edge that only one of its
ends wants is refused by the other and its weight stays at home: W is symmetric and doubly stochastic whatever
anybody believes.

Two members that nobody can dial (behind a firewall, say) are never neighbours. They are placed between those
that can be dialled, edges that are still impossible are left out, and what then lies apart is joined to the
least busy member that can be dialled. Named explicitly, edges are taken as they are: what then falls apart is
said, not mended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from p2pqg.errors import ConfigError
from p2pqg.topology.graph import Graph, Topology
from p2pqg.topology.named import build, named, twisted_torus

Edges = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Choice:
    """The graph of one round over `names`, and what is wrong with it (empty if nothing is)."""

    names: tuple[str, ...]
    graph: Graph
    remark: str = ""

    def neighbours(self, name: str) -> tuple[str, ...]:
        """The neighbours of `name`, in order; none if it is not among the members."""
        if name not in self.names:
            return ()
        return tuple(self.names[j] for j in self.graph.incoming[self.names.index(name)])


def choose(rule: str, members: Mapping[str, bool], edges: Edges | None = None) -> Choice:
    """The graph that `rule` (a name of `p2pqg.topology.build`) makes over `members`: name -> whether it can
    be dialled. With `edges`, those of them whose ends are both there. Raises `ConfigError` for a rule that
    is not one for any number of agents."""
    names = tuple(sorted(members))
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(names)
    wanted = edges if edges is not None else _by_rule(rule, _interleaved(members))
    graph.add_edges_from((a, b) for a, b in wanted if a in members and b in members)
    graph.remove_edges_from([(a, b) for a, b in graph.edges if not (members[a] or members[b])])
    if edges is None:
        _mend(graph, members)
    number = {name: i for i, name in enumerate(names)}
    incoming = tuple(tuple(sorted(number[peer] for peer in graph.adj[name])) for name in names)
    return Choice(names, Graph(incoming), _remark(graph))


def check_rule(rule: str) -> None:
    """Raise `ConfigError` unless `rule` makes one undirected graph over any number of members."""
    named(rule)
    for n in range(2, 8):
        try:
            list(_by_rule(rule, [f"agent {i}" for i in range(n)]))
        except ConfigError as error:
            raise ConfigError(
                f"expected a rule for any number of agents, because they come and go: {error.message}",
                key="topology",
            ) from None


def _by_rule(rule: str, order: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The rule's edges over members placed in `order`."""
    if len(order) < 2:
        return
    topology = _topology(rule, len(order))
    if topology.period > 1 or not topology.symmetric:
        raise ConfigError(
            f"expected the same undirected graph in every round, found {rule!r}", key="topology"
        )
    for i, neighbours in enumerate(topology.graphs[0].incoming):
        yield from ((order[i], order[j]) for j in neighbours if i < j)


def _topology(rule: str, n: int) -> Topology:
    """Not every number of agents makes a grid; the twisted torus is the same but for how its ends meet."""
    try:
        return build(rule, n)
    except ConfigError:
        if rule != "torus":
            raise
        return twisted_torus(n)


def _interleaved(members: Mapping[str, bool]) -> list[str]:
    """Members by name, those that cannot be dialled spread evenly among the others."""
    open_ = sorted(name for name, diallable in members.items() if diallable)
    closed = sorted(name for name, diallable in members.items() if not diallable)
    place = {name: (i + 0.5) / len(open_) for i, name in enumerate(open_)}
    place |= {name: (i + 1) / max(len(closed), 1) for i, name in enumerate(closed)}
    return sorted(members, key=lambda name: (place[name], name)) if closed else open_


def _mend(graph: nx.Graph[str], members: Mapping[str, bool]) -> None:
    """Join the parts of the graph by as few edges as it takes, each with an end that can be dialled."""
    parts = sorted(nx.connected_components(graph), key=min)
    hubs = [name for name in graph if members[name]]
    for part in parts:
        if not hubs or any(nx.has_path(graph, hubs[0], name) for name in part):
            continue
        near = [n for n in part if members[n]] or sorted(part)
        far = [n for n in hubs if nx.has_path(graph, hubs[0], n)]
        graph.add_edge(_least_busy(graph, near), _least_busy(graph, far))


def _least_busy(graph: nx.Graph[str], names: Iterable[str]) -> str:
    return min(names, key=lambda name: (graph.degree[name], name))


def _remark(graph: nx.Graph[str]) -> str:
    parts = sorted((sorted(part) for part in nx.connected_components(graph)), key=len, reverse=True)
    if len(parts) < 2:
        return ""
    apart = "; ".join(", ".join(part) for part in parts[1:])
    return f"the graph falls apart: no path from {parts[0][0]} to {apart}"

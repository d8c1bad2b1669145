"""The topologies that have a name, and any other graph."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import networkx as nx

from p2pqg.errors import ConfigError
from p2pqg.topology.graph import Graph, Topology


def ring(n: int) -> Topology:
    """A cycle; every weight 1/3 for n >= 3."""
    return from_networkx(nx.cycle_graph(n) if n > 2 else nx.path_graph(n), "ring")


def complete(n: int) -> Topology:
    """Everyone with everyone: W = 11ᵀ/n."""
    return from_networkx(nx.complete_graph(n), "complete")


def star(n: int) -> Topology:
    """Agent 0 in the middle."""
    return from_networkx(nx.star_graph(n - 1), "star")


def torus(n: int) -> Topology:
    """A periodic grid as square as n allows (n = rows * columns, both at least 2), as a simple graph."""
    rows = next((r for r in range(math.isqrt(n), 1, -1) if n % r == 0), None)
    if rows is None:
        raise _impossible("torus", "a number of agents with two factors above 1", n)
    grid = nx.grid_2d_graph(rows, n // rows, periodic=True)
    return from_networkx(nx.Graph(grid), "torus")


def social(n: int) -> Topology:
    """The Davis Southern women graph of the paper's Figure 7: 18 women, 14 events, 89 edges."""
    if n != 32:
        raise _impossible("social", "exactly 32 agents", n)
    return from_networkx(nx.davis_southern_women_graph(), "social")


def one_peer_exponential(n: int) -> Topology:
    """Assran et al. 2019 (Table 4): in each round agent i receives from i - h and sends to i + h (mod n).

    The hop h = 2^p cycles through p = 0 .. floor(log2(n - 1)), starting at p = 1 as in the released code:
    2, 4, 8, 1, ... for n = 16. Directed, weights 1/2; a period averages exactly if n is a power of two.
    """
    if n < 2:
        raise _impossible("one-peer-exponential", "at least 2 agents", n)
    hops = [2**p for p in range((n - 1).bit_length())]
    hops = hops[1:] + hops[:1]
    return Topology(
        "one-peer-exponential", tuple(Graph(tuple(((i - h) % n,) for i in range(n))) for h in hops)
    )


def one_peer_hypercube(n: int) -> Topology:
    """In round t agent i pairs with i XOR 2^(t mod log2 n): symmetric, and exact after log2 n rounds."""
    if n < 2 or n & (n - 1):
        raise _impossible("one-peer-hypercube", "a power of two of agents", n)
    bits = n.bit_length() - 1
    return Topology(
        "one-peer-hypercube", tuple(Graph(tuple((i ^ (1 << k),) for i in range(n))) for k in range(bits))
    )


def circulant(n: int, hops: Iterable[int], name: str) -> Topology:
    """Agents in a circle, each with those `hops` before and after it."""
    return from_networkx(nx.circulant_graph(n, [hop for hop in hops if hop < n]), name)


def regular(k: int, n: int) -> Topology:
    """Everyone has the k nearest on a circle as neighbours (fewer where there are fewer agents). An odd k
    adds the agent opposite, and takes an even number of agents."""
    if k >= n - 1:
        return replace(complete(n), name=f"{k}-regular")
    if k < 2 or (k % 2 and n % 2):
        raise _impossible(f"{k}-regular", "k of at least 2, and an even number of agents if k is odd", n)
    return circulant(n, [*range(1, k // 2 + 1), *([n // 2] if k % 2 else [])], f"{k}-regular")


def exponential(n: int) -> Topology:
    """Everyone with those 1, 2, 4, 8, ... places before and after it on a circle, in every round."""
    return circulant(n, (2**p for p in range(n.bit_length())), "exponential")


def twisted_torus(n: int) -> Topology:
    """What a torus is where n has no two factors: circle neighbours, and those sqrt(n) places away."""
    return circulant(n, (1, max(2, math.isqrt(n))), "torus")


def isolated(n: int) -> Topology:
    """Nobody talks: W = I, every agent trains alone."""
    return Topology("isolated", (Graph(tuple(() for _ in range(n))),))


TOPOLOGIES: dict[str, Callable[[int], Topology]] = {
    "ring": ring,
    "complete": complete,
    "star": star,
    "torus": torus,
    "exponential": exponential,
    "social": social,
    "one-peer-exponential": one_peer_exponential,
    "one-peer-hypercube": one_peer_hypercube,
    "isolated": isolated,
}


def build(name: str, n: int) -> Topology:
    """The named topology over n agents; ``4-regular`` and the like for any degree. Raises `ConfigError` for
    an unknown name or an impossible n."""
    rule = named(name)
    if n < 1:
        raise ConfigError(f"expected at least 1 agent, found {n}", key="agents")
    return rule(n)


def named(name: str) -> Callable[[int], Topology]:
    """What makes the topology of this name over n agents. Raises `ConfigError` for an unknown name."""
    if degree := re.fullmatch(r"(\d{1,4})-regular", name):
        return partial(regular, int(degree[1]))
    if name not in TOPOLOGIES:
        raise ConfigError(
            f"expected one of {', '.join(TOPOLOGIES)}, or 4-regular and the like; found {name!r}",
            key="topology",
        )
    return TOPOLOGIES[name]


def from_networkx(graph: nx.Graph[Any], name: str = "graph") -> Topology:
    """Any undirected networkx graph, its nodes numbered in their own order; edge weights and self-loops
    are ignored. Raises `ConfigError` for a directed or disconnected graph."""
    if graph.is_directed():
        raise ConfigError("expected an undirected graph, found a directed one", key="topology")
    if graph.number_of_nodes() == 0 or not nx.is_connected(graph):
        raise ConfigError("expected a connected graph, found one that is not", key="topology")
    number = {node: i for i, node in enumerate(graph.nodes)}
    incoming = (tuple(sorted(number[m] for m in graph.adj[node] if m != node)) for node in graph.nodes)
    return Topology(name, (Graph(tuple(incoming)),))


def from_edge_list(lines: Iterable[str], nodes: Iterable[str], name: str = "edges") -> Topology:
    """A graph from lines of two node names (``#`` starts a comment), over `nodes` in their given order.

    Raises `ConfigError` naming the line for an unknown node or a line without exactly two names.
    """
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(nodes)
    for number, line in enumerate(lines, start=1):
        ends = line.split("#")[0].split()
        if not ends:
            continue
        if len(ends) != 2 or ends[0] == ends[1]:
            raise ConfigError(f"line {number}: expected two different agents, found {line.strip()!r}",
                              key="topology")  # fmt: skip
        for end in ends:
            if end not in graph:
                raise ConfigError(f"line {number}: expected one of the agents, found {end!r}", key="topology")
        graph.add_edge(*ends)
    return from_networkx(graph, name)


def _impossible(name: str, expected: str, n: int) -> ConfigError:
    return ConfigError(f"{name} expects {expected}, found {n}", key="topology")

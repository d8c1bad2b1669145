"""Graphs, their weights, and what is refused."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pqg.errors import ConfigError
from p2pqg.topology import (
    TOPOLOGIES,
    Graph,
    Topology,
    build,
    from_edge_list,
    from_networkx,
    metropolis_hastings,
    second_eigenvalue,
    spectral_gap,
)

POSSIBLE = {
    "ring": (1, 2, 3, 8, 16),
    "complete": (1, 2, 5),
    "star": (1, 2, 7),
    "torus": (4, 6, 9, 16),
    "exponential": (1, 2, 3, 8, 9),
    "3-regular": (1, 2, 4, 8),
    "4-regular": (1, 3, 7, 8),
    "social": (32,),
    "one-peer-exponential": (2, 3, 5, 8, 16),
    "one-peer-hypercube": (2, 4, 8, 16),
    "isolated": (1, 4),
}
IMPOSSIBLE = {
    "torus": (1, 2, 3, 7),
    "3-regular": (5, 9),
    "social": (31, 33),
    "one-peer-exponential": (1,),
    "one-peer-hypercube": (1, 3, 6),
}


@st.composite
def connected_graphs(draw: st.DrawFn) -> nx.Graph:
    """A random tree and some more edges."""
    n = draw(st.integers(1, 12))
    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from((i, draw(st.integers(0, i - 1))) for i in range(1, n))
    if n > 1:
        more = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
        graph.add_edges_from((i, j) for i, j in draw(st.lists(more, max_size=20)) if i != j)
    return graph


@given(connected_graphs())
def test_any_connected_graph_mixes_doubly_stochastically(graph: nx.Graph) -> None:
    topology = from_networkx(graph)
    W = topology.graph(0).matrix()
    ones = torch.ones(topology.n, dtype=torch.float64)
    assert torch.equal(W, W.T)
    assert (W >= -1e-15).all()
    torch.testing.assert_close(W @ ones, ones, rtol=0, atol=1e-14)
    adjacent = torch.from_numpy(nx.to_numpy_array(graph)) > 0
    off_diagonal = ~torch.eye(topology.n, dtype=torch.bool)
    assert torch.equal((W > 0) & off_diagonal, adjacent)
    assert topology.symmetric
    assert second_eigenvalue(topology) < 1 or topology.n == 1
    assert topology.diameter == nx.diameter(graph)
    for i in range(topology.n):
        for j, w in topology.graph(0).row(i).items():
            assert w == pytest.approx(1 / (1 + max(graph.degree(i), graph.degree(j))), abs=1e-15)


@pytest.mark.parametrize(("name", "n"), [(name, n) for name, sizes in POSSIBLE.items() for n in sizes])
def test_named_topologies_mix_doubly_stochastically_in_every_round(name: str, n: int) -> None:
    topology = build(name, n)
    assert (topology.n, topology.name) == (n, name)
    ones = torch.ones(n, dtype=torch.float64)
    for t in range(2 * topology.period):
        W = topology.graph(t).matrix()
        assert (W >= 0).all()
        torch.testing.assert_close(W @ ones, ones, rtol=0, atol=1e-14)
        torch.testing.assert_close(ones @ W, ones, rtol=0, atol=1e-14)


def test_every_named_topology_is_tested() -> None:
    assert {name for name in POSSIBLE if "regular" not in name} == set(TOPOLOGIES)


@pytest.mark.parametrize(("name", "n"), [(name, n) for name, sizes in IMPOSSIBLE.items() for n in sizes])
def test_impossible_sizes_are_refused(name: str, n: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} expects .*, found {n}"):
        build(name, n)


def test_unknown_names_and_no_agents_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ring.*found 'mesh'"):
        build("mesh", 4)
    with pytest.raises(ConfigError, match="at least 1 agent, found 0"):
        build("ring", 0)


def test_a_torus_of_two_by_two_is_a_simple_graph() -> None:
    assert [build("torus", 4).graph(0).degree(i) for i in range(4)] == [2, 2, 2, 2]


def test_weights_are_symmetric_in_the_two_ends() -> None:
    assert metropolis_hastings(2, 5) == metropolis_hastings(5, 2) == 1 / 6


def test_directed_rounds_know_who_sends_and_who_receives() -> None:
    graph = build("one-peer-exponential", 4).graph(1)  # hop 1
    assert graph.incoming == ((3,), (0,), (1,), (2,))
    assert graph.outgoing == ((1,), (2,), (3,), (0,))
    assert not graph.symmetric
    assert build("one-peer-exponential", 4).neighbours(0) == (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "n", "diameter"),
    [
        ("ring", 1, 0),
        ("ring", 2, 1),
        ("ring", 9, 4),
        ("ring", 1000, 500),
        ("complete", 6, 1),
        ("star", 6, 2),
        ("torus", 16, 4),
        ("one-peer-hypercube", 8, 3),
        ("one-peer-exponential", 8, 3),
    ],
)
def test_diameter_counts_rounds_until_everyone_has_heard(name: str, n: int, diameter: int) -> None:
    assert build(name, n).diameter == diameter


def test_agents_that_never_hear_of_each_other_have_no_diameter() -> None:
    with pytest.raises(ConfigError, match="connected"):
        _ = build("isolated", 3).diameter


@pytest.mark.parametrize(
    ("name", "n", "gap"), [("complete", 7, 1.0), ("isolated", 3, 0.0), ("one-peer-hypercube", 8, 1.0)]
)
def test_spectral_gap_at_the_extremes(name: str, n: int, gap: float) -> None:
    assert spectral_gap(build(name, n)) == pytest.approx(gap, abs=1e-12)


@given(connected_graphs().filter(lambda graph: graph.number_of_nodes() > 1))
def test_second_eigenvalue_bounds_the_contraction_of_disagreement(graph: nx.Graph) -> None:
    topology = from_networkx(graph)
    W = topology.graph(0).matrix()
    x = torch.randn(topology.n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = (x - x.mean(0)).norm()
    after = (W @ x - x.mean(0)).norm()
    assert after <= second_eigenvalue(topology) * before + 1e-12


def test_edge_list_numbers_agents_in_their_given_order() -> None:
    lines = ["# a path", "carol alice  # comment", "", "bob alice"]
    topology = from_edge_list(lines, nodes=["alice", "bob", "carol"])
    assert topology.graph(0).incoming == ((1, 2), (0,), (0,))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a b", "b dave"], "line 2: expected one of the agents, found 'dave'"),
        (["a b c"], "line 1: expected two different agents"),
        (["a b", "", "c"], "line 3: expected two different agents, found 'c'"),
        (["a a"], "line 1: expected two different agents"),
        (["a b"], "connected"),
    ],
)
def test_edge_list_errors_name_the_line(lines: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_edge_list(lines, nodes=["a", "b", "c"])


def test_self_loops_and_weights_of_a_networkx_graph_are_ignored() -> None:
    graph = nx.Graph()
    graph.add_weighted_edges_from([("a", "b", 9.0), ("b", "b", 2.0)])
    assert from_networkx(graph).graph(0).matrix().tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    "graph",
    [nx.DiGraph([(0, 1), (1, 0)]), nx.empty_graph(2), nx.Graph()],
    ids=["directed", "disconnected", "empty"],
)
def test_graphs_that_cannot_agree_are_refused(graph: nx.Graph) -> None:
    with pytest.raises(ConfigError):
        from_networkx(graph)


@pytest.mark.parametrize(
    "incoming",
    [((0,), (0,)), ((1, 1), (0,)), ((2, 1), (0,), (0,)), ((5,), (0,)), ((-1,), (0,)), ((1,), ())],
    ids=["itself", "twice", "unsorted", "beyond", "negative", "one-way"],
)
def test_malformed_graphs_are_refused(incoming: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ConfigError):
        Graph(incoming)


def test_rounds_repeat_with_the_period() -> None:
    topology = Topology("two", (build("ring", 4).graph(0), build("complete", 4).graph(0)))
    assert topology.graph(0) is topology.graph(2)
    assert topology.graph(1) is topology.graph(5)
    assert not topology.complete
    assert build("complete", 4).complete

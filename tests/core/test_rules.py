"""Graphs by rule over whoever is there: the same for everyone who sees the same, and possible to dial."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pqg.errors import ConfigError
from p2pqg.topology import build
from p2pqg.topology.rules import Choice, check_rule, choose

RULES = ("ring", "torus", "4-regular", "exponential", "complete", "star")
sites = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.booleans(), max_size=14)


def as_networkx(choice: Choice) -> nx.Graph[str]:
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(choice.names)
    graph.add_edges_from((name, peer) for name in choice.names for peer in choice.neighbours(name))
    return graph


@given(sites, st.sampled_from(RULES), st.randoms(use_true_random=False))
def test_a_rule_makes_a_graph_that_can_be_dialled(members: dict[str, bool], rule: str, random: Any) -> None:
    choice = choose(rule, members)
    names = list(members)
    random.shuffle(names)
    assert choose(rule, {name: members[name] for name in names}) == choice, "the same for everybody"
    for name in choice.names:
        for peer in choice.neighbours(name):
            assert name in choice.neighbours(peer), "both ends agree"
            assert members[name] or members[peer], "one of them can be dialled"
    graph = as_networkx(choice)
    whole = len(members) < 2 or nx.is_connected(graph)
    assert whole == (not choice.remark)
    if any(members.values()):
        assert whole, "one site that can be dialled is enough"


@pytest.mark.parametrize("rule", ["ring", "complete", "exponential", "star", "4-regular"])
@pytest.mark.parametrize("n", [2, 3, 6, 9])
def test_where_all_can_be_dialled_a_rule_is_the_topology_of_that_name(rule: str, n: int) -> None:
    choice = choose(rule, {f"agent {i}": True for i in range(n)})
    assert choice.graph == build(rule, n).graphs[0]


@pytest.mark.parametrize("n", range(1, 30))
def test_a_torus_exists_for_any_number(n: int) -> None:
    choice = choose("torus", {f"agent {i:02d}": True for i in range(n)})
    assert max((choice.graph.degree(i) for i in range(n)), default=0) <= 4
    assert not choice.remark


def test_sites_that_only_dial_out_are_placed_between_the_others() -> None:
    choice = choose("ring", {"a": True, "b": True, "c": False, "d": False})
    assert not choice.remark
    assert all(choice.graph.degree(i) == 2 for i in range(4)), "a whole ring"


def test_sites_that_nobody_can_dial_fall_apart_and_it_is_said() -> None:
    choice = choose("ring", {"a": False, "b": False, "c": False})
    assert choice.remark == "the graph falls apart: no path from a to b; c"
    assert not any(choice.graph.incoming)


def test_named_edges_are_taken_as_they_are() -> None:
    edges = [("a", "b"), ("b", "c"), ("c", "d")]
    everyone = dict.fromkeys("abcd", True)
    assert choose("ring", everyone, edges).neighbours("b") == ("a", "c")
    assert not choose("ring", everyone, edges).remark
    without_b = dict.fromkeys("acd", True)
    assert choose("ring", without_b, edges).neighbours("a") == ()
    assert "no path from c to a" in choose("ring", without_b, edges).remark


@pytest.mark.parametrize("rule", ["social", "one-peer-exponential", "3-regular"])
def test_what_is_no_rule_for_any_number_is_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match="expected a rule for any number of agents"):
        check_rule(rule)


def test_what_is_no_rule_at_all_is_answered_by_the_list() -> None:
    with pytest.raises(
        ConfigError, match=r"expected one of ring, .*, or 4-regular and the like; found 'line'"
    ):
        check_rule("line")

"""Views of who is there, and the graphs made of them, over random histories of joins, leaves and crashes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pqg.gossip.graphs import LivingGraphs
from p2pqg.gossip.membership import Membership
from p2pqg.gossip.messages import ALIVE, LEFT, Member
from p2pqg.topology import metropolis_hastings

NAMES = tuple(f"agent-{i:03d}" for i in range(7))
RULES = ("ring", "torus", "4-regular", "exponential", "complete")


class World:
    """Agents that tell each other what they know, once a second, as far as they reach each other."""

    def __init__(self, rule: str, seed: int) -> None:
        self.rule, self.random, self.now = rule, np.random.default_rng(seed), 0.0
        self.views: dict[str, Membership] = {}
        self.graphs: dict[str, LivingGraphs] = {}
        self.lives = 0
        self.cut: set[str] = set()

    def join(self, name: str) -> None:
        if name not in self.views:
            self.lives += 1
            view = self.views[name] = Membership(Member(name, 1, ALIVE, f"there:{self.lives}"))
            self.graphs[name] = LivingGraphs(self.rule, None, view)

    def crash(self, name: str) -> None:
        self.views.pop(name, None)
        self.graphs.pop(name, None)

    def leave(self, name: str) -> None:
        if name in self.views:
            self.views[name].say(state=LEFT)
            for other in self.views.values():
                other.hear(self.views[name].members.values())
            self.crash(name)

    def reach(self, a: str, b: str) -> bool:
        return (a in self.cut) == (b in self.cut)

    def second(self) -> None:
        self.now += 1.0
        for view in self.views.values():
            view.tick(self.now)
        for name, view in self.views.items():
            for other in self.random.permutation(sorted(self.views))[:2]:
                if self.reach(name, other):
                    self.views[other].hear(view.members.values())
                    view.hear(self.views[other].members.values())

    def mixing(self) -> torch.Tensor:
        """W of a round in which some edges are lost besides: an edge counts where both ends want it, with
        the weight from the degrees that both announce."""
        names = sorted(self.views)
        wanted = {name: self.graphs[name].exchanges(0)[0] for name in names}
        W = torch.eye(len(names), dtype=torch.float64)
        for i, a in enumerate(names):
            for j, b in enumerate(names[:i]):
                if a in wanted[b] and b in wanted[a] and self.reach(a, b) and self.random.random() < 0.9:
                    w = metropolis_hastings(len(wanted[a]), len(wanted[b]))
                    W[i, j] = W[j, i] = w
                    W[i, i] -= w
                    W[j, j] -= w
        return W


events = st.lists(
    st.tuples(
        st.sampled_from(["join", "join", "crash", "leave", "wait", "cut", "heal"]), st.sampled_from(NAMES)
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(events, st.sampled_from(RULES), st.integers(0, 1000))
def test_w_is_symmetric_and_doubly_stochastic_whatever_anybody_believes(
    history: list[tuple[str, str]], rule: str, seed: int
) -> None:
    world = World(rule, seed)
    for name in NAMES[:3]:
        world.join(name)
    for event, name in history:
        match event:
            case "wait":
                for _ in range(10):
                    world.second()
            case "cut":
                world.cut.add(name)
            case "heal":
                world.cut.clear()
            case _:
                getattr(world, event)(name)
        world.second()
        W = world.mixing()
        assert torch.equal(W, W.T)
        torch.testing.assert_close(W.sum(0), torch.ones(len(W), dtype=torch.float64), rtol=0, atol=1e-12)
        assert (W >= 0).all()
        assert (W.diagonal() > 0).all()
    world.cut.clear()
    for _ in range(60):
        world.second()
    views = {tuple(m.name for m in view.present(0)) for view in world.views.values()}
    assert views <= {tuple(sorted(world.views))}, "when it is quiet, all see the same, and the truth"
    for name, graphs in world.graphs.items():
        for peer in graphs.sought:
            assert name in world.graphs[peer].sought, "so both ends of every edge agree"


def ring_of(n: int, seconds: int) -> World:
    """The first `n` of the names, some seconds after they joined."""
    world = World("ring", 0)
    for name in NAMES[:n]:
        world.join(name)
    for _ in range(seconds):
        world.second()
    return world


def test_a_heart_that_stops_is_noticed_and_one_that_beats_again_too() -> None:
    world = ring_of(3, seconds=5)
    world.crash(NAMES[2])
    seconds = 0
    while len(world.views[NAMES[0]].here) == 2:
        world.second()
        seconds += 1
    assert seconds <= world.views[NAMES[0]].patience_s + 3
    world.join(NAMES[2])  # begins to count at 1 again
    for _ in range(3):
        world.second()
    assert len(world.views[NAMES[0]].here) == 2
    assert world.views[NAMES[0]].address(NAMES[2]) == "there:4"


def test_time_in_which_nobody_looked_is_held_against_nobody() -> None:
    view = Membership(Member("a", 1, ALIVE))
    view.hear([Member("b", 1, ALIVE)])
    view.tick(0.0)
    view.tick(10_000.0)
    assert [m.name for m in view.here] == ["b"]


def test_nobody_can_be_said_to_be_dead_and_nothing_grows() -> None:
    view = Membership(Member("a", 1, ALIVE))
    view.hear([Member("b", 5, ALIVE), Member("b", 4, LEFT), Member("c", 1 << 63, ALIVE)])
    assert [m.name for m in view.here] == ["b"]
    view.hear(Member(f"x{i}", 1, ALIVE) for i in range(5000))
    assert len(view.members) <= 1025


def test_news_fits_a_status_and_goes_on_where_it_stopped() -> None:
    view = Membership(Member("a", 1, ALIVE))
    view.hear(Member(f"x{i:04d}", 1, ALIVE) for i in range(600))
    told: set[str] = set()
    at = 0
    while True:
        members, at = view.news(at)
        if not members:
            break
        assert len(members) <= 256
        told |= {member.name for member in members}
    assert told == set(view.members)


def test_a_newcomer_is_not_told_of_whose_heart_stands_still() -> None:
    """It would take an agent for alive that died a while ago, and wait for its patience to run out."""
    world = ring_of(4, seconds=10)
    world.crash(NAMES[1])
    for _ in range(5):
        world.second()
    witness = world.views[NAMES[0]]
    assert NAMES[1] in {member.name for member in witness.here}, "its patience has not run out"
    newcomer = Membership(Member(NAMES[6], 1, ALIVE, "there"))
    newcomer.hear(witness.news(0)[0])
    assert {member.name for member in newcomer.here} == {NAMES[0], NAMES[2], NAMES[3]}
    told = {member.name: member for member in witness.news(0, to=NAMES[1])[0]}
    assert told[NAMES[1]].heartbeat > 5, "save by the one who comes back, which goes on from there"

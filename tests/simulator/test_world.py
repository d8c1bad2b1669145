"""Shared out over processes, a simulation is the one of a single process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sample_tasks import normalised, quadratics, supervised
from threads import Thread, over_ranks

from p2pqg import algorithms, topology
from p2pqg.errors import ConfigError, StorageError, TrainingDiverged
from p2pqg.schedules import constant
from p2pqg.tasks.supervised import SupervisedTask
from p2pqg_simulator import Iterate, Simulation
from p2pqg_simulator.columns import blocks_of
from p2pqg_simulator.world import Group, Reach, World

GRAPHS = ("ring", "complete", "star", "one-peer-exponential", "isolated")


def simulation(tasks, graph="ring", algorithm="qg-dsgdm-n", lr=0.05, group=None, **options) -> Simulation:
    hyper = {key: options.pop(key) for key in ("tau", "local_steps", "weight_decay") if key in options}
    n = len(tasks)
    world = World(n, group)
    return Simulation(
        [tasks[i] for i in world.agents], topology.build(graph, n), algorithms.build(algorithm, **hyper),
        constant(lr), world=world, **options,
    )  # fmt: skip


def run(problem, rounds=9, group=None, **options) -> tuple[list[Iterate], Iterate]:
    """The iterates after each round and of agreeing, and the last one with the rows of all agents."""
    width = options.pop("width", 0)
    one = simulation(problem(), group=group, **options)
    if width:
        one.blocks = blocks_of(width, one.spec.d)
        assert len(one.blocks) > 2
    iterates = list(one.train(one.start(0), rounds, eval_every=4))
    iterates += one.agree(iterates[-1], tolerance=1e-3, max_rounds=20)
    return iterates, one.collected(iterates[-1])


def same(one: Iterate, other: Iterate, tolerance: float) -> None:
    torch.testing.assert_close(one.x, other.x, rtol=0, atol=tolerance)
    assert one.state.keys() == other.state.keys()
    for name, tensor in one.state.items():
        torch.testing.assert_close(other.state[name], tensor, rtol=0, atol=tolerance * 20)
    for mine, theirs in zip(one.buffers, other.buffers, strict=True):
        for name, buffer in mine.items():
            torch.testing.assert_close(theirs[name], buffer, rtol=0, atol=tolerance)


def numbers(iterate: Iterate) -> dict[str, float]:
    """All that is measured after a round."""
    measured = {"loss": iterate.loss, **(iterate.scores.numbers() if iterate.scores else {})}
    if iterate.agreement:
        measured["disagreement"] = iterate.agreement.disagreement
    return {key: value for key, value in measured.items() if value is not None}


def alike(problem, ranks: int, tolerance: float = 1e-12, **options) -> None:
    """One process and so many ranks see the same rounds, scores and models."""
    whole, last = run(problem, **options)
    results = over_ranks(ranks, lambda group: run(problem, group=group, **options))
    same(last, results[0][1], tolerance)
    for iterates, _ in results:
        assert len(iterates) == len(whole)
        for there, here in zip(iterates, whole, strict=True):
            assert torch.equal(there.sent, here.sent)
            assert numbers(there) == pytest.approx(numbers(here), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_every_graph(graph: str, ranks: int) -> None:
    alike(lambda: quadratics(7), ranks, graph=graph)


@pytest.mark.parametrize("algorithm", sorted(algorithms.ALGORITHMS))
def test_every_algorithm(algorithm: str) -> None:
    options = {"tau": 3} if "tau" in algorithms.hyper_parameters(algorithm) else {}
    if algorithms.build(algorithm).multi_step:
        options["local_steps"] = 2
    alike(lambda: supervised([9, 20, 15, 8, 12]), 2, algorithm=algorithm, weighting="samples", **options)


@pytest.mark.parametrize("algorithm", sorted(algorithms.ALGORITHMS))
def test_every_algorithm_in_blocks(algorithm: str) -> None:
    options = {"tau": 3} if "tau" in algorithms.hyper_parameters(algorithm) else {}
    alike(lambda: supervised([9, 20, 15, 8, 12]), 2, algorithm=algorithm, width=20, overwrite=True, **options)


@pytest.mark.parametrize("algorithm", ["qg-dadam", "mimelite", "dsgdm-n-gt"])
def test_blocks_send_what_whole_vectors_do(algorithm: str) -> None:
    def sent(group: Group, width: int) -> dict[str, int]:
        run(lambda: supervised([9, 20, 15, 8, 12]), algorithm=algorithm, group=group, width=width)
        return group.sent_bytes

    whole, blocks = (over_ranks(2, lambda group, width=width: sent(group, width)) for width in (0, 20))
    assert whole == blocks


def test_batched_gradients_and_running_statistics() -> None:
    alike(lambda: supervised([16] * 9), 2, engine="vmap")
    alike(lambda: supervised([10, 20, 15, 8], module=normalised), 3, graph="complete")


def test_a_sparse_graph_is_the_same_bit_for_bit() -> None:
    whole, last = run(lambda: quadratics(16), algorithm="dsgdm-n-gt")
    for ranks in (2, 5):
        results = over_ranks(
            ranks, lambda group: run(lambda: quadratics(16), algorithm="dsgdm-n-gt", group=group)
        )
        same(last, results[0][1], 0)
        assert results[0][0][-1].agreement == whole[-1].agreement


def test_secure_sums() -> None:
    alike(lambda: quadratics(7), 3, tolerance=0, secure_sums=True)


@given(n=st.integers(1, 12), data=st.data())
def test_rows_reach_those_who_mix_them(n: int, data: st.DataObject) -> None:
    names = ["ring", "complete", "star", "isolated"] + ["one-peer-exponential"] * (n > 1)
    graphs = topology.build(data.draw(st.sampled_from(names)), n).graphs
    ranks = data.draw(st.integers(1, n))
    v = torch.randn(n, 3, dtype=torch.float64)

    def program(group: Thread) -> None:
        world = World(n, group)
        own = v[world.agents.start : world.agents.stop]
        for graph in graphs:
            reach, before = Reach(world, graph), group.sent_bytes["gossip"]
            assert torch.equal(reach(own), v[list(reach.agents)])
            assert group.sent_bytes["gossip"] - before == reach.rows_sent * 3 * 8
            crossing = {
                (j, rank)
                for rank, share in enumerate(world.shares)
                for i in share
                for j in graph.incoming[i]
                if j in world.agents and j not in share
            }
            assert reach.rows_sent == len(crossing)
        assert torch.equal(world.gather(own), v)
        torch.testing.assert_close(world.mean(own), v.mean(0), rtol=0, atol=1e-15)
        dealt = world.deal(v if group.first else own)
        assert torch.equal(dealt, own)
        collected = world.collect(own)
        assert not group.first or torch.equal(collected, v)

    over_ranks(ranks, program)


def test_a_run_goes_on_over_any_number_of_ranks() -> None:
    def problem() -> list[SupervisedTask]:
        return supervised([10, 20, 15, 8, 12], module=normalised)

    whole, _ = run(problem, rounds=8)

    def second_half(group: Thread) -> Iterate:
        one = simulation(problem(), group=group)
        *_, last = one.train(one.dealt(whole[3] if group.first else None), 8)
        return one.collected(last)

    same(whole[7], over_ranks(2, second_half)[0], 1e-12)


def test_divergence_anywhere_is_the_same_error_everywhere() -> None:
    def program(group: Thread) -> str:
        tasks = supervised([8] * 6)
        for i in (2, 5):
            tasks[i].train[0].mul_(float("inf"))
        one = simulation(tasks, group=group, engine="loop")
        with pytest.raises(TrainingDiverged) as error:
            one.advance(one.start(0))
        return str(error.value)

    assert set(over_ranks(2, program)) == {"agent-002, agent-005: round 1: the loss is not finite"}


def test_an_error_on_one_rank_is_everybodys() -> None:
    def program(group: Thread) -> str:
        def fail() -> None:
            with group.together():
                if group.rank > 0:
                    raise StorageError(f"rank {group.rank}: disk full")

        with group.together():
            pass
        with pytest.raises(StorageError) as error:
            fail()
        return str(error.value)

    assert over_ranks(3, program) == ["rank 1: disk full"] * 3


def test_ranks_must_fit_the_agents_and_each_other() -> None:
    def different(group: Thread) -> None:
        tasks = [*quadratics(2), *quadratics(2, d=4)]
        with pytest.raises(ConfigError, match="same model on every rank"):
            simulation(tasks, group=group)

    over_ranks(2, different)

    def too_many(group: Thread) -> None:
        with pytest.raises(ConfigError, match="expected at most 2 processes, one for each agent, found 3"):
            World(2, group)

    over_ranks(3, too_many)


def test_each_held_out_set_judges_once() -> None:
    """Agents 0 and 3 hold out one set, 1 another, and 2 a copy of the first."""

    def problem() -> list[SupervisedTask]:
        tasks = supervised([8, 8, 8, 8])
        first = tasks[0].test
        tasks[1].test = tuple(part[:7] for part in supervised([8], seed=1)[0].test)
        tasks[2].test = tuple(part.clone() for part in first)
        return tasks

    def averaged(group: Group | None) -> float:
        one = simulation(problem(), group=group)
        start = one.start(0)
        moved = replace(start, x=start.x + torch.tensor(one.world.agents, dtype=torch.float64)[:, None] / 10)
        return one.scored(moved).scores.averaged.loss

    tasks, x = problem(), simulation(problem()).start(0).x[0] + 0.15
    first, second = tasks[0].evaluate(x, {}), tasks[1].evaluate(x, {})
    expected = (first.loss * 30 + second.loss * 7) / 37
    assert over_ranks(2, averaged) == pytest.approx([expected] * 2, rel=1e-12)

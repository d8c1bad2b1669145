"""A round in blocks of columns: the same numbers, and only a block of what its arithmetic makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from sample_tasks import dense, supervised
from torch import Tensor

from p2pqg import algorithms, topology
from p2pqg.algorithms import Algorithm, Program, Rate, State
from p2pqg.errors import TrainingDiverged
from p2pqg.schedules import Schedule
from p2pqg_simulator import Simulation
from p2pqg_simulator.batch import Batch
from p2pqg_simulator.columns import blocks_of
from p2pqg_simulator.engine import Iterate

WIDTH = 16
"""Of blocks; the sample task's model has 53 parameters."""


def simulation(
    algorithm: Algorithm, graph: str = "ring", n: int = 16, lr: float = 0.1, **options: bool
) -> Simulation:
    tasks = supervised([8 + i % 3 for i in range(n)], module=dense)
    rates = Schedule(lr, milestones=(2,))
    return Simulation(
        tasks, topology.build(graph, n), algorithm, rates, weighting="samples", engine="loop", **options
    )


def in_blocks(run: Simulation) -> Simulation:
    run.blocks = blocks_of(WIDTH, run.spec.d)
    assert len(run.blocks) == 4
    return run


def trained(run: Simulation, rounds: int = 4) -> Iterate:
    *_, last = run.train(run.start(0), rounds)
    return last


def same(a: Iterate, b: Iterate) -> bool:
    pairs = zip((a.x, *a.state.values()), (b.x, *b.state.values()), strict=True)
    return list(a.state) == list(b.state) and all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_blocks_change_no_bit(name: str) -> None:
    chosen = algorithms.build(name, weight_decay=1e-2)
    whole = trained(simulation(chosen))
    for overwrite in (False, True):
        parts = trained(in_blocks(simulation(chosen, overwrite=overwrite)))
        assert same(whole, parts)
        assert torch.equal(whole.sent, parts.sent)
        assert torch.equal(whole.losses, parts.losses)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qg-dsgdm-n", {"tau": 3}),
        ("qg-dsgdm-n", {"tau": 2, "form": "printed"}),
        ("qg-dadam", {"form": "printed"}),
        ("qg-dadam", {"form": "v2"}),
        ("slowmo", {"tau": 2, "form": "printed"}),
        ("dsgdm-n-buffer-ring", {"step_with": "own"}),
    ],
)
def test_nor_do_they_in_other_forms(name: str, options: dict[str, object]) -> None:
    chosen = algorithms.build(name, **options)
    assert same(trained(simulation(chosen)), trained(in_blocks(simulation(chosen, overwrite=True))))


def test_a_dense_graph_is_mixed_up_to_rounding() -> None:
    chosen = algorithms.build("qg-dsgdm-n")
    whole, parts = (
        trained(run) for run in (simulation(chosen, "complete"), in_blocks(simulation(chosen, "complete")))
    )
    torch.testing.assert_close(whole.x, parts.x, rtol=1e-12, atol=1e-14)


def test_a_round_in_blocks_leaves_its_start_as_it_was() -> None:
    run = in_blocks(simulation(algorithms.build("dsgdm-n-gt")))
    before = trained(run, 2)
    kept = replace(before, x=before.x.clone(), state={k: v.clone() for k, v in before.state.items()})
    run.advance(before)
    assert same(before, kept)
    assert same(run.advance(before), run.advance(kept))


def test_a_state_is_written_over_where_that_is_asked_for() -> None:
    run = in_blocks(simulation(algorithms.build("dsgdm-n-gt"), overwrite=True))
    before = trained(run, 2)
    x, memory = before.x.clone(), {name: v.data_ptr() for name, v in before.state.items()}
    after = run.advance(before)
    assert {name: v.data_ptr() for name, v in after.state.items()} == memory
    assert torch.equal(before.x, x)
    assert (run.spent(before), run.spent(after)) == (True, False)
    with pytest.raises(ValueError, match="the state after round 2 was overwritten"):
        run.advance(before)


@dataclass(frozen=True, kw_only=True)
class Shifting(Algorithm):
    """Its state is handed on under other names."""

    source = "this test"

    def init(self, x: Tensor) -> State:
        return {name: torch.full_like(x, k) for k, name in enumerate("abc")}

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        g = yield from self.gradient(x, 0)
        return state["c"], {"a": x - lrs[0] * g, "b": state["a"], "c": state["b"]}


def test_a_state_that_changes_places_is_not_lost() -> None:
    runs = simulation(Shifting()), in_blocks(simulation(Shifting(), overwrite=True))
    assert same(*map(trained, runs))


def test_exchanges_that_count_happen_once() -> None:
    """QG-DAdam's round is computed twice, up to a norm and from the beginning."""
    chosen = algorithms.build("qg-dadam")
    runs = [simulation(chosen, secure_sums=True), in_blocks(simulation(chosen, secure_sums=True))]
    for run in runs:
        start = run.start(0)
        run.advance(replace(start, x=start.x + 1e9))  # too large for a sum
    assert runs[0].saturated() == runs[1].saturated()
    assert runs[0].saturated()["saturated"] > 0


def test_runs_of_other_rates_advance_together_in_blocks() -> None:
    chosen = algorithms.build("qg-dadam")
    runs = [simulation(chosen, lr=lr) for lr in (0.1, 0.2)]
    assert same(trained(Batch(runs, [0, 0], "loop")), trained(in_blocks(Batch(runs, [0, 0], "loop"))))


@pytest.mark.parametrize("name", ["dsgd", "sgd", "dsgdm"])
def test_all_agents_that_diverge_are_named(name: str) -> None:
    def fault(run: Simulation) -> TrainingDiverged:
        start = run.start(0)
        with pytest.raises(TrainingDiverged) as caught:
            run.advance(replace(start, x=broken(start.x)))
        assert run.spent(start) == (run.overwrite and name == "dsgdm")
        return caught.value

    def broken(x: Tensor) -> Tensor:
        return x.index_put((torch.tensor([2, 5]), torch.tensor([20, 3])), x.new_tensor(1e308))

    chosen = algorithms.build(name, weight_decay=1e3)
    whole, parts = fault(simulation(chosen)), fault(in_blocks(simulation(chosen, overwrite=True)))
    assert (str(whole), whole.agents) == (str(parts), parts.agents)
    assert {2, 5} <= set(whole.agents)

"""A round in blocks of columns: the same numbers, and only a block of what its arithmetic makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sample_tasks import dense, supervised
from torch import Tensor

from p2pqg import algorithms, topology
from p2pqg.algorithms import Algorithm
from p2pqg.errors import TrainingDiverged
from p2pqg.schedules import Schedule
from p2pqg_simulator import Simulation
from p2pqg_simulator.batch import Batch
from p2pqg_simulator.columns import blocks_of
from p2pqg_simulator.engine import Iterate

WIDTH = 16
"""Of blocks; the sample task's model has 53 parameters."""


def simulation(algorithm: Algorithm, graph: str = "ring", n: int = 16, lr: float = 0.1) -> Simulation:
    tasks = supervised([8 + i % 3 for i in range(n)], module=dense)
    rates = Schedule(lr, milestones=(2,))
    return Simulation(tasks, topology.build(graph, n), algorithm, rates, weighting="samples", engine="loop")


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
    whole, parts = trained(simulation(chosen)), trained(in_blocks(simulation(chosen)))
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
    assert same(trained(simulation(chosen)), trained(in_blocks(simulation(chosen))))


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


def test_runs_of_other_rates_advance_together_in_blocks() -> None:
    chosen = algorithms.build("qg-dadam")
    runs = [simulation(chosen, lr=lr) for lr in (0.1, 0.2)]
    assert same(trained(Batch(runs, [0, 0], "loop")), trained(in_blocks(Batch(runs, [0, 0], "loop"))))


@pytest.mark.parametrize("name", ["dsgd", "sgd"])
def test_all_agents_that_diverge_are_named(name: str) -> None:
    def fault(run: Simulation) -> TrainingDiverged:
        start = run.start(0)
        with pytest.raises(TrainingDiverged) as caught:
            run.advance(replace(start, x=broken(start.x)))
        return caught.value

    def broken(x: Tensor) -> Tensor:
        return x.index_put((torch.tensor([2, 5]), torch.tensor([50, 3])), x.new_tensor(1e308))

    chosen = algorithms.build(name, weight_decay=1e3)
    whole, parts = fault(simulation(chosen)), fault(in_blocks(simulation(chosen)))
    assert (str(whole), whole.agents) == (str(parts), parts.agents)

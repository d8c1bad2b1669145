"""Local models, the averaged model, and the distance between them."""

from __future__ import annotations

import math

import pytest
import torch
from sample_tasks import normalised, quadratics, supervised

from p2pqg.tasks.base import Evaluation
from p2pqg_simulator import Scores, consensus_distance
from p2pqg_simulator.evaluation import average_buffers, evaluate


def test_consensus_distance_is_the_root_mean_square_to_the_mean() -> None:
    assert consensus_distance(torch.tensor([[3.0, 4.0], [-3.0, -4.0]])) == pytest.approx(5.0)
    assert consensus_distance(torch.ones(4, 9)) == 0
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_hand = math.sqrt(sum(sum((a - m) ** 2 for a, m in zip(row, x.mean(0).tolist(), strict=True))
                            for row in x.tolist()) / 5)  # fmt: skip
    assert consensus_distance(x) == pytest.approx(by_hand, rel=1e-12)


def test_every_model_is_judged_by_its_own_parameters_and_buffers() -> None:
    tasks = supervised([9, 14, 11], module=normalised)
    x = torch.randn(3, tasks[0].spec.d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    buffers = [task.gradient(x[i], task.buffers(), 0).buffers for i, task in enumerate(tasks)]
    scores = evaluate(tasks, x, buffers)
    assert scores.local == tuple(task.evaluate(x[i], buffers[i]) for i, task in enumerate(tasks))
    mean_buffers = {
        "1.running_mean": sum(own["1.running_mean"] for own in buffers) / 3,
        "1.running_var": sum(own["1.running_var"] for own in buffers) / 3,
        "1.num_batches_tracked": buffers[0]["1.num_batches_tracked"],
    }
    expected = tasks[0].evaluate(x.mean(0), mean_buffers)
    assert scores.averaged.samples == 30
    assert scores.averaged.accuracy == expected.accuracy
    assert scores.averaged.loss == pytest.approx(expected.loss, rel=1e-12)


def test_whole_number_buffers_stay_whole() -> None:
    averaged = average_buffers([{"steps": torch.tensor(3)}, {"steps": torch.tensor(6)}])
    assert averaged["steps"].dtype == torch.int64
    assert averaged["steps"] in (4, 5)


def test_different_held_out_sets_are_pooled_by_size() -> None:
    tasks = supervised([8, 8])
    tasks[1].test = (tasks[1].test[0][:10].clone(), tasks[1].test[1][:10].clone())
    x = tasks[0].init(0).expand(2, -1).contiguous()
    scores = evaluate(tasks, x, [{}, {}])
    first, second = scores.local
    assert scores.averaged.samples == 40
    assert scores.averaged.loss == pytest.approx((30 * first.loss + 10 * second.loss) / 40, rel=1e-12)


def test_accuracies_are_summed_up_and_may_be_missing() -> None:
    scores = Scores((Evaluation(1.0, 0.5, 4), Evaluation(3.0, 0.9, 4)), Evaluation(2.0, 0.8, 4), 0.1)
    assert scores.mean_accuracy == pytest.approx(0.7)
    assert scores.worst_accuracy == 0.5
    assert scores.numbers()["worst_loss"] == 3.0
    quadratic = quadratics(2)
    unclassified = evaluate(quadratic, torch.zeros(2, 10, dtype=torch.float64), [{}, {}])
    assert unclassified.mean_accuracy is unclassified.worst_accuracy is unclassified.averaged.accuracy is None

"""How good the agents' models are, one by one and averaged, and how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pqg.tasks.base import Buffers, Evaluation, Task
from p2pqg.tasks.supervised import SupervisedTask


@dataclass(frozen=True)
class Scores:
    """Evaluations of every agent's own model and of the averaged model (parameters and buffers), and the
    consensus distance sqrt(mean_i ||x_i - x̄||²)."""

    local: tuple[Evaluation, ...]
    averaged: Evaluation
    consensus: float

    @property
    def mean_accuracy(self) -> float | None:
        """Mean over agents of the local models' accuracies: the paper's metric."""
        accuracies = [e.accuracy for e in self.local if e.accuracy is not None]
        return sum(accuracies) / len(accuracies) if accuracies else None

    @property
    def worst_accuracy(self) -> float | None:
        """Accuracy of the worst local model."""
        return min((e.accuracy for e in self.local if e.accuracy is not None), default=None)

    def numbers(self) -> dict[str, float | None]:
        """Flat, as in ``metrics.jsonl``."""
        losses = [evaluation.loss for evaluation in self.local]
        return {
            "mean_accuracy": self.mean_accuracy,
            "worst_accuracy": self.worst_accuracy,
            "averaged_accuracy": self.averaged.accuracy,
            "mean_loss": sum(losses) / len(losses),
            "worst_loss": max(losses),
            "averaged_loss": self.averaged.loss,
            "consensus": self.consensus,
        }


def evaluate(tasks: Sequence[Task], x: Tensor, buffers: Sequence[Buffers]) -> Scores:
    """Score `x: [n, d]`. Where agents hold out different data, the averaged model's score is the mean over
    all held-out sets, by their sizes."""
    local = tuple(task.evaluate(x[i], buffers[i]) for i, task in enumerate(tasks))
    mean, mean_buffers = x.mean(0), average_buffers(buffers)
    averaged = _pooled([task.evaluate(mean, mean_buffers) for task in _judges(tasks)])
    return Scores(local, averaged, consensus_distance(x))


def consensus_distance(x: Tensor) -> float:
    """sqrt(mean_i ||x_i - x̄||²) for `x: [n, d]`."""
    return float((x - x.mean(0)).norm() / len(x) ** 0.5)


def average_buffers(buffers: Sequence[Buffers]) -> Buffers:
    """Mean over agents of each buffer, whole numbers rounded."""
    means = {}
    for name, buffer in buffers[0].items():
        stacked = torch.stack([own[name] for own in buffers])
        mean = stacked.double().mean(0)
        means[name] = (mean if buffer.is_floating_point() else mean.round()).to(buffer.dtype)
    return means


def _judges(tasks: Sequence[Task]) -> list[Task]:
    """One task for each different held-out set."""
    by_data: dict[object, Task] = {}
    for task in tasks:
        shared = (
            (task.test[0].data_ptr(), len(task.test[0])) if isinstance(task, SupervisedTask) else id(task)
        )
        by_data.setdefault(shared, task)
    return list(by_data.values())


def _pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    samples = sum(e.samples for e in evaluations)
    loss = sum(e.loss * e.samples for e in evaluations) / samples
    accuracies = [e.accuracy * e.samples for e in evaluations if e.accuracy is not None]
    classified = len(accuracies) == len(evaluations)
    return Evaluation(loss, sum(accuracies) / samples if classified else None, samples)

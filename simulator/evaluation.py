"""How good the agents' models are, one by one and averaged, and how far they are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from p2pqg.tasks.base import Buffers, Evaluation, Task
from p2pqg.tasks.supervised import SupervisedTask

from .private import without_privacy
from .world import World


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


def evaluate(
    tasks: Sequence[Task],
    x: Tensor,
    buffers: Sequence[Buffers],
    world: World | None = None,
    judging: Sequence[int] | None = None,
) -> Scores:
    """Score `x: [n, d]`. Where agents hold out different data, the averaged model's score is the mean over
    all held-out sets, by their sizes. In a world of several processes tasks, x and buffers are those of the
    agents held here, `judging` is what `judges` returned, and every process gets the scores of all agents."""
    world = World(len(tasks)) if world is None else world
    judging = judges(tasks, world) if judging is None else judging
    local = _gathered([task.evaluate(x[i], buffers[i]) for i, task in enumerate(tasks)], world)
    mean, mean_buffers = world.mean(x), average_buffers(buffers, world)
    verdicts = {i: tasks[i].evaluate(mean, mean_buffers) for i in judging}
    nothing = Evaluation(0.0, None, 0)
    pooled = [e for e in _gathered([verdicts.get(i, nothing) for i in range(len(tasks))], world) if e.samples]
    return Scores(local, _pooled(pooled), _distance(x, mean, world))


def consensus_distance(x: Tensor) -> float:
    """sqrt(mean_i ||x_i - x̄||²) for `x: [n, d]`."""
    return _distance(x, x.mean(0), World(len(x)))


def _distance(x: Tensor, mean: Tensor, world: World) -> float:
    apart = torch.stack([(own - mean).norm() for own in x])  # one by one: x may fill the memory
    return float(world.gather(apart).norm() / world.n**0.5)


def average_buffers(buffers: Sequence[Buffers], world: World | None = None) -> Buffers:
    """Mean over agents of each buffer, whole numbers rounded."""
    world = World(len(buffers)) if world is None else world
    means = {}
    for name, buffer in buffers[0].items():
        mean = world.mean(torch.stack([own[name] for own in buffers]).double())
        means[name] = (mean if buffer.is_floating_point() else mean.round()).to(buffer.dtype)
    return means


def judges(tasks: Sequence[Task], world: World) -> list[int]:
    """Which of the tasks held here score the averaged model: the first agent, wherever it is, with each
    different held-out set. Tasks other than `SupervisedTask` each have their own."""
    firsts: dict[object, int] = {}
    holders = []
    for i, task in enumerate(map(without_privacy, tasks)):
        data = (task.test[0].data_ptr(), len(task.test[0])) if isinstance(task, SupervisedTask) else id(task)
        holders.append(firsts.setdefault(data, i))
    if world.group.size == 1:
        return list(firsts.values())
    # Addresses mean nothing to another process: there a set is known by its content.
    keys = {i: _fingerprint(without_privacy(tasks[i]), world.agents[i]) for i in firsts.values()}
    everywhere = world.gather(torch.tensor([keys[i] for i in holders])).tolist()
    return [i for i in keys if everywhere.index(keys[i]) == world.agents[i]]


def _fingerprint(task: Task, agent: int) -> int:
    """63 bits of the held-out set's content; of a task that does not show it, a number of its own."""
    if not isinstance(task, SupervisedTask):
        return -1 - agent
    digest = xxhash.xxh3_64()
    for part in task.test:
        digest.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return int(digest.intdigest() >> 1)


def _gathered(evaluations: Sequence[Evaluation], world: World) -> tuple[Evaluation, ...]:
    """Those of all agents, from those of the agents held here."""
    if world.group.size == 1:
        return tuple(evaluations)
    rows = [[e.loss, math.nan if e.accuracy is None else e.accuracy, e.samples] for e in evaluations]
    table = world.gather(torch.tensor(rows, dtype=torch.float64)).tolist()
    return tuple(
        Evaluation(loss, None if math.isnan(accuracy) else accuracy, int(samples))
        for loss, accuracy, samples in table
    )


def _pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    samples = sum(e.samples for e in evaluations)
    loss = sum(e.loss * e.samples for e in evaluations) / samples
    accuracies = [e.accuracy * e.samples for e in evaluations if e.accuracy is not None]
    classified = len(accuracies) == len(evaluations)
    return Evaluation(loss, sum(accuracies) / samples if classified else None, samples)

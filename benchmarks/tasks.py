"""Tasks for the benchmarks: a dense model of any size, and one that costs nothing to train."""

from __future__ import annotations

import torch
from torch import nn

from p2pqg import seeds
from p2pqg.flat import Spec
from p2pqg.tasks import Buffers, Evaluation, LocalGradient, SupervisedTask, TaskContext


def make_dense(context: TaskContext) -> SupervisedTask:
    """A multi-layer perceptron of about `millions` million parameters on random data."""
    width = int((context.settings(millions=10.0)["millions"] * 1e6 / 2) ** 0.5)
    random = seeds.generator(context.seed, "data", context.agent)
    inputs, targets = torch.randn(512, width, generator=random), torch.arange(512) % 10
    return SupervisedTask(
        lambda: nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        ),
        train=(inputs, targets),
        test=(inputs[:32], targets[:32]),
        agent=context.agent,
        seed=context.seed,
        batch_size=context.batch_size,
    )


class Still:
    """`d` parameters whose gradient is 0: what is left of a round is gossip."""

    samples = total_samples = steps_per_epoch = 1

    def __init__(self, context: TaskContext) -> None:
        d = context.settings(d=2_500_000)["d"]
        self.spec = Spec(("x",), ((d,),), context.dtype)
        self.g = torch.zeros(d, dtype=context.dtype)
        self.context = context

    def init(self, seed: int) -> torch.Tensor:
        random = seeds.generator(seed, "init", self.context.agent)
        return torch.randn(self.spec.d, dtype=self.spec.dtype, generator=random)

    def buffers(self) -> Buffers:
        return {}

    def gradient(self, x: torch.Tensor, buffers: Buffers, step: int) -> LocalGradient:
        return LocalGradient(self.g, torch.zeros(()), buffers)

    def evaluate(self, x: torch.Tensor, buffers: Buffers) -> Evaluation:
        return Evaluation(0.0, None, 1)


def make_still(context: TaskContext) -> Still:
    """See `Still`."""
    return Still(context)


class Pull(Still):
    """Every agent is pulled its own way, for ever, and all pulls together are 0: models stay apart, and their
    mean stays where it is."""

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        pulls = torch.stack([self._pull(agent) for agent in context.agents])
        self.g = pulls[context.index] - pulls.mean(0)

    def init(self, seed: int) -> torch.Tensor:
        return torch.zeros_like(self.g)

    def _pull(self, agent: str) -> torch.Tensor:
        random = seeds.generator(self.context.seed, "pull", agent)
        return torch.randn(self.spec.d, dtype=self.spec.dtype, generator=random)


def make_pull(context: TaskContext) -> Pull:
    """See `Pull`."""
    return Pull(context)

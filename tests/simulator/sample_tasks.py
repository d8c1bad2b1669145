"""Tasks with synthetic data for the simulator's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from p2pqg.config import agent_names
from p2pqg.tasks.base import TaskContext
from p2pqg.tasks.quadratic import QuadraticTask
from p2pqg.tasks.quadratic import make_task as make_quadratic
from p2pqg.tasks.supervised import SupervisedTask

FEATURES, CLASSES = 6, 3


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)).double()


def supervised(
    sizes: Sequence[int], module: Callable[[], nn.Module] = dense, batch_size: int = 8, seed: int = 0
) -> list[SupervisedTask]:
    """One task an agent with `sizes[i]` random samples, the same held-out set for all."""
    random = torch.Generator().manual_seed(seed)

    def data(size: int) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(size, FEATURES, generator=random, dtype=torch.float64)
        return inputs, torch.randint(0, CLASSES, (size,), generator=random)

    test = data(30)
    return [
        SupervisedTask(module, data(size), test, agent=name, seed=seed, batch_size=batch_size)
        for name, size in zip(agent_names(len(sizes)), sizes, strict=True)
    ]


def quadratics(n: int, **options: float) -> list[QuadraticTask]:
    """One quadratic an agent, in float64."""
    names = agent_names(n)
    return [
        make_quadratic(TaskContext(agent=name, agents=names, seed=0, dtype=torch.float64, options=options))
        for name in names
    ]

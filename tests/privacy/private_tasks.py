"""Small problems for the tests of privacy, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from p2pqg.privacy import Mechanism, PrivateTask, Secret
from p2pqg.privacy.task import Account, Allowance
from p2pqg.tasks.models.normalisation import EvoNormS0
from p2pqg.tasks.models.resnet import resnet20
from p2pqg.tasks.supervised import SupervisedTask

SECRET = Secret(bytes(range(32)))


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).double()


def evolved() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), EvoNormS0(4), nn.Flatten(), nn.Linear(16, 3)).double()


def residual() -> nn.Module:
    return resnet20(3, width=0.25, norm="gn").double()


class Branching(nn.Module):
    """A layer that looks at values, which `torch.func.vmap` cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x.detach().sum()) == float("inf"):
            raise AssertionError
        y: torch.Tensor = self.linear(x.flatten(1))
        return y


def branching() -> nn.Module:
    return Branching().double()


def task(
    module: Callable[[], nn.Module] = dense, samples: int = 12, batch_size: int = 4, agent: str = "agent-000"
) -> SupervisedTask:
    """Random images 3x4x4 of three classes."""
    chance = torch.Generator().manual_seed(samples)

    def data(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.randn(size, 3, 4, 4, generator=chance, dtype=torch.float64)
        return images, torch.randint(3, (size,), generator=chance)

    return SupervisedTask(module, data(samples), data(6), agent=agent, seed=0, batch_size=batch_size)


def mechanism(**changes: object) -> Mechanism:
    table = {
        "max_grad_norm": 1.0,
        "noise_multiplier": 1.0,
        "sample_rate": 1 / 3,
        "delta": 1e-5,
        "planned": 10,
        "accountant": "rdp",
    }
    return Mechanism(**(table | changes))  # type: ignore[arg-type]


def private(
    own: SupervisedTask, secret: Secret = SECRET, account: Account | None = None, **changes: object
) -> PrivateTask:
    rate = min(1.0, own.batch_size / own.samples)
    return PrivateTask(
        own, mechanism(**{"sample_rate": rate, **changes}), secret, account or Allowance(1 << 62)
    )

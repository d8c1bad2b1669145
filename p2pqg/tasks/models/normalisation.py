"""Normalisation layers of the paper's residual networks.

A residual network normalises in two kinds of places: where an activation follows (the stem, the first
convolution of a block) and where none does (the second convolution, the shortcut). A `Norm` says what
stands in each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from p2pqg.errors import ConfigError

MOST_GROUPS = 32
EPS = 1e-5


class Affine(nn.Module):
    """y = weight * x + bias, per channel of `x: [b, C, h, w]`; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class EvoNormS0(Affine):
    """Normalisation and activation in one, without statistics over the mini-batch (Liu et al. 2020):

        y = weight * x * sigmoid(x) / sqrt(var(x) + 1e-5) + bias

    for `x: [b, C, h, w]`, with the variance over the pixels of one sample and one of min(32, C) groups of
    channels. As in the code behind the paper, the variance is the unbiased one and there is no learned
    factor inside the sigmoid (paper-protocol, section 4).

    Raises `ConfigError` if the groups do not divide the channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.groups = min(MOST_GROUPS, channels)
        if channels % self.groups:
            raise ConfigError(
                f"EvoNorm expects fewer than {MOST_GROUPS} channels or a multiple of it, found {channels}",
                key="task.options.width",
            )

    def forward(self, x: Tensor) -> Tensor:
        # Plain reductions over pixels: with torch's `var` over pixels and channels at once, a step of
        # ResNet-20 takes a tenth longer on activations in channels-last order.
        size = x[0].numel() // self.groups
        deviation = x - self._over_groups(x.mean(dim=(2, 3)))[..., None, None]
        variance = self._over_groups(deviation.square().mean(dim=(2, 3))) * (size / (size - 1))
        scale = (variance + EPS).rsqrt() * self.weight  # [b, C]
        y: Tensor = nn.functional.silu(x) * scale[..., None, None] + self.bias[:, None, None]
        return y

    def _over_groups(self, v: Tensor) -> Tensor:
        """For each channel the mean of `v: [b, C]` over the channels of its group."""
        if self.groups == v.shape[1]:
            return v
        groups = v.view(len(v), self.groups, -1)
        return groups.mean(2, keepdim=True).expand_as(groups).reshape(v.shape)


class Norm(NamedTuple):
    """Layers for a number of channels: `active` normalises and activates, `plain` only normalises."""

    active: Callable[[int], nn.Module]
    plain: Callable[[int], nn.Module]


def _then_relu(plain: Callable[[int], nn.Module]) -> Norm:
    return Norm(active=lambda channels: nn.Sequential(plain(channels), nn.ReLU()), plain=plain)


NORMS: dict[str, Norm] = {
    "bn": _then_relu(nn.BatchNorm2d),
    "gn": _then_relu(partial(nn.GroupNorm, 2)),
    "evonorm": Norm(active=EvoNormS0, plain=partial(nn.BatchNorm2d, track_running_stats=False)),
    "evonorm-s0": Norm(active=EvoNormS0, plain=Affine),
}
"""By name. "evonorm" is what the paper trained: S0 where an activation follows, elsewhere BatchNorm that
always, also when a model is scored, uses the statistics of the mini-batch at hand, so a sample's scores
depend on its companions. "evonorm-s0" is free of that: where no activation follows it only scales and
shifts, as S0's authors do. "gn" has 2 groups."""

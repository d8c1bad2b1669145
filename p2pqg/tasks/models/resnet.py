"""Residual networks for small and large images (He et al. 2016), as the paper uses them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from p2pqg.errors import ConfigError
from p2pqg.tasks.models.normalisation import NORMS, Norm


class BasicBlock(nn.Module):
    """relu(norm(conv(active(conv(x)))) + shortcut(x)); the shortcut is a 1x1 convolution and a norm where
    the shape changes, else the identity."""

    def __init__(self, inward: int, outward: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inward, outward, stride)
        self.norm1 = norm.active(outward)
        self.conv2 = _conv3x3(outward, outward)
        self.norm2 = norm.plain(outward)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inward == outward
            else nn.Sequential(nn.Conv2d(inward, outward, 1, stride, bias=False), norm.plain(outward))
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return nn.functional.relu(inner + self.shortcut(x))


class ResNet(nn.Module):
    """`stem`, stages of basic blocks (all but the first halve the resolution), mean over pixels, linear.

    `channels` are those of each stage, the stem handing over the first of them. Convolutions start from
    N(0, 2 / (k² out_channels)), the linear layer from torch's default.
    """

    def __init__(
        self, stem: nn.Module, channels: Sequence[int], blocks: int, classes: int, norm: Norm
    ) -> None:
        super().__init__()
        self.stem = stem
        layers: list[nn.Module] = []
        inward = channels[0]
        for stage, outward in enumerate(channels):
            for block in range(blocks):
                layers.append(BasicBlock(inward, outward, 2 if stage and not block else 1, norm))
                inward = outward
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inward, classes)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def resnet20(classes: int, in_channels: int = 3, width: float = 1.0, norm: str = "evonorm") -> ResNet:
    """For 32x32 images: 3x3 stem, three stages of three blocks with 16, 32 and 64 channels times `width`.

    272,474 parameters for 10 classes, with any norm of `NORMS`.
    """
    layers = named_norm(norm)
    channels = [scaled(c, width) for c in (16, 32, 64)]
    stem = nn.Sequential(_conv3x3(in_channels, channels[0]), layers.active(channels[0]))
    return ResNet(stem, channels, blocks=3, classes=classes, norm=layers)


def resnet18(classes: int, in_channels: int = 3, width: float = 1.0, norm: str = "evonorm") -> ResNet:
    """For 224x224 images: 7x7 stem of stride 2 and max-pooling, four stages of two blocks with 64 to 512
    channels times `width`. 11,689,512 parameters for 1,000 classes."""
    layers = named_norm(norm)
    channels = [scaled(c, width) for c in (64, 128, 256, 512)]
    stem = nn.Sequential(
        nn.Conv2d(in_channels, channels[0], 7, stride=2, padding=3, bias=False),
        layers.active(channels[0]),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    return ResNet(stem, channels, blocks=2, classes=classes, norm=layers)


def named_norm(name: str) -> Norm:
    """The entry of `NORMS`. Raises `ConfigError` for another name."""
    if name not in NORMS:
        raise ConfigError(f"expected one of {', '.join(NORMS)}, found {name!r}", key="task.options.norm")
    return NORMS[name]


def scaled(channels: int, width: float) -> int:
    """`channels * width`. Raises `ConfigError` unless that is a whole number of at least 2."""
    product = channels * width
    if not (math.isfinite(product) and product >= 2 and product == round(product)):
        raise ConfigError(
            f"expected a factor that leaves {channels} channels whole and at least 2, found {width}",
            key="task.options.width",
        )
    return round(product)


def initialise_convolutions(module: nn.Module) -> None:
    """Weights of every convolution from N(0, 2 / (k² out_channels)); biases stay as they are."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def _conv3x3(inward: int, outward: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inward, outward, 3, stride, padding=1, bias=False)

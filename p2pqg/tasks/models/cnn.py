"""A convolutional network small enough to train many agents of it on one core."""

from __future__ import annotations

from torch import nn

from p2pqg.tasks.models.resnet import initialise_convolutions, scaled

CHANNELS = (16, 32, 64)


def cnn(classes: int, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """Three 3x3 convolutions of stride 2 with bias and ReLU (16, 32 and 64 channels times `width`), the mean
    over pixels, one linear layer; no normalisation. 24,234 parameters for 10 classes.

    Convolution weights start from N(0, 2 / (k² out_channels)), everything else from torch's default.
    """
    layers: list[nn.Module] = []
    inward = in_channels
    for channels in CHANNELS:
        outward = scaled(channels, width)
        layers += [nn.Conv2d(inward, outward, 3, stride=2, padding=1), nn.ReLU()]
        inward = outward
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inward, classes))
    initialise_convolutions(module)
    return module

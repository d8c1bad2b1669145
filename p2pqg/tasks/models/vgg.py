"""VGG-11 for small images (Simonyan and Zisserman 2015), without normalisation, without dropout."""

from __future__ import annotations

from torch import nn

from p2pqg.tasks.models.resnet import initialise_convolutions, scaled

LAYERS = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)
"""Channels of 3x3 convolutions; None stands for 2x2 max-pooling."""


def vgg11(classes: int, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """For 32x32 images: eight convolutions with bias and ReLU, five poolings, one linear layer.

    The paper's has `width` 0.5: 2,308,810 parameters for 10 classes. Convolution weights start from
    N(0, 2 / (k² out_channels)), everything else from torch's default.
    """
    layers: list[nn.Module] = []
    inward = in_channels
    for channels in LAYERS:
        if channels is None:
            layers.append(nn.MaxPool2d(2))
        else:
            outward = scaled(channels, width)
            layers += [nn.Conv2d(inward, outward, 3, padding=1), nn.ReLU()]
            inward = outward
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inward, classes))
    initialise_convolutions(module)
    return module

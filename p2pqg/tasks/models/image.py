"""Image classifiers by name, as a configuration asks for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from p2pqg.errors import ConfigError
from p2pqg.tasks.models.cnn import CHANNELS, cnn
from p2pqg.tasks.models.resnet import named_norm, resnet18, resnet20, scaled
from p2pqg.tasks.models.vgg import vgg11

IMAGE_MODELS = ("resnet20", "resnet18", "vgg11", "cnn")
WITHOUT_NORM = ("vgg11", "cnn")
SMALLEST_VGG_IMAGE = 32


def image_model(
    name: str, norm: str, width: float, classes: int, shape: tuple[int, int, int]
) -> Callable[[], nn.Module]:
    """A function that builds the model for images `[channels, height, width]`.

    `norm` is a name of `NORMS`, or "auto": the paper's hybrid EvoNorm in a residual network, none in
    VGG-11 and the small `cnn`, which take no other. Raises `ConfigError` for a name, norm or width that
    does not fit.
    """
    if name not in IMAGE_MODELS:
        raise ConfigError(
            f"expected one of {', '.join(IMAGE_MODELS)}, found {name!r}", key="task.options.model"
        )
    if name in WITHOUT_NORM and norm not in ("auto", "none"):
        raise ConfigError(f"{name} expects none, found {norm!r}", key="task.options.norm")
    if name == "cnn":
        scaled(CHANNELS[0], width)
        return partial(cnn, classes, shape[0], width)
    if name == "vgg11":
        if min(shape[1:]) < SMALLEST_VGG_IMAGE:
            raise ConfigError(
                f"vgg11 expects images of 32x32 pixels or more, found {shape[1]}x{shape[2]}",
                key="task.options.model",
            )
        scaled(64, width)
        return partial(vgg11, classes, shape[0], width)
    norm = resolved_norm(name, norm)
    named_norm(norm)
    build = resnet20 if name == "resnet20" else resnet18
    return partial(build, classes, shape[0], width, norm)


def resolved_norm(name: str, norm: str) -> str:
    """What "auto" stands for in a model."""
    if norm != "auto":
        return norm
    return "none" if name in WITHOUT_NORM else "evonorm"

"""The paper's networks, by name."""

from p2pqg.tasks.models.image import IMAGE_MODELS, image_model
from p2pqg.tasks.models.normalisation import NORMS, Affine, EvoNormS0
from p2pqg.tasks.models.resnet import ResNet, resnet18, resnet20
from p2pqg.tasks.models.vgg import vgg11

__all__ = [
    "IMAGE_MODELS",
    "NORMS",
    "Affine",
    "EvoNormS0",
    "ResNet",
    "image_model",
    "resnet18",
    "resnet20",
    "vgg11",
]

"""The paper's image classification problems, and one of chest X-rays, by name.

Where each data set must lie, and in which format, is told in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from p2pqg.errors import ConfigError
from p2pqg.tasks.augmentation import Augmentation, ImageTransform
from p2pqg.tasks.base import TaskContext
from p2pqg.tasks.common_data import SUBSETS, CommonData, own_share
from p2pqg.tasks.extras import optional
from p2pqg.tasks.image_files import (
    Shape,
    is_class_folders,
    read_class_folders,
    read_imagenet32,
    read_npz,
    read_torchvision_cifar,
)
from p2pqg.tasks.image_folder import SIDE, PictureFolder, PictureTransform, list_pictures
from p2pqg.tasks.models.image import image_model, resolved_norm
from p2pqg.tasks.supervised import SupervisedTask, Transform

RELEASED_TEST_BATCH = 32
TEST_BATCH = 500


@dataclass(frozen=True)
class DataSet:
    """What a data set's samples are, and how the paper prepares them (paper-protocol, section 3.3)."""

    name: str
    classes: int
    shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    expected: str


CIFAR10 = DataSet(
    "cifar10", 10, (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "flip-crop",
    "a folder with cifar-10-batches-py, a folder or .tar.gz with train/CLASS and test/CLASS, or an .npz",
)  # fmt: skip
CIFAR100 = DataSet(
    "cifar100", 100, (3, 32, 32), (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), "flip-crop",
    "a folder with cifar-100-python, a folder or .tar.gz with train/CLASS and test/CLASS, or an .npz",
)  # fmt: skip
IMAGENET32 = DataSet(
    "imagenet32", 1000, (3, 32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "crop-flip",
    "a folder with train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz",
)  # fmt: skip
PNEUMONIA = DataSet(
    "pneumonia", 2, (1, 28, 28), (0.5,), (0.5,), "none",
    "the file pneumoniamnist.npz",
)  # fmt: skip
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cifar(context: TaskContext, data_set: DataSet) -> SupervisedTask:
    """CIFAR-10 or CIFAR-100, from whatever `read_cifar` reads; `download = true` lets torchvision fetch it
    into the folder `data`."""
    chosen = _settings(context, download=False)
    data = read_cifar(_path(context, data_set.expected), data_set, chosen["download"])
    return _small_images_task(context, chosen, data_set, data)


def imagenet32(context: TaskContext) -> SupervisedTask:
    """ImageNet downsampled to 32x32 (Chrabaszcz et al. 2017)."""
    chosen = _settings(context, width=2.0)
    data = _imagenet32(_path(context, IMAGENET32.expected))
    return _small_images_task(context, chosen, IMAGENET32, data)


def pneumonia(context: TaskContext) -> SupervisedTask:
    """PneumoniaMNIST (Yang et al. 2023): trained on its training part, scored on its test part."""
    chosen = _settings(context)
    data = _npz(_path(context, PNEUMONIA.expected), PNEUMONIA.shape)
    return _small_images_task(context, chosen, PNEUMONIA, data)


def imagenet(context: TaskContext) -> SupervisedTask:
    """ImageNet at 224x224, decoded mini-batch by mini-batch on `decoding_threads` threads."""
    chosen = _settings(context, model="resnet18", decoding_threads=4)
    if chosen["decoding_threads"] < 1:
        raise ConfigError(
            f"expected 1 or more, found {chosen['decoding_threads']}", key="task.options.decoding_threads"
        )
    optional("torchvision.transforms", "vision")  # missed now rather than at the first mini-batch
    folder = list_pictures(_path(context, "a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG"))
    transform = _picture_transform(folder, context.dtype, chosen["augment"], chosen["decoding_threads"])
    return _task(context, chosen, folder.data, folder.classes, (3, SIDE, SIDE), transform)


def read_cifar(path: Path, data_set: DataSet, download: bool = False) -> CommonData:
    """An .npz archive, class folders (also in a tar archive), or torchvision's folder.

    Raises `ConfigError`, naming the file and what was expected, if `path` is none of them.
    """
    if path.suffix == ".npz":
        return _npz(path, data_set.shape)
    if is_class_folders(path):
        return _class_folders(path, data_set.shape, data_set.classes)
    if path.is_dir() or download:
        return _torchvision(path, data_set.classes, download)
    found = "a file of another kind" if path.exists() else "nothing"
    raise ConfigError(f"expected {data_set.expected}; found {found}", where=str(path), key="task.data")


IMAGE_TASKS: dict[str, Callable[[TaskContext], SupervisedTask]] = {
    "cifar10": partial(cifar, data_set=CIFAR10),
    "cifar100": partial(cifar, data_set=CIFAR100),
    "imagenet32": imagenet32,
    "imagenet": imagenet,
    "pneumonia": pneumonia,
}

# Agents of one process read and share out a data set once, and share what is held out.
_torchvision = lru_cache(maxsize=1)(
    lambda path, classes, download: read_torchvision_cifar(path, classes, download=download)
)
_class_folders = lru_cache(maxsize=1)(read_class_folders)
_npz = lru_cache(maxsize=1)(read_npz)
_imagenet32 = lru_cache(maxsize=1)(read_imagenet32)


@lru_cache(maxsize=2)
def _picture_transform(
    folder: PictureFolder, dtype: torch.dtype, augment: bool, threads: int
) -> PictureTransform:
    return PictureTransform(folder, IMAGENET_MEAN, IMAGENET_STD, dtype, augment, threads)


def _settings(context: TaskContext, **more: Any) -> dict[str, Any]:
    """The options all of these tasks have, and more: `model`, `norm` and `width` as in `image_model`,
    `augment`, the sizes of subsets as in `own_share`, and `test_batch_size` (0: 32 as in the released code
    where scores depend on it, else what is fast)."""
    defaults = {"model": "resnet20", "norm": "auto", "width": 1.0, "augment": True, "test_batch_size": 0}
    return context.settings(**(defaults | SUBSETS | more))


def _path(context: TaskContext, expected: str) -> Path:
    if context.data is None:
        raise ConfigError(f"expected {expected}; found none", key="task.data")
    return context.data


def _small_images_task(
    context: TaskContext, chosen: dict[str, Any], data_set: DataSet, data: CommonData
) -> SupervisedTask:
    for labels in (data.train_labels, data.test_labels):
        if labels.min() < 0 or labels.max() >= data_set.classes:
            raise ConfigError(
                f"expected class numbers below {data_set.classes}, found {labels.min()} to {labels.max()}",
                where=str(context.data),
                key="task.data",
            )
    augmentation = data_set.augmentation if chosen["augment"] else "none"
    transform = ImageTransform(data_set.mean, data_set.std, context.dtype, augmentation)
    return _task(context, chosen, data, data_set.classes, data_set.shape, transform)


def _task(
    context: TaskContext,
    chosen: dict[str, Any],
    data: CommonData,
    classes: int,
    shape: Shape,
    transform: Transform,
) -> SupervisedTask:
    norm = resolved_norm(chosen["model"], chosen["norm"])
    return own_share(
        context,
        data,
        image_model(chosen["model"], norm, chosen["width"], classes, shape),
        train_samples=chosen["train_samples"],
        test_samples=chosen["test_samples"],
        transform=transform,
        test_batch_size=chosen["test_batch_size"]
        or (RELEASED_TEST_BATCH if norm == "evonorm" else TEST_BATCH),
    )

"""ImageNet: too large to decode ahead, so a mini-batch is decoded when it is used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2pqg import seeds
from p2pqg.errors import ConfigError
from p2pqg.tasks.augmentation import standardise
from p2pqg.tasks.common_data import CommonData, fixed_order
from p2pqg.tasks.extras import optional
from p2pqg.tasks.image_files import Pixels

SPLITS = ("train", "val")
SIDE, SHORT_SIDE = 224, 256
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
SUFFIXES = (".jpeg", ".jpg")

Crop = tuple[int, int, int, int, bool]
"""Top, left, height, width, and whether to mirror."""


@dataclass(frozen=True, eq=False)
class PictureFolder:
    """Picture files under `root`, and file numbers as the inputs of a data set."""

    root: Path
    names: Sequence[str]
    classes: int
    data: CommonData


@lru_cache(maxsize=2)
def list_pictures(root: Path) -> PictureFolder:
    """The layout of ImageNet: `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`.

    Classes are numbered in the order of their names; `val` is put into one fixed random order, since some
    models look at a whole mini-batch. Raises `ConfigError` if either part is missing or their classes differ.
    """
    names: list[str] = []
    labels: list[int] = []
    classes: dict[str, list[str]] = {}
    first_test = 0
    for split in SPLITS:
        if not (root / split).is_dir():
            raise _wrong(root, f"expected a folder {split} with a folder for each class, found none")
        first_test = len(names)
        classes[split] = sorted(entry.name for entry in os.scandir(root / split) if entry.is_dir())
        found = [
            (f"{split}/{name}/{entry}", k)
            for k, name in enumerate(classes[split])
            for entry in sorted(os.listdir(root / split / name))
            if entry.lower().endswith(SUFFIXES)
        ]
        order = fixed_order(len(found), "test order") if split == "val" else range(len(found))
        names += [found[k][0] for k in order]
        labels += [found[k][1] for k in order]
    if classes["train"] != classes["val"] or not 0 < first_test < len(names):
        raise _wrong(
            root,
            "expected pictures of the same classes in train and val, found "
            f"{first_test} of {len(classes['train'])} and {len(names) - first_test} of {len(classes['val'])}",
        )
    files, numbers = np.arange(len(names)), np.array(labels)
    data = CommonData(files[:first_test], numbers[:first_test], files[first_test:], numbers[first_test:])
    return PictureFolder(root, names, len(classes["train"]), data)


@dataclass(frozen=True, eq=False)
class PictureTransform:
    """File numbers `[b]` to standardised images `[b, 3, 224, 224]`.

    Training: a random crop of 8 % to 100 % of the area, resized, mirrored with probability 1/2. Scoring: the
    short side resized to 256, the centre cut out. Both are torchvision's, both on `threads` threads.
    """

    folder: PictureFolder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype = torch.float32
    augment: bool = True
    threads: int = 1

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """A seed for each picture, `[samples]`."""
        return torch.randint(1 << 62, (samples,), generator=generator)

    def __call__(self, inputs: Tensor, choices: Tensor | None) -> Tensor:
        """File numbers `[b]` to images, on the device of `inputs`."""
        files = inputs.tolist()
        crops: list[Crop | None] = [None] * len(files)
        if choices is not None and self.augment:
            crops = [self._draw_crop(*pair) for pair in zip(files, choices.tolist(), strict=True)]
        with ThreadPoolExecutor(self.threads) as pool:
            images = torch.from_numpy(np.stack(list(pool.map(self._picture, files, crops))))
        return standardise(images.to(inputs.device), self.mean, self.std, self.dtype)

    def _draw_crop(self, file: int, seed: int) -> Crop:
        random_crop = optional("torchvision.transforms", "vision").RandomResizedCrop
        # torchvision draws from torch's global generator, so all is drawn here and not in a thread.
        with self._open(file) as image, seeds.scoped(seed, "crop"):
            top, left, height, width = random_crop.get_params(image, SCALE, RATIO)
            return top, left, height, width, bool(torch.rand(()) < 0.5)

    def _picture(self, file: int, crop: Crop | None) -> Pixels:
        functional = optional("torchvision.transforms.functional", "vision")
        try:
            with self._open(file) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            raise self._broken(file, error) from error
        if crop is None:
            image = functional.center_crop(functional.resize(image, SHORT_SIDE), SIDE)
        else:
            image = functional.resized_crop(image, *crop[:4], [SIDE, SIDE])
        pixels = np.asarray(image).transpose(2, 0, 1)
        return pixels[:, :, ::-1] if crop is not None and crop[4] else pixels

    def _open(self, file: int) -> Any:
        from PIL import Image

        try:
            return Image.open(self.folder.root / self.folder.names[file])
        except OSError as error:
            raise self._broken(file, error) from error

    def _broken(self, file: int, error: OSError) -> ConfigError:
        return _wrong(self.folder.root / self.folder.names[file], f"expected a picture: {error}")


def _wrong(path: Path, message: str) -> ConfigError:
    return ConfigError(message, where=str(path), key="task.data")

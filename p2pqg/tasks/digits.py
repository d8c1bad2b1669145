"""Handwritten digits: 1,797 real 8x8 images that scikit-learn carries, so nothing is downloaded."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2pqg import seeds
from p2pqg.errors import ConfigError
from p2pqg.tasks.base import TaskContext
from p2pqg.tasks.partition import Indices, partition
from p2pqg.tasks.supervised import Batch, SupervisedTask

CLASSES = 10
TEST_SAMPLES_PER_CLASS = 36
PIXEL_MEAN, PIXEL_STD = 4.884, 6.017
"""Of all pixels, which count ink from 0 to 16."""


def make_task(context: TaskContext) -> SupervisedTask:
    """One agent's share of the 1,437 training images; 360 images, 36 of each digit, are held out.

    The held-out split is the same in every run, whatever the seed. Option: `width`, channels of the first
    layer (16: 9,930 parameters; 76: 129,330).
    """
    width = context.settings(width=16)["width"]
    if width < 1:
        raise ConfigError(f"expected 1 or more, found {width}", key="task.options.width")
    shares = _shares(context.partition, len(context.agents), context.alpha, context.seed)
    inputs, targets, test = _images(context.dtype)
    own = torch.from_numpy(shares[context.index])
    return SupervisedTask(
        lambda: network(width).to(context.dtype),
        train=(inputs[own], targets[own]),
        test=test,
        agent=context.agent,
        seed=context.seed,
        batch_size=context.batch_size,
        total_samples=sum(map(len, shares)),
    )


def network(width: int = 16) -> nn.Module:
    """Two convolutions and a linear layer, 18 width² + 332 width + 10 parameters; no normalisation, so
    that it does not depend on how a mini-batch is composed."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 4 * 4, CLASSES),
    )


@lru_cache(maxsize=1)
def _arrays() -> tuple[NDArray[np.float64], Indices, Indices, Indices]:
    """Standardised images `[1797, 1, 8, 8]`, digits `[1797]`, and the positions of training and held-out
    samples."""
    from sklearn.datasets import load_digits  # a second of imports that other tasks need not pay

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    order = seeds.numpy_generator(0, "digits held out").permutation(len(labels))
    held_out = np.concatenate(
        [order[labels[order] == digit][:TEST_SAMPLES_PER_CLASS] for digit in range(CLASSES)]
    )
    images = (digits.images[:, None] - PIXEL_MEAN) / PIXEL_STD
    return images, labels, np.setdiff1d(order, held_out), np.sort(held_out)


@lru_cache(maxsize=4)
def _images(dtype: torch.dtype) -> tuple[Tensor, Tensor, Batch]:
    """Training inputs and targets, and the held-out batch; agents of one process share the latter."""
    images, labels, train, held_out = _arrays()
    inputs, targets = torch.from_numpy(images).to(dtype), torch.from_numpy(labels)
    return inputs[train], targets[train], (inputs[held_out], targets[held_out])


@lru_cache(maxsize=16)
def _shares(kind: str, n: int, alpha: float, seed: int) -> tuple[Indices, ...]:
    _, labels, train, _ = _arrays()
    return partition(kind, labels[train], n, alpha, seed)

"""A labelled data set that every agent could read whole, and one agent's share of it as a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from p2pqg import seeds
from p2pqg.errors import ConfigError
from p2pqg.tasks.base import TaskContext
from p2pqg.tasks.partition import Indices, partition
from p2pqg.tasks.supervised import Batch, SupervisedTask, Transform


@dataclass(frozen=True, eq=False)
class CommonData:
    """Inputs `[samples, ...]`, perhaps memory maps, and class numbers `[samples]`."""

    train_inputs: NDArray[Any]
    train_labels: Indices
    test_inputs: NDArray[Any]
    test_labels: Indices


SUBSETS = {"train_samples": 0, "test_samples": 0}
"""Options of `own_share` and their defaults, which stand for all samples."""


def own_share(
    context: TaskContext,
    data: CommonData,
    module: Callable[[], nn.Module],
    *,
    train_samples: int,
    test_samples: int,
    transform: Transform,
    test_batch_size: int,
) -> SupervisedTask:
    """The task of `context.agent`, whose share is copied out of `data`; all agents of a process have the
    same held-out tensors.

    If not 0, only `train_samples` are shared out and `test_samples` held out: random ones, but the same in
    every run, whatever its seed. Raises `ConfigError` if there are not as many.
    """
    shares = _shares(data, train_samples, context.partition, len(context.agents), context.alpha, context.seed)
    own = shares[context.index]
    return SupervisedTask(
        lambda: module().to(context.dtype),
        train=(torch.from_numpy(np.array(data.train_inputs[own])), torch.from_numpy(data.train_labels[own])),
        test=_held_out(data, test_samples),
        agent=context.agent,
        seed=context.seed,
        batch_size=context.batch_size,
        total_samples=sum(map(len, shares)),
        transform=transform,
        test_batch_size=test_batch_size,
    )


def fixed_order(samples: int, what: str) -> Indices:
    """One random order of `samples` things, the same in every run, whatever its seed."""
    return seeds.numpy_generator(0, what).permutation(samples)


@lru_cache(maxsize=16)
def _shares(
    data: CommonData, samples: int, kind: str, n: int, alpha: float, seed: int
) -> tuple[Indices, ...]:
    rows = _subset(len(data.train_labels), samples, "train_samples")
    return tuple(rows[share] for share in partition(kind, data.train_labels[rows], n, alpha, seed))


@lru_cache(maxsize=4)
def _held_out(data: CommonData, samples: int) -> Batch:
    if not samples:
        inputs, labels = (np.require(part, requirements="W") for part in (data.test_inputs, data.test_labels))
    else:
        rows = _subset(len(data.test_labels), samples, "test_samples")
        inputs, labels = np.array(data.test_inputs[rows]), data.test_labels[rows]
    return torch.from_numpy(inputs), torch.from_numpy(labels)


def _subset(samples: int, wanted: int, option: str) -> Indices:
    if not 0 <= wanted <= samples:
        raise ConfigError(
            f"expected at most {samples} (0: all), found {wanted}", key=f"task.options.{option}"
        )
    return np.sort(fixed_order(samples, option)[:wanted]) if wanted else np.arange(samples)

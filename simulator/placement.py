"""Tasks on the device that computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p2pqg.errors import ConfigError
from p2pqg.flat import Spec, trainable
from p2pqg.tasks.base import Task
from p2pqg.tasks.supervised import Batch, SupervisedTask

from .private import without_privacy


def device_named(name: torch.device | str) -> torch.device:
    """The device. Raises `ConfigError` if this machine has none of that name."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        raise ConfigError(f"expected a device of this machine, found {name}", key="device") from error
    return device


def place(tasks: Sequence[Task], device: torch.device) -> None:
    """Move samples and modules to `device`, a held-out set that agents share once.

    The parameters of modules of one architecture then share their memory, as they compute in turn.

    Raises `ConfigError` for tasks that do not say where their data is.
    """
    held_out: dict[tuple[int, int], Batch] = {}
    vectors: dict[Spec, Tensor] = {}
    for task in map(without_privacy, tasks):
        if isinstance(task, SupervisedTask):
            key = task.test[0].data_ptr(), len(task.test[0])
            task.to(device, held_out.get(key))
            held_out[key] = task.test
            if task.spec not in vectors:
                vectors[task.spec] = task.spec.flatten(trainable(task.module))
            task.compute_in(vectors[task.spec])
        elif device.type != "cpu":
            raise ConfigError(f"{device} expects tasks that are all SupervisedTask; use cpu", key="device")

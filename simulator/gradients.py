"""Mini-batch gradients of all agents: one after the other, or as one batched computation.

`Loop` asks every task in turn and serves any `Task`. `Vmap` stacks the models of like `SupervisedTask`s and
runs one batched forward and backward pass (`torch.func.vmap`), which pays where a single model is too small
to keep the hardware busy. Both give the same gradients up to rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from p2pqg.errors import ConfigError
from p2pqg.tasks.base import Buffers, Task
from p2pqg.tasks.supervised import SupervisedTask

Engine = Literal["auto", "loop", "vmap"]

FEWEST = 4
"""Agents from which a batched pass is faster than a loop."""

HEAVY = (nn.modules.conv._ConvNd, nn.RNNBase)
"""Modules that a CPU runs faster one agent after the other: batched over weights they become grouped
convolutions, for which its kernels are poor."""

HEAVY_PARAMETERS = 1 << 18
"""Parameters from which one dense model keeps a CPU busy by itself."""


class Gradients(Protocol):
    """Gradients of all agents on the mini-batches of one step."""

    name: Engine

    def __call__(self, x: Tensor, buffers: list[Buffers], step: int) -> tuple[Tensor, Tensor]:
        """Gradients `[n, d]` at `x: [n, d]` and losses `[n]`; replaces the entries of `buffers` by those
        after the forward pass."""


class Loop:
    """One `task.gradient` after the other."""

    name: Engine = "loop"

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks

    def __call__(self, x: Tensor, buffers: list[Buffers], step: int) -> tuple[Tensor, Tensor]:
        g = torch.empty_like(x)
        losses = torch.empty(len(x), dtype=x.dtype, device=x.device)
        for i, task in enumerate(self.tasks):
            local = task.gradient(x[i], buffers[i], step)
            g[i], losses[i], buffers[i] = local.g, local.loss, local.buffers
        return g, losses


class Vmap:
    """One batched pass for all agents whose mini-batches have the same size.

    The training sets of all tasks are moved into one pool, of which the tasks then hold views, so that one
    `index_select` gathers all mini-batches. Agents whose mini-batch is of another size (a short last batch,
    unequal shares) form their own batched pass, or go through the loop if they are few.

    Raises `ConfigError` if the tasks cannot be batched: other kinds of tasks, different models or losses,
    buffers, randomness in the forward pass. Different models are noticed by comparing with the loop once.
    """

    name: Engine = "vmap"

    def __init__(self, tasks: Sequence[Task]) -> None:
        own = [task for task in tasks if type(task) is SupervisedTask]
        if len(own) < len(tasks):
            raise _unfit("tasks that are all SupervisedTask")
        first = own[0]
        if any(task.spec != first.spec for task in own):
            raise _unfit("the same model on every agent")
        if any(task.transform != first.transform for task in own):
            raise _unfit("the same transform on every agent")
        if any(task.buffers() for task in own):
            raise _unfit("a model without buffers")
        self.tasks, self.spec, self.module, self.loss = own, first.spec, first.module, first.loss
        self.transform = first.transform
        self._losses = vmap(self._mean_loss)
        self._inputs, self._targets, self._firsts = _pool(own)
        # Shares and mini-batches of one size: the order of an epoch is then one matrix for all agents.
        self._alike = len({(task.samples, task.batch_size) for task in own}) == 1
        self._order = lru_cache(maxsize=1)(self._shuffled)
        self._compare()

    def __call__(self, x: Tensor, buffers: list[Buffers], step: int) -> tuple[Tensor, Tensor]:
        if self._alike:
            return self._pass(x, range(len(x)), self._samples(step), step)
        indices = [task.batch_indices(step) for task in self.tasks]
        sizes = defaultdict(list)
        for i, own in enumerate(indices):
            sizes[len(own)].append(i)
        g = torch.empty_like(x)
        losses = torch.empty(len(x), dtype=x.dtype, device=x.device)
        for agents in sizes.values():
            if len(agents) < FEWEST:
                for i in agents:
                    local = self.tasks[i].gradient(x[i], {}, step)
                    g[i], losses[i] = local.g, local.loss
            else:
                samples = torch.stack([indices[i] for i in agents]) + self._firsts[agents, None]
                g[agents], losses[agents] = self._pass(x[agents], agents, samples, step)
        return g, losses

    def _samples(self, step: int) -> Tensor:
        """Positions in the pool `[n, b]` of all agents' mini-batches, for shares of one size."""
        task = self.tasks[0]
        epoch, position = divmod(step, task.steps_per_epoch)
        first = position * task.batch_size
        return self._order(epoch)[:, first : first + task.batch_size]

    def _shuffled(self, epoch: int) -> Tensor:
        return torch.stack([task.epoch_order(epoch) for task in self.tasks]) + self._firsts[:, None]

    def _pass(self, x: Tensor, agents: Sequence[int], samples: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Gradients and losses of `x: [k, d]` of some agents on their samples `[k, b]` of the pool."""
        samples = samples.to(self._inputs.device)
        flat = samples.reshape(-1)
        inputs, targets = self._inputs.index_select(0, flat), self._targets.index_select(0, flat)
        if self.transform is not None:
            inputs = self.transform(inputs, torch.cat([self.tasks[i].choices(step) for i in agents]))
        inputs, targets = (part.view(*samples.shape, *part.shape[1:]) for part in (inputs, targets))
        self.module.train()
        leaves = x.detach().requires_grad_()
        losses = self._losses(self.spec.views(leaves), inputs, targets)
        (g,) = torch.autograd.grad(losses.sum(), leaves)
        return g, losses.detach()

    def _mean_loss(self, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(functional_call(self.module, parameters, (inputs,)), targets)

    def _compare(self) -> None:
        """Refuse tasks for which the batched pass fails or gives other gradients than their own."""
        x = self.tasks[0].init(0).to(self._inputs.device).expand(len(self.tasks), -1).contiguous()
        try:
            batched, _ = self(x, [], 0)
        except RuntimeError as error:
            raise _unfit(f"a model that torch.func.vmap can batch ({error})") from error
        looped, _ = Loop(self.tasks)(x, [{}] * len(self.tasks), 0)
        scale = looped.norm(dim=1) + torch.finfo(x.dtype).tiny
        if bool(((batched - looped).norm(dim=1) > 1e-3 * scale).any()):
            raise _unfit("the same model and loss on every agent")


def gradients(tasks: Sequence[Task], engine: Engine = "auto") -> Gradients:
    """The engine asked for; "auto" is `Vmap` for four or more agents with like, small, dense models (on an
    accelerator: like models of any kind), else `Loop`.

    Raises `ConfigError` if "vmap" is asked for and the tasks cannot be batched.
    """
    if engine == "loop" or (engine == "auto" and not _worth_batching(tasks)):
        return Loop(tasks)
    try:
        return Vmap(tasks)
    except ConfigError:
        if engine == "vmap":
            raise
        return Loop(tasks)


def _worth_batching(tasks: Sequence[Task]) -> bool:
    first = tasks[0]
    if len(tasks) < FEWEST or not isinstance(first, SupervisedTask):
        return False
    heavy = first.spec.d > HEAVY_PARAMETERS or any(isinstance(m, HEAVY) for m in first.module.modules())
    return not (heavy and first.train[0].device.type == "cpu")


def _pool(tasks: Sequence[SupervisedTask]) -> tuple[Tensor, Tensor, Tensor]:
    """All training inputs and targets, each task's `train` now views of them, and where each begins."""
    inputs = torch.cat([task.train[0] for task in tasks])
    targets = torch.cat([task.train[1] for task in tasks])
    sizes = [task.samples for task in tasks]
    for task, own in zip(
        tasks, zip(torch.split(inputs, sizes), torch.split(targets, sizes), strict=True), strict=True
    ):
        task.train = own
    firsts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    return inputs, targets, firsts


def _unfit(expected: str) -> ConfigError:
    return ConfigError(f"vmap expects {expected}; use loop", key="engine")

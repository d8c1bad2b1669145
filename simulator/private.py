"""Differential privacy of every agent of a simulation: the same private tasks as agents on a network have.

The noise of agent i comes from a secret, as an agent's does, and never from the seed: `secret`, if one is
given, or a fresh one. Nothing in a simulation is kept from anybody, but its figures are those of agents
whose noise is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad, vmap

from p2pqg import seeds
from p2pqg.config import SimulationSettings
from p2pqg.errors import ConfigError
from p2pqg.privacy import PrivateTask, Secret, protect_agent
from p2pqg.privacy.clipping import CHUNK_VALUES, clipped_sum, of_sample
from p2pqg.tasks.base import Buffers, Task

from .world import World

if TYPE_CHECKING:
    from .gradients import Engine


def protected(
    tasks: Sequence[Task], settings: SimulationSettings, names: Sequence[str], secret: Secret | None = None
) -> list[Task]:
    """The tasks of the agents of these names, made private if the settings ask for it."""
    secret, algorithm = secret or Secret.fresh(), settings.algorithm.build()
    protections = [
        protect_agent(task, settings.mechanism(task), algorithm, agent=name, home=None, secret=secret)
        for name, task in zip(names, tasks, strict=True)
    ]
    return [each.task if each else task for each, task in zip(protections, tasks, strict=True)]


def without_privacy(task: Task) -> Task:
    """The task that a private one is made of."""
    return task.task if isinstance(task, PrivateTask) else task


def privacy_spent(tasks: Sequence[Task], steps: int, world: World) -> dict[str, float]:
    """Epsilon, rounded up as in an agent's metrics, of the agent that spent most in so many steps, and its
    delta; empty without privacy. All processes of the world call it alike."""
    private = [task for task in tasks if isinstance(task, PrivateTask)]
    if not private:
        return {}
    costs = [task.mechanism.shown(min(steps, task.account.affordable)) for task in private]
    everyone = world.gather(torch.tensor(costs, dtype=torch.float64))
    return {"epsilon": float(everyone.max()), "delta": private[0].mechanism.delta}


class PrivateLoop:
    """One private gradient after the other."""

    name: Engine = "loop"
    chunk = 1

    def __init__(self, tasks: Sequence[PrivateTask]) -> None:
        self.tasks = tasks

    def __call__(self, x: Tensor, buffers: list[Buffers], step: int) -> tuple[Tensor, None]:
        """Gradients `[n, d]` at `x: [n, d]`; there are no losses, which are private."""
        own = zip(self.tasks, x, strict=True)
        return torch.stack([task.gradient(row, {}, step).g for task, row in own]), None


class PrivateVmap:
    """All agents' clipped sums in one pass, batched over agents and samples; noise is added agent by agent.

    The mini-batches drawn for a step differ in size: all are padded to the largest with samples that do not
    count. Raises `ConfigError` if the tasks' models differ or cannot be batched, or draw in their forward
    pass (their draws would not be those of `PrivateLoop`).
    """

    name: Engine = "vmap"

    def __init__(self, tasks: Sequence[PrivateTask]) -> None:
        first = tasks[0].task
        if any(task.task.transform != first.transform or task.spec != first.spec for task in tasks):
            raise ConfigError(
                "vmap expects the same model and transform on every agent; use loop", key="engine"
            )
        self.tasks, self.module, self.spec = tasks, first.module, first.spec
        self.chunk = len(tasks)
        self._norms = torch.tensor([task.mechanism.max_grad_norm for task in tasks], dtype=self.spec.dtype)
        self._gradients = vmap(grad(of_sample(self.module, first.loss)), in_dims=(None, 0, 0))
        self._sums = vmap(self._clipped)
        self._compare()

    def __call__(self, x: Tensor, buffers: list[Buffers], step: int) -> tuple[Tensor, None]:
        paid = [task.account.pay(step) for task in self.tasks]
        drawn = [task.batch(step) for task in self.tasks]
        sizes = [len(inputs) for inputs, _ in drawn]
        g = torch.zeros_like(x)
        if any(sizes):
            inputs, targets = (
                torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True)
                for part in zip(*drawn, strict=True)
            )
            counts = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
            self.module.train()
            sums = self._sums(
                self.spec.views(x), inputs, targets, counts.to(x.device), self._norms.to(x.device)
            )
            g = self.spec.flatten(sums)
        for i, task in enumerate(self.tasks):
            g[i] = task.released(g[i].double(), step).to(x) if paid[i] else 0
        return g, None

    def _clipped(
        self, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor, counts: Tensor, norm: Tensor
    ) -> dict[str, Tensor]:
        return clipped_sum(self._gradients(parameters, inputs, targets), norm, counts)

    def _compare(self) -> None:
        first = self.tasks[0].task
        x = first.init(0).to(first.train[0].device).expand(len(self.tasks), -1).contiguous()
        try:
            with seeds.scoped(0, "comparison"):
                batched, _ = self(x, [], 0)
        except RuntimeError as error:
            raise ConfigError(f"vmap cannot batch this model ({error}); use loop", key="engine") from error
        looped, _ = PrivateLoop(self.tasks)(x, [], 0)
        if bool(((batched - looped).norm(dim=1) > 1e-3 * (1 + looped.norm(dim=1))).any()):
            raise ConfigError("vmap expects the same model and loss on every agent; use loop", key="engine")


def private_gradients(
    tasks: Sequence[PrivateTask], engine: Engine, worth_batching: bool
) -> PrivateLoop | PrivateVmap:
    """The engine asked for; "auto" batches what is worth it and fits into memory.

    Raises `ConfigError` if "vmap" is asked for and the tasks cannot be batched, and for compiled ones.
    """
    if engine in ("compile", "vmap-compile"):
        raise ConfigError(f"{engine} expects tasks without privacy; use loop or vmap", key="engine")
    values = sum(task.task.batch_size for task in tasks) * tasks[0].spec.d
    if engine == "loop" or (engine == "auto" and not (worth_batching and values <= CHUNK_VALUES)):
        return PrivateLoop(tasks)
    try:
        return PrivateVmap(tasks)
    except ConfigError:
        if engine == "vmap":
            raise
        return PrivateLoop(tasks)

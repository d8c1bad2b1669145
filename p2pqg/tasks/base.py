"""The contract between a learning problem and everything else.

A task is what *one* agent trains: a model behind a flat vector, the agent's own share of the data, and data
to evaluate on. Nothing outside knows of layers, images or tokens. It holds no training state: parameters
and buffers are passed in and handed back, and mini-batches are a pure function of the step, so a run can be
checkpointed, resumed and simulated without asking the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from p2pqg.errors import ConfigError
from p2pqg.flat import Spec

Buffers = Mapping[str, Tensor]
"""Model state that is not trained and never mixed (running statistics of BatchNorm), by name."""


@dataclass(frozen=True, slots=True, eq=False)
class LocalGradient:
    """A mini-batch gradient `g: [d]`, the mean loss over the mini-batch (a 0-d tensor; None where a private
    task keeps it) and the buffers after the forward pass."""

    g: Tensor
    loss: Tensor | None
    buffers: Buffers


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean loss, accuracy in [0, 1] (None where a task has no such notion) and number of samples."""

    loss: float
    accuracy: float | None
    samples: int


@runtime_checkable
class Task(Protocol):
    """One agent's learning problem."""

    @property
    def spec(self) -> Spec:
        """Names, shapes and dtype of the trainable parameters."""

    @property
    def samples(self) -> int:
        """Size of this agent's own training share."""

    @property
    def total_samples(self) -> int | None:
        """Training samples of all agents together; None where an agent cannot know."""

    @property
    def steps_per_epoch(self) -> int:
        """Mini-batches in one pass over the own share (the last may be short)."""

    def init(self, seed: int) -> Tensor:
        """Initial parameters `[d]`: the same on every agent for the same seed."""

    def buffers(self) -> Buffers:
        """Initial buffers; empty for a model that has none."""

    def gradient(self, x: Tensor, buffers: Buffers, step: int) -> LocalGradient:
        """Gradient at `x: [d]` on the mini-batch of step `step` (from 0, over the whole run)."""

    def evaluate(self, x: Tensor, buffers: Buffers) -> Evaluation:
        """Score `x: [d]` on held-out data."""


@runtime_checkable
class FullGradient(Protocol):
    """A task that also has gradients over all of its samples, which a few methods ask for."""

    def full_gradient(self, x: Tensor, buffers: Buffers, step: int) -> Tensor:
        """Gradient `[d]` at `x: [d]` of the mean loss over the own share; buffers stay as they are."""


def with_full_gradient(task: Task) -> FullGradient:
    """The task. Raises `ConfigError` if it has no `full_gradient`."""
    if not isinstance(task, FullGradient):
        raise ConfigError(
            "this algorithm needs a task with `full_gradient`, found one without", key="algorithm.name"
        )
    return task


@dataclass(frozen=True)
class TaskContext:
    """What a task factory `make_task(context) -> Task` is told.

    `agents` are the names of all agents in order and `agent` the one the task is for. `partition` and
    `alpha` say how a common data set is shared out (see `tasks.partition`); a factory whose data already
    lies on the device ignores them and looks at `data`. `options` is the free-form ``[task.options]`` table
    of the configuration.
    """

    agent: str
    agents: tuple[str, ...]
    seed: int
    partition: str = "dirichlet"
    alpha: float = 1.0
    batch_size: int = 32
    data: Path | None = None
    dtype: torch.dtype = torch.float32
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def index(self) -> int:
        """Position of `agent` among `agents`."""
        return self.agents.index(self.agent)

    def settings(self, **defaults: Any) -> dict[str, Any]:
        """`options` laid over the defaults of a task, each of its default's type.

        Raises `ConfigError` for an option that has no default, or of another type (a whole number will do
        for a float).
        """
        for key, value in self.options.items():
            where = f"task.options.{key}"
            if key not in defaults:
                known = ", ".join(defaults) or "no option"
                raise ConfigError(f"expected {known}, found {key}", key=where)
            kind = type(defaults[key])
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ConfigError(f"expected {kind.__name__}, found {value!r}", key=where)
        return {
            key: type(default)(self.options[key]) if key in self.options else default
            for key, default in defaults.items()
        }

"""What an algorithm is: a value with hyper-parameters, an initial state and a program for one round."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from p2pqg.algorithms.effects import Program, gradient
from p2pqg.errors import ConfigError

State = Mapping[str, Tensor]
"""What an agent keeps between rounds, by name; each tensor `[*agents, ...]`. It is all that a checkpoint
needs beside the model."""

Rate = float | Tensor
"""A learning rate; a tensor that broadcasts against `[*agents, d]` when several runs advance together."""


def axpy(a: Rate, x: Tensor, y: Tensor) -> Tensor:
    """a x + y, in one pass over memory: element-wise work on `[n, d]` costs what its passes cost."""
    return torch.addcmul(y, x, a) if isinstance(a, Tensor) else torch.add(y, x, alpha=a)


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """Hyper-parameters every method shares.

    `weight_decay` is coupled: `weight_decay * x` is added to the gradient on every parameter, before any
    momentum, with x the parameters before the step (paper-protocol, section 1). `local_steps` gradient
    steps are taken in a round before the exchange.

    Only element-wise operations on `[*agents, d]` and reductions along the last axis are allowed in a
    `round`, so that `[n, d]` gives bit for bit what n separate `[d]` would.
    """

    weight_decay: float = 0.0
    local_steps: int = 1

    messages: ClassVar[int] = 1
    """Model-sized vectors in one exchange."""
    needs_mean: ClassVar[bool] = False
    """Whether the method asks for exact averages over all agents."""

    def __post_init__(self) -> None:
        self.require(0 <= self.weight_decay < math.inf, "weight_decay", "0 or more")
        self.require(self.local_steps >= 1, "local_steps", "1 or more")

    def require(self, holds: bool, key: str, expected: str) -> None:
        """Raise `ConfigError` naming a hyper-parameter and what was expected of it."""
        if not holds:
            raise ConfigError(f"expected {expected}, found {getattr(self, key)}", key=f"algorithm.{key}")

    @abstractmethod
    def init(self, x: Tensor) -> State:
        """The state before the first round, for parameters `x: [*agents, d]`."""

    @abstractmethod
    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        """One round: `lrs` holds the learning rate of each local step. Returns the new x and state."""

    def gradient(self, x: Tensor, step: int) -> Program[Tensor]:
        """Stochastic gradient with coupled weight decay: g + weight_decay * x."""
        g = yield from gradient(x, step)
        return axpy(self.weight_decay, x, g) if self.weight_decay else g

    def describe(self) -> dict[str, str]:
        """Hyper-parameters by name, as every agent of a network must have them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        floats = {field.name for field in fields(self) if field.type == "float"}
        return {name: str(float(value) if name in floats else value) for name, value in values.items()}

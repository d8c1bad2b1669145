"""What an algorithm is: a value with hyper-parameters, an initial state and a program for one round."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from p2pqg.algorithms.effects import Program, gradient, mean, mix
from p2pqg.errors import ConfigError

State = Mapping[str, Tensor]
"""What an agent keeps between rounds, by name; each tensor `[*agents, ...]`. It is all that a checkpoint
needs beside the model."""

Rate = float | Tensor
"""A learning rate; a tensor that broadcasts against `[*agents, d]` when several runs advance together."""


def axpy(a: Rate, x: Tensor, y: Tensor) -> Tensor:
    """a x + y, in one pass over memory: element-wise work on `[n, d]` costs what its passes cost."""
    return torch.addcmul(y, x, a) if isinstance(a, Tensor) else torch.add(y, x, alpha=a)


def option(default: Any, doc: str, *choices: Any) -> Any:
    """A hyper-parameter that says what it is, and which values it takes if they are few."""
    return field(default=default, metadata={"doc": doc, "choices": choices})


def first_count(x: Tensor) -> Tensor:
    """A counter at 0 for each agent of `x: [*agents, d]`: int64 `[*agents, 1]`."""
    return torch.zeros(*x.shape[:-1], 1, dtype=torch.int64, device=x.device)


def read_count(counter: Tensor) -> int:
    """What a counter stands at. Agents count in lockstep, so it is the same for all of them."""
    return int(counter.flatten()[0])


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """Hyper-parameters every method shares.

    `weight_decay` is coupled: `weight_decay * x` is added to the gradient on every parameter, before any
    momentum, with x the parameters before the step (paper-protocol, section 1). `local_steps` gradient
    steps are taken in a round before the exchange.

    A `round` does only element-wise operations on `[*agents, d]`, beside what it asks for (`Norm` reduces
    along the last axis), so that `[n, d]` gives bit for bit what n separate `[d]` would, and what its blocks
    of columns would. It does not write to what it is given.
    """

    weight_decay: float = option(0.0, "coupled: weight_decay * x is added to every gradient")
    local_steps: int = option(1, "gradient steps in a round, before its exchange")

    source: ClassVar[str]
    """Where the method is published."""
    messages: ClassVar[int] = 1
    """Model-sized vectors in one exchange, at most."""
    needs_mean: ClassVar[bool] = False
    """Whether the method asks for exact averages over all agents."""
    needs_symmetric: ClassVar[bool] = False
    """Whether the method converges for a static, symmetric W only. Nobody refuses others."""
    needs_exact_sums: ClassVar[bool] = False
    """Whether the method keeps a quantity whose sum over agents must stay exact (a tracker, a correction): a
    mix that happens at one end of an edge only spoils it for good."""
    needs_full_gradient: ClassVar[bool] = False
    """Whether the method asks for gradients on all samples of an agent."""
    centralised: ClassVar[bool] = False
    """Whether every gradient is averaged exactly, as if all data lay in one place, so that all agents
    always hold the same model."""
    multi_step: ClassVar[bool] = True
    """Whether the method is defined for several local steps in a round."""

    def __post_init__(self) -> None:
        self.require(0 <= self.weight_decay < math.inf, "weight_decay", "0 or more")
        self.require(self.local_steps >= 1, "local_steps", "1 or more")
        self.require(self.multi_step or self.local_steps == 1, "local_steps", "1 with this method")
        for each in fields(self):
            if choices := each.metadata.get("choices"):
                allowed = " or ".join(map(str, choices))
                self.require(getattr(self, each.name) in choices, each.name, allowed)

    def require(self, holds: bool, key: str, expected: str) -> None:
        """Raise `ConfigError` naming a hyper-parameter and what was expected of it."""
        if not holds:
            raise ConfigError(f"expected {expected}, found {getattr(self, key)}", key=f"algorithm.{key}")

    @property
    def model_exchange(self) -> int | None:
        """Which exchange of a round, from 0, has the model as its first vector; None if none has."""
        return 0

    @abstractmethod
    def init(self, x: Tensor) -> State:
        """The state before the first round, for parameters `x: [*agents, d]`."""

    def adopt(self, x: Tensor, theirs: State) -> State:
        """The state of an agent that joins a run with another's model `x` and state `theirs`: the same, where
        it estimates what is common to all agents, as momentum does. A method that keeps what is an agent's
        own, such as its last gradient, starts that afresh, so that what holds for the sum over agents still
        does."""
        return theirs

    @abstractmethod
    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        """One round: `lrs` holds the learning rate of each local step. Returns the new x and state."""

    def gradient(self, x: Tensor, step: int) -> Program[Tensor]:
        """Stochastic gradient with coupled weight decay: g + weight_decay * x."""
        g = yield from gradient(x, step)
        return axpy(self.weight_decay, x, g) if self.weight_decay else g

    def exchange(self, x: Tensor) -> Program[Tensor]:
        """The model after the exchange that ends a round: sum_j w_ij x_j."""
        return (yield from mix(x))

    def describe(self) -> dict[str, str]:
        """Hyper-parameters by name, as every agent of a network must have them."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        floats = {each.name for each in fields(self) if each.type == "float"}
        return {name: str(float(value) if name in floats else value) for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class Centralised(Algorithm):
    """Mixed into a decentralised method: the same with exactly averaged gradients and without gossip.

    All agents hold the same model, that of one agent with everyone's mini-batches.
    """

    needs_mean = True
    centralised = True

    @property
    def model_exchange(self) -> int | None:
        return None

    def gradient(self, x: Tensor, step: int) -> Program[Tensor]:
        g = yield from super().gradient(x, step)
        return (yield from mean(g))

    def exchange(self, x: Tensor) -> Program[Tensor]:
        yield from ()
        return x

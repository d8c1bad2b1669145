"""What a round of an algorithm asks of the world.

One definition of each algorithm serves the agent on a network (`x: [d]`) and the simulator of n agents
(`x: [n, d]`). It is a generator for *one* round that yields these requests and is sent the answers; the
simulator answers `Mix` with `W @ v`, an agent with an exchange among neighbours. The helper generators
`gradient`, `mix`, `mean` and `norm` make a request read like an assignment: ``x = yield from mix(x)``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Gradient:
    """Stochastic gradient of each agent's own loss at `x: [*agents, d]`.

    `step` is the local step within the round, so that two gradients of one step (sharpness-aware methods)
    see the same mini-batch. With `full` it is the gradient over all of the agent's own samples. Answer: one
    tensor shaped like x.
    """

    x: Tensor
    step: int = 0
    full: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """One exchange with the neighbours: sum_j w_ij v_j for each vector `v: [*agents, d]`.

    Answer: as many tensors, in the same order.
    """

    vectors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """Exact average over all agents: the simulator's privilege, or a complete graph's."""

    vectors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """Euclidean norm of each agent's whole vector `v: [*agents, d]`, as `[*agents, 1]`.

    It asks nothing of others; but whoever computes a round on parts of the vectors must put them together.
    """

    vector: Tensor

    def answer(self) -> Answer:
        # Row by row: a reduction over [n, d] may sum in another order than one over [d].
        v = self.vector
        rows = v.reshape(-1, v.shape[-1])
        return (torch.stack([torch.linalg.vector_norm(row) for row in rows]).view(*v.shape[:-1], 1),)


Effect = Gradient | Mix | Mean
"""What only the world can answer."""
Answer = tuple[Tensor, ...]
T = TypeVar("T")
Program = Generator[Effect | Norm, Answer, T]


def gradient(x: Tensor, step: int = 0, *, full: bool = False) -> Program[Tensor]:
    """``g = yield from gradient(x)``"""
    (g,) = yield Gradient(x, step, full)
    return g


def mix(vector: Tensor) -> Program[Tensor]:
    """``x = yield from mix(x)``"""
    (mixed,) = yield Mix((vector,))
    return mixed


def mean(vector: Tensor) -> Program[Tensor]:
    """``g = yield from mean(g)``"""
    (average,) = yield Mean((vector,))
    return average


def norm(vector: Tensor) -> Program[Tensor]:
    """``length = yield from norm(v)``"""
    (length,) = yield Norm(vector)
    return length


def drive(program: Program[T], answer: Callable[[Effect], Answer]) -> T:
    """Run a program to its end, answering every request at once, and return what it returns."""
    try:
        effect = next(program)
        while True:
            effect = program.send(effect.answer() if isinstance(effect, Norm) else answer(effect))
    except StopIteration as stop:
        result: T = stop.value
        return result

"""An algorithm at work on functions that are given by their gradients: all agents at once, no data, no files.

For what the paper shows on vectors (consensus, toy functions, quadratics). Training a task goes through
`engine`, which runs the same definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from p2pqg.algorithms import Algorithm, Answer, Effect, Gradient, Mean, Mix, Rate, State, drive
from p2pqg.topology import Topology

from .mixing import Product, product

GradientOf = Callable[[Tensor, int], Tensor]
"""Gradients `[n, ..., d]` of the agents' functions at `x: [n, ..., d]` in a round, from 0."""


@dataclass(frozen=True, eq=False)
class Step:
    """After a round: models `x: [n, ..., d]`, what the algorithm keeps, and what was handed to the exchange
    (the models after the local step; those of before where the method exchanges nothing)."""

    x: Tensor
    state: State
    sent: Tensor


def descend(
    algorithm: Algorithm,
    topology: Topology,
    start: Tensor,
    gradient: GradientOf,
    lr: Rate | Callable[[int], Rate],
) -> Iterator[Step]:
    """The steps of an algorithm from `start: [n, ..., d]`, without end.

    Axes between the agents' and the last are runs that advance together. `lr` is one rate, one of each run
    (a tensor that broadcasts), or a function of the round.
    """
    products = [product(graph.matrix(), start.dtype, start.device) for graph in topology.graphs]
    x, state = start, algorithm.init(start)
    for round in count():
        mix = products[round % topology.period]
        sent = x

        def answer(effect: Effect, mix: Product = mix, round: int = round) -> Answer:
            nonlocal sent
            match effect:
                case Gradient(at):
                    return (gradient(at, round),)
                case Mix(vectors):
                    sent = vectors[0]
                    return tuple(mix(v.flatten(1)).view_as(v) for v in vectors)
                case Mean(vectors):
                    return tuple(v.mean(0, keepdim=True).expand_as(v) for v in vectors)

        rate = lr(round) if callable(lr) else lr
        x, state = drive(algorithm.round(x, state, (rate,)), answer)
        yield Step(x, state, sent)

"""What an exchange does to the vectors, for agents and the simulator alike.

    x_i + sum_j w_ij (x_j - x_i)

and not sum_j w_ij x_j with a weight of its own for i: what i gains from j is then what j loses to i, in
floating point too, a neighbour that is missing leaves no trace, and models that are equal stay so. Sums run
in order of the agents' names and every operation rounds by itself (no fused multiply-add, whose use depends
on a library's kernel), so one vector `[d]`, all of them `[n, d]` and blocks of their columns come out the
same bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from p2pqg.gossip.edge import Contribution
from p2pqg.wire.tensors import WIRE_DTYPES, tensor

Weight = float | Tensor
"""Of an edge; for stacked vectors `[n, 1]`."""


def pulled(x: Tensor, pulls: Iterable[tuple[Weight, Tensor]]) -> Tensor:
    """x + sum, in the given order, of weight * difference. The differences, shaped like x, are used up."""
    total: Tensor | None = None
    for weight, difference in pulls:
        pull = difference.mul_(weight)
        total = pull if total is None else total.add_(pull)
    return x.clone() if total is None else total.add_(x)


def mixed(x: Tensor, contributions: Iterable[Contribution], wire: str) -> Tensor:
    """Apply committed pair updates, in order of names, to own vectors `x: [k * d]`.

    What is added is w_ij (Q_j - Q_i), where Q are the vectors as they crossed the wire, own ones included, so
    that rounding cancels in the sum over agents.
    """
    return pulled(
        x,
        (
            (contribution.weight, _difference(contribution, wire, x.dtype))
            for contribution in contributions
            if contribution.weight  # the sending end of a directed edge has none
        ),
    )


def disagreement(contributions: Iterable[Contribution], wire: str) -> float:
    """How far the neighbours' vectors were from the own: max_j ||Q_j - Q_i|| / ||Q_i||, 0 for none."""
    furthest = 0.0
    for contribution in contributions:
        if contribution.weight:
            dtype = torch.promote_types(WIRE_DTYPES[wire], torch.float32)
            own = _vector(contribution.own, wire).to(dtype).norm()
            apart = _difference(contribution, wire, dtype).norm()
            furthest = max(furthest, float(apart) / max(float(own), math.ulp(1.0)))
    return furthest


def _difference(contribution: Contribution, wire: str, dtype: torch.dtype) -> Tensor:
    return _vector(contribution.theirs, wire).to(dtype) - _vector(contribution.own, wire).to(dtype)


def _vector(payload: memoryview, wire: str) -> Tensor:
    return tensor(payload, wire, len(payload) // WIRE_DTYPES[wire].itemsize)

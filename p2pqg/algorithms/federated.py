"""Methods with a server, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pqg.algorithms.base import Algorithm, Rate, State, axpy, option
from p2pqg.algorithms.effects import Mean, Program, gradient


@dataclass(frozen=True, kw_only=True)
class MimeLite(Algorithm):
    """A server's momentum s, frozen in local steps: x' = mean_j (x - lr ((1 - beta) g_j + beta s)).

        y  = x, and in every local step  y = y - lr ((1 - beta) g(y) + beta s)
        s' = beta s + (1 - beta) mean_j grad f_j(x)         on all own samples, at the x of the round's start
        x' = mean_j y_j

    Everyone takes part in every round. On a star with the server in its middle the average costs what an
    exchange does: y and the gradient up, x' and s' down. Its learning rate is 1 / (1 - beta) times that of
    methods whose momentum is m = beta m + g.
    """

    beta: float = option(0.9, "momentum factor")

    source = "Karimireddy et al. 2020; Lin et al. 2021, Algorithm 4"
    messages = 2
    needs_mean = True
    needs_full_gradient = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.beta < 1, "beta", "a number in [0, 1)")

    def init(self, x: Tensor) -> State:
        return {"s": torch.zeros_like(x)}

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        s = state["s"]
        full = yield from gradient(x, full=True)
        if self.weight_decay:
            full = axpy(self.weight_decay, x, full)
        for step, lr in enumerate(lrs):
            g = yield from self.gradient(x, step)
            x = axpy(-lr, torch.lerp(g, s, self.beta), x)
        x, full = yield Mean((x, full))
        return x, {"s": torch.lerp(full, s, self.beta)}

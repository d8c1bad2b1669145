"""Local momentum with something more exchanged: buffers, gradients, or now and then exact averages.

The rows of Table 5 of Lin et al. 2021 that pay for agreeing on a direction; paper-protocol, sections 1 and
1.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pqg.algorithms.base import Rate, State, axpy, first_count, option, read_count
from p2pqg.algorithms.effects import Program, mean, mix
from p2pqg.algorithms.momentum import DSGDm


@dataclass(frozen=True, kw_only=True)
class BufferMixed(DSGDm):
    """DSGDm whose buffers are mixed on the graph: m = sum_j w_ij (beta m_j + g_j).

    The paper does not say whether a step takes the buffer after the mixing or before. `step_with` "mixed" is
    our reading of it, with an exchange in every local step; "own" is Yu et al.'s order, in which buffer and
    model are mixed after the step (once a round, whatever the number of local steps).
    """

    step_with: str = option(
        "mixed", "the buffer a step takes: the mixed one, or the own before it is mixed", "mixed", "own"
    )

    source = "Yu et al. 2019; Lin et al. 2021, Table 5"

    @property
    def model_exchange(self) -> int | None:
        return self.local_steps if self.step_with == "mixed" else 0

    def share(self, m: Tensor) -> Program[Tensor]:
        """The buffer after it has been exchanged."""
        return (yield from mix(m))

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        m = state["m"]
        for step, lr in enumerate(lrs):
            g = yield from self.gradient(x, step)
            m = axpy(self.beta, m, g)
            if self.step_with == "mixed":
                m = yield from self.share(m)
            x = axpy(-lr, self.direction(g, m), x)
        x = yield from self.exchange(x)
        if self.step_with == "own":
            m = yield from self.share(m)
        return x, {"m": m}


@dataclass(frozen=True, kw_only=True)
class BufferAveraged(BufferMixed):
    """DSGDm whose buffers are averaged over all agents: m = mean_j (beta m_j + g_j)."""

    needs_mean = True

    def share(self, m: Tensor) -> Program[Tensor]:
        return (yield from mean(m))


@dataclass(frozen=True, kw_only=True)
class GradientMixed(DSGDm):
    """DSGDm whose gradients are mixed on the graph before anything else: g = sum_j w_ij g_j."""

    source = "Lin et al. 2021, Table 5"

    @property
    def model_exchange(self) -> int | None:
        return self.local_steps

    def gradient(self, x: Tensor, step: int) -> Program[Tensor]:
        g = yield from super().gradient(x, step)
        return (yield from mix(g))


@dataclass(frozen=True, kw_only=True)
class SlowMo(DSGDm):
    """DSGDm; every tau rounds s = slow_beta s + (z - mean_j x_j) / lr, x = z = z - slow_lr lr s.

    z is the model after the last such step, the initial model at first. The local momentum is kept across it.
    In `form` "released" it falls into rounds t = 0, tau, 2 tau, ... (from 0), so that the very first
    with slow_lr 1 only averages; in "printed" (Algorithm 5) after every tau rounds.
    """

    tau: int = option(12, "rounds from one slow step to the next")
    slow_beta: float = option(0.7, "momentum factor of the slow steps")
    slow_lr: float = option(1.0, "learning rate of the slow steps, in units of lr")
    form: str = option(
        "released",
        "the first slow step in the first round as in the released code, or after tau as printed",
        "released",
        "printed",
    )

    source = "Wang et al. 2020; Lin et al. 2021, Algorithm 5"
    needs_mean = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.tau >= 1, "tau", "1 or more")
        self.require(0 <= self.slow_beta < 1, "slow_beta", "a number in [0, 1)")
        self.require(self.slow_lr > 0, "slow_lr", "a positive number")

    def init(self, x: Tensor) -> State:
        fast = super().init(x)
        return {**fast, "z": x.clone(), "s": torch.zeros_like(x), "rounds": first_count(x)}

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        x, fast = yield from super().round(x, state, lrs)
        t = read_count(state["rounds"]) + (self.form == "printed")
        z, s = state["z"], state["s"]
        if t % self.tau == 0:
            average = yield from mean(x)
            lr = lrs[-1]
            s = axpy(self.slow_beta, s, (z - average).div_(lr))
            x = z = axpy(-self.slow_lr * lr, s, z)
        return x, {**fast, "z": z, "s": s, "rounds": state["rounds"] + 1}

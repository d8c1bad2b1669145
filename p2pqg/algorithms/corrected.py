"""Methods that correct agents' steps by earlier ones: gradient tracking, D2, D2+ and DMSGD.

All exchange what a single gradient step made, so they have one local step in a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pqg.algorithms.base import Algorithm, Rate, State, axpy, option
from p2pqg.algorithms.effects import Mix, Program
from p2pqg.algorithms.momentum import Momentum


class StartsAfresh(Algorithm):
    """Mixed into methods whose whole state is an agent's own."""

    def adopt(self, x: Tensor, theirs: State) -> State:
        return self.init(x)


@dataclass(frozen=True, kw_only=True)
class GradientTracking(StartsAfresh, Momentum):
    """Steps along y, which tracks the mean gradient: y = sum_j w_ij y_j + g - g_prev.

        m = beta m + y,  x' = sum_j w_ij x_j - lr m

    In the order of the released code: x and y are mixed together, then the step is taken along the *own* y
    as it was before that mixing (Nesterov: y + beta m). y is g at the start.
    """

    source = "Pu & Nedić 2020; Lin et al. 2021, Table 2"
    messages = 2
    needs_exact_sums = True
    multi_step = False

    def init(self, x: Tensor) -> State:
        names = ("y", "g", "m") if self.beta else ("y", "g")
        return {name: torch.zeros_like(x) for name in names}

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        (lr,) = lrs
        g = yield from self.gradient(x, 0)
        y = (state["y"] - state["g"]).add_(g)
        x, mixed = yield Mix((x, y))
        kept = {"y": mixed, "g": g}
        if not self.beta:
            return axpy(-lr, y, x), kept
        m = axpy(self.beta, state["m"], y)
        return axpy(-lr, self.direction(y, m), x), kept | {"m": m}


@dataclass(frozen=True, kw_only=True)
class D2(StartsAfresh, Algorithm):
    """x' = sum_j w_ij (2 x - x_prev - lr (g - g_prev))_j; at the start x' = sum_j w_ij (x - lr g)_j.

    Converges for a static symmetric W whose smallest eigenvalue is above -1/3, which is exactly that of a
    ring of an even number of agents, and for a constant learning rate: after a decay the step x - x_prev is
    still one of the old rate. State: `d` = x_prev - x and the last gradient.
    """

    source = "Tang et al. 2018; Lin et al. 2021, footnote 8"
    needs_symmetric = True
    needs_exact_sums = True
    multi_step = False

    def unit(self, lr: Rate) -> Rate:
        """What displacements are kept in units of."""
        return 1.0

    def init(self, x: Tensor) -> State:
        return {"d": torch.zeros_like(x), "g": torch.zeros_like(x)}

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        (lr,) = lrs
        g = yield from self.gradient(x, 0)
        half = axpy(-lr, g - state["g"], axpy(-self.unit(lr), state["d"], x))
        mixed = yield from self.exchange(half)
        return mixed, {"d": (x - mixed).div_(self.unit(lr)), "g": g}


@dataclass(frozen=True, kw_only=True)
class D2Plus(D2):
    """D2 for rates that change: x' = sum_j w_ij (x - lr ((x_prev - x) / lr_prev + g - g_prev))_j.

    State: `d` = (x_prev - x) / lr_prev and the last gradient.
    """

    source = "Lin et al. 2021, footnote 9"

    def unit(self, lr: Rate) -> Rate:
        return lr


@dataclass(frozen=True, kw_only=True)
class DMSGD(StartsAfresh, Algorithm):
    """x' = v - lr g + beta (z - z_prev), v = sum_j w_ij x_j, z = mu x + (1 - mu) v; option 2: x - lr g + ...

    Algorithm 6, the original. Algorithm 8, in which the paper compares it with QG-DSGDm, is another method:
    it takes the gradient at v. `option` 1 is Table 5's. The paper tunes mu and prints no value; ours is the
    middle. Before the first round x and v are taken as the initial model, so that z_prev is, too.
    """

    beta: float = option(0.9, "momentum factor")
    mu: float = option(0.5, "share of the own model's movement in the momentum; 1 - mu the neighbourhood's")
    option: int = option(1, "the model a step starts from: 1 the mixed one v, 2 the own x", 1, 2)

    source = "Balu et al. 2020; Lin et al. 2021, Algorithm 6"
    multi_step = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.beta < 1, "beta", "a number in [0, 1)")
        self.require(0 <= self.mu <= 1, "mu", "a number in [0, 1]")

    def init(self, x: Tensor) -> State:
        return {"z": x.clone()}

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        (lr,) = lrs
        g = yield from self.gradient(x, 0)
        v = yield from self.exchange(x)
        z = torch.lerp(v, x, self.mu)
        start = axpy(-lr, g, v if self.option == 1 else x)
        return axpy(self.beta, z - state["z"], start), {"z": z}

"""Decentralised SGD, its local momentum variants, and their centralised reference.

Formulas: Lin et al. 2021, section 3.1 (DSGD) and Algorithm 1 (DSGDm); paper-protocol, section 1. Nesterov
is PyTorch's form, m = beta m + g and direction g + beta m; there is no dampening.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pqg.algorithms.base import Algorithm, Centralised, Rate, State, axpy, option
from p2pqg.algorithms.effects import Program


@dataclass(frozen=True, kw_only=True)
class DSGD(Algorithm):
    """x' = sum_j w_ij (x_j - lr g_j)."""

    source = "Lin et al. 2021, section 3.1"

    def init(self, x: Tensor) -> State:
        return {}

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        for step, lr in enumerate(lrs):
            g = yield from self.gradient(x, step)
            x = axpy(-lr, g, x)
        x = yield from self.exchange(x)
        return x, state


@dataclass(frozen=True, kw_only=True)
class Momentum(Algorithm):
    """Hyper-parameters of a method with a momentum factor `beta`, heavy-ball or Nesterov."""

    beta: float = option(0.9, "momentum factor")
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.beta < 1, "beta", "a number in [0, 1)")

    def direction(self, g: Tensor, m: Tensor) -> Tensor:
        """m for heavy-ball, g + beta m for Nesterov."""
        return axpy(self.beta, m, g) if self.nesterov else m


@dataclass(frozen=True, kw_only=True)
class DSGDm(Momentum):
    """Local momentum, never mixed: m = beta m + g, x' = sum_j w_ij (x_j - lr m_j)."""

    source = "Lin et al. 2021, Algorithm 1"

    def init(self, x: Tensor) -> State:
        return {"m": torch.zeros_like(x)}

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        m = state["m"]
        for step, lr in enumerate(lrs):
            g = yield from self.gradient(x, step)
            m = axpy(self.beta, m, g)
            x = axpy(-lr, self.direction(g, m), x)
        x = yield from self.exchange(x)
        return x, {"m": m}


@dataclass(frozen=True, kw_only=True)
class SGD(Centralised, DSGD):
    """Centralised: x' = x - lr mean_j g_j."""

    source = "the centralised baseline of Lin et al. 2021"


@dataclass(frozen=True, kw_only=True)
class SGDm(Centralised, DSGDm):
    """Centralised: m = beta m + mean_j g_j, x' = x - lr m.

    The upper bound of the paper's tables ("SGDm-N (centralized)").
    """

    source = "Lin et al. 2021, tables 1, 3 and 5"

"""Quasi-global momentum (Lin et al. 2021, Algorithm 1, equations 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pqg.algorithms.base import Rate, State, axpy
from p2pqg.algorithms.effects import Program, mix
from p2pqg.algorithms.momentum import Momentum


@dataclass(frozen=True, kw_only=True)
class QGDSGDm(Momentum):
    """Momentum along the direction in which the *mixed* models moved, not along own gradients.

        m   = beta m_hat + g                      line 5
        x'  = sum_j w_ij (x_j - lr m_j)           lines 6, 7; Nesterov: x_j - lr (g_j + beta m_j)
        d   = (x - x') / lr                       line 8, equation 2, lr of this round
        m_hat' = mu m_hat + (1 - mu) d            line 9

    `mu` follows beta unless set. With H local steps m_hat is frozen during them and d is divided by the sum
    of their learning rates. State: `m_hat: [*agents, d]`, 0 at the start.
    """

    mu: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.mu is None or 0 <= self.mu < 1, "mu", "a number in [0, 1)")

    @property
    def buffer_factor(self) -> float:
        """mu, or beta where mu is not set."""
        return self.beta if self.mu is None else self.mu

    def init(self, x: Tensor) -> State:
        return {"m_hat": torch.zeros_like(x)}

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        mu, m_hat, start = self.buffer_factor, state["m_hat"], x
        for step, lr in enumerate(lrs):
            g = yield from self.gradient(x, step)
            m = axpy(self.beta, m_hat, g)
            x = axpy(-lr, self.direction(g, m), x)
        x = yield from mix(x)
        d = (start - x).mul_((1 - mu) / sum(lrs))  # (1 - mu) d
        return x, {"m_hat": axpy(mu, m_hat, d)}

    def describe(self) -> dict[str, str]:
        return super().describe() | {"mu": str(float(self.buffer_factor))}

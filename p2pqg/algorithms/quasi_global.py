"""Quasi-global momentum (Lin et al. 2021, Algorithms 1 and 3), and what it is for a single agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pqg.algorithms.base import Algorithm, Centralised, Rate, State, axpy, first_count, option, read_count
from p2pqg.algorithms.effects import Program
from p2pqg.algorithms.momentum import Momentum


@dataclass(frozen=True, kw_only=True)
class QGDSGDm(Momentum):
    """Momentum along the way the *mixed* models moved: m_hat' = mu m_hat + (1 - mu) (x - x') / lr.

        m   = beta m_hat + g                      line 5
        x'  = sum_j w_ij (x_j - lr m_j)           lines 6, 7; Nesterov: x_j - lr (g_j + beta m_j)
        d   = (x - x') / lr                       line 8, equation 2, lr of this round
        m_hat' = mu m_hat + (1 - mu) d            line 9

    `mu` follows beta unless set. With H local steps m_hat is frozen during them and d is divided by the sum
    of their learning rates. State: `m_hat: [*agents, d]`, 0 at the start.

    With `tau` > 1, m_hat follows only every tau rounds. `form` "released" (Table 8's numbers) takes the mean
    of the last tau d, in rounds t = 0, tau, 2 tau, ... (from 0), so that the first is one d divided by tau;
    it keeps their sum, a vector more. "printed" (Algorithm 3) takes the last d alone, in rounds
    t = tau - 1, 2 tau - 1, ...
    """

    mu: float | None = option(None, "factor of the buffer m_hat; none: beta")
    tau: int = option(1, "rounds from one refresh of m_hat to the next")
    form: str = option(
        "released",
        "with tau > 1: the mean displacement of the released code, or Algorithm 3's last one as printed",
        "released",
        "printed",
    )

    source = "Lin et al. 2021, Algorithms 1 and 3"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.mu is None or 0 <= self.mu < 1, "mu", "a number in [0, 1)")
        self.require(self.tau >= 1, "tau", "1 or more")

    @property
    def buffer_factor(self) -> float:
        """mu, or beta where mu is not set."""
        return self.beta if self.mu is None else self.mu

    def init(self, x: Tensor) -> State:
        state = {"m_hat": torch.zeros_like(x)}
        if self.tau > 1:
            state["rounds"] = first_count(x)
            if self.form == "released":
                state["moved"] = torch.zeros_like(x)
        return state

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        m_hat, start = state["m_hat"], x
        for step, lr in enumerate(lrs):
            g = yield from self.gradient(x, step)
            m = axpy(self.beta, m_hat, g)
            x = axpy(-lr, self.direction(g, m), x)
        x = yield from self.exchange(x)
        moved = start - x
        if self.tau > 1:
            return x, self.follow_in_turn(moved, sum(lrs), state)
        return x, {"m_hat": self.follow(moved, sum(lrs), m_hat)}

    def follow(self, moved: Tensor, lr: Rate, m_hat: Tensor) -> Tensor:
        """mu m_hat + (1 - mu) moved / lr; `moved` is used up."""
        mu = self.buffer_factor
        return axpy(mu, m_hat, moved.mul_((1 - mu) / lr))

    def follow_in_turn(self, moved: Tensor, lr: Rate, state: State) -> State:
        """The state after a round where not every round refreshes the buffer."""
        t, m_hat = read_count(state["rounds"]), state["m_hat"]
        counted = {"rounds": state["rounds"] + 1}
        if self.form == "printed":
            due = (t + 1) % self.tau == 0
            return {"m_hat": self.follow(moved, lr, m_hat) if due else m_hat, **counted}
        total = moved.div_(lr).add_(state["moved"])
        if t % self.tau:
            return {"m_hat": m_hat, "moved": total, **counted}
        return {"m_hat": self.follow(total, self.tau, m_hat), "moved": torch.zeros_like(total), **counted}

    def describe(self) -> dict[str, str]:
        return super().describe() | {"mu": str(float(self.buffer_factor))}


@dataclass(frozen=True, kw_only=True)
class QGSGDm(Centralised, QGDSGDm):
    """Quasi-global momentum of a single worker, or of several that average every gradient.

    Heavy-ball QG-SGDm is `QHM`; with mu = 0 it is SGDm. The paper says the same of QG-SGDm-N and SGDm-N,
    but for a gradient taken ahead (B.3.3); the released code does not look ahead, and then it does not hold.
    """

    source = "Lin et al. 2021, section 4.2 and B.3"


@dataclass(frozen=True, kw_only=True)
class QHM(Centralised, Algorithm):
    """Quasi-hyperbolic momentum: m' = beta m + (1 - beta) g, x' = x - lr ((1 - nu) g + nu m').

    QG-SGDm with factors beta and mu (section 4.2) is QHM with the factor b = mu + (1 - mu) beta,
    nu = 1 - mu (1 - beta) / b and the learning rate lr / (1 - beta). The defaults are those its authors
    recommend.
    """

    beta: float = option(0.999, "momentum factor")
    nu: float = option(0.7, "weight of the momentum in a step; 1 - nu that of the gradient")

    source = "Ma & Yarats 2019; Lin et al. 2021, equation 5"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.beta < 1, "beta", "a number in [0, 1)")
        self.require(0 <= self.nu <= 1, "nu", "a number in [0, 1]")

    def init(self, x: Tensor) -> State:
        return {"m": torch.zeros_like(x)}

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        m = state["m"]
        for step, lr in enumerate(lrs):
            g = yield from self.gradient(x, step)
            m = torch.lerp(g, m, self.beta)
            x = axpy(-lr, torch.lerp(g, m, self.nu), x)
        x = yield from self.exchange(x)
        return x, {"m": m}

"""Adam, decentralised and with quasi-global moments (Lin et al. 2021, Algorithm 2 and Table 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pqg.algorithms.base import Algorithm, Centralised, Rate, State, first_count, option, read_count
from p2pqg.algorithms.effects import Program, norm


@dataclass(frozen=True, kw_only=True)
class Moments(Algorithm):
    """Hyper-parameters of a method with Adam's two moments."""

    beta1: float = option(0.9, "factor of the first moment")
    beta2: float = option(0.999, "factor of the second moment; the paper says 0.99, its released code 0.999")
    eps: float = option(1e-8, "added to the root of the second moment")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.beta1 < 1, "beta1", "a number in [0, 1)")
        self.require(0 <= self.beta2 < 1, "beta2", "a number in [0, 1)")
        self.require(self.eps > 0, "eps", "a positive number")

    def init(self, x: Tensor) -> State:
        return {"m": torch.zeros_like(x), "v": torch.zeros_like(x), "steps": first_count(x)}

    def second(self, g: Tensor, v: Tensor) -> Tensor:
        """beta2 v + (1 - beta2) g g."""
        return (v * self.beta2).addcmul_(g, g, value=1 - self.beta2)

    def step(self, x: Tensor, m: Tensor, v: Tensor, lr: Rate, t: int) -> Tensor:
        """Step t (from 1) with both moments corrected for their start at 0:
        x - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)."""
        root = (v / (1 - self.beta2**t)).sqrt_().add_(self.eps)
        return x - (m / root).mul_(lr / (1 - self.beta1**t))


@dataclass(frozen=True, kw_only=True)
class DAdam(Moments):
    """Local Adam: x' = sum_j w_ij (x_j - lr m_j / (sqrt(v_j) + eps)).

        m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g g

    Both moments are corrected for their start at 0, as in Kingma & Ba; neither is ever mixed.
    """

    source = "Lin et al. 2021, Table 6"

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        m, v, steps = state["m"], state["v"], state["steps"]
        for step, lr in enumerate(lrs):
            g = yield from self.gradient(x, step)
            m, v = torch.lerp(g, m, self.beta1), self.second(g, v)
            x = self.step(x, m, v, lr, read_count(steps) + step + 1)
        x = yield from self.exchange(x)
        return x, {"m": m, "v": v, "steps": steps + len(lrs)}


@dataclass(frozen=True, kw_only=True)
class Adam(Centralised, DAdam):
    """Centralised Adam: DAdam's step with the mean gradient, without gossip."""

    source = "Kingma & Ba 2015"


@dataclass(frozen=True, kw_only=True)
class QGDAdam(Moments):
    """DAdam whose moments follow the direction in which the mixed model moved: d = (x - x') / |x - x'|.

        m  = beta1 m_hat + g,  v = beta2 v_hat + (1 - beta2) g g
        x' = sum_j w_ij (DAdam's step with m and v)_j
        m_hat' = beta1 m_hat + (1 - beta1) d,  v_hat' = beta2 v_hat + (1 - beta2) d d

    The norm is that of the whole model, plus 1e-8. `form`:

        released  as above, with the gradient's factor 1 and bias correction: Table 6's numbers
        printed   Algorithm 2: m = beta1 m_hat + (1 - beta1) g, no bias correction, m / sqrt(v + eps), and
                  nothing added to the norm
        v2        what the released code's option selects today: m = beta1 m + (1 - beta1) g is local and
                  never sees d, only v is quasi-global

    A third form of the released code, v1, normalises gradients filter by filter, for which a flat vector
    knows no filters; it was never selected and is left out. d has d coordinates and norm 1, so a step is
    about lr |g| / sqrt(1 + (1 - beta2) |g|^2) long: tune lr apart from Adam's. The moments are frozen in
    local steps (v2: the second).
    """

    form: str = option("released", "which of three published updates, see above", "released", "printed", "v2")

    source = "Lin et al. 2021, Algorithm 2 and Table 6"

    def round(self, x: Tensor, state: State, lrs: Sequence[Rate]) -> Program[tuple[Tensor, State]]:
        m_hat, v_hat, steps, start = state["m"], state["v"], state["steps"], x
        for step, lr in enumerate(lrs):
            g = yield from self.gradient(x, step)
            v = self.second(g, v_hat)
            if self.form == "released":
                m = torch.add(g, m_hat, alpha=self.beta1)
            else:
                m = torch.lerp(g, m_hat, self.beta1)
            if self.form == "printed":
                x = x - (m / (v + self.eps).sqrt_()).mul_(lr)
            else:
                x = self.step(x, m, v, lr, read_count(steps) + step + 1)
            if self.form == "v2":
                m_hat = m
        x = yield from self.exchange(x)
        moved = start - x
        length = yield from norm(moved)
        if self.form == "printed":
            d = moved / length.clamp_min(torch.finfo(moved.dtype).tiny)  # where nothing moved, 0
        else:
            d = moved / (length + 1e-8)
        if self.form != "v2":
            m_hat = torch.lerp(d, m_hat, self.beta1)
        return x, {"m": m_hat, "v": self.second(d, v_hat), "steps": steps + len(lrs)}

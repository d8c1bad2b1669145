"""How much privacy the steps of training cost: Opacus's accountants for the Poisson-subsampled Gaussian.

    g = (sum over the drawn records of clip(g_k, C) + N(0, sigma^2 C^2 I)) / (expected records)

Each record is drawn on its own with probability q (`sample_rate`). Data sets are neighbours if one has one
record more than the other; that of an agent has the same size in public all the same, for q and the
denominator say it.
"""

from __future__ import annotations

import importlib
import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from p2pqg.errors import ConfigError

Accountant = Literal["prv", "rdp"]
ACCOUNTANTS: tuple[Accountant, ...] = ("prv", "rdp")

History = tuple[tuple[float, float, int], ...]
"""Steps that were taken: (noise multiplier, sample rate, number of steps)."""

PRV_LIMIT = 20.0
"""Epsilon from which PRV gives way to RDP: its memory and time grow with epsilon, and neither protects."""

ORDERS = [1.25, 1.5, 1.75, *range(2, 64), 72, 96, 128, 192, 256, 384, 512, 768, 1024]
"""Rényi orders of the RDP accountant: up to larger ones than Opacus's, which a small epsilon needs, and
fewer fractions, which take most of its time."""

PRV_OVER_RDP = 0.5
"""Where the search for PRV's noise begins, as a share of RDP's; 0.82 was the least found in six cases."""

FIGURES = 20
"""A planned run has so many different figures of epsilon; computing one takes up to 0.3 s."""


@lru_cache(maxsize=1024)
def epsilon(history: History, delta: float, accountant: Accountant = "prv") -> float:
    """Epsilon of the (epsilon, delta) that `history` cost; an upper bound.

    PRV: Gopi, Lee & Wutschitz 2021, within 0.01, tight. RDP: Mironov et al. 2019, looser and faster. Raises
    `ConfigError` if Opacus is not installed.
    """
    history = tuple(entry for entry in history if entry[2])
    if not history:
        return 0.0
    if any(noise == 0 for noise, _, _ in history):
        return math.inf
    accountants = opacus("accountants")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        rdp = accountants.RDPAccountant()
        rdp.history = list(history)
        bound = float(rdp.get_epsilon(delta, alphas=ORDERS))
        if accountant == "rdp" or bound > PRV_LIMIT:
            return bound
        prv = accountants.PRVAccountant()
        prv.history = list(history)
        return min(bound, float(prv.get_epsilon(delta)))  # an upper bound, too


@lru_cache(maxsize=64)
def noise_multiplier(
    target: float, delta: float, sample_rate: float, steps: int, accountant: Accountant = "prv"
) -> float:
    """The least sigma, to 0.5 %, for which `steps` steps cost at most `target`.

    Raises `ConfigError` if even sigma = 10,000 costs more.
    """

    def too_much(noise: float, kind: Accountant) -> bool:
        return epsilon(((noise, sample_rate, steps),), delta, kind) > target

    def least(low: float, high: float, kind: Accountant) -> float:
        while high - low > 5e-3 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if too_much(middle, kind) else (low, middle)
        return high

    high = 1.0
    while too_much(high, "rdp"):
        high *= 2
        if high > 1e4:
            raise ConfigError(
                f"expected an epsilon that {steps} steps can keep to, found {target}",
                key="privacy.target_epsilon",
            )
    loose = least(0.0, high, "rdp")  # PRV takes longer, and asks for a little less noise
    return loose if accountant == "rdp" else least(PRV_OVER_RDP * loose, loose, "prv")


@dataclass(frozen=True)
class Mechanism:
    """One agent's way of making gradients private, and its budget.

    `planned` is the number of steps of the whole run. `budget` is the epsilon at which the agent stops; None
    counts without an end.
    """

    max_grad_norm: float
    noise_multiplier: float
    sample_rate: float
    delta: float
    planned: int
    budget: float | None = None
    accountant: Accountant = "prv"

    def epsilon(self, steps: int, before: History = ()) -> float:
        """What `steps` steps cost after those `before`."""
        return epsilon(
            (*before, (self.noise_multiplier, self.sample_rate, steps)), self.delta, self.accountant
        )

    def shown(self, steps: int, before: History = ()) -> float:
        """`epsilon`, but with `steps` rounded up to a twentieth of the planned ones, so that a figure for
        every round costs little: never too small."""
        stride = max(1, self.planned // FIGURES)
        return self.epsilon(-(-steps // stride) * stride, before)

    def affordable(self, before: History = ()) -> int:
        """Steps within the budget after those `before`: the most, or up to 1 % fewer where that is more than
        planned. Without a budget 2^62."""
        if self.budget is None:
            return 1 << 62
        low, high = 0, max(1, self.planned)
        while self.epsilon(high, before) <= self.budget:
            low, high = high, 2 * high
        while high - low > max(1, (low - self.planned) // 100):
            middle = (low + high) // 2
            if self.epsilon(middle, before) <= self.budget:
                low = middle
            else:
                high = middle
        return low


def opacus(module: str) -> Any:
    """A module of Opacus, which takes seconds to import. Raises `ConfigError` if it is not installed."""
    try:
        return importlib.import_module(f"opacus.{module}")
    except ImportError as error:
        raise ConfigError(
            "differential privacy needs Opacus, of the extra privacy: "
            f"pip install 'p2pqg[privacy]' ({error})",
            key="privacy.dp",
        ) from error

"""Optimisation methods, each defined once for a device on a network and for n simulated ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from p2pqg.algorithms.base import Algorithm, Rate, State
from p2pqg.algorithms.effects import Answer, Effect, Gradient, Mean, Mix, Program, drive, gradient, mean, mix
from p2pqg.algorithms.momentum import DSGD, DSGDm, SGDm
from p2pqg.algorithms.quasi_global import QGDSGDm
from p2pqg.errors import ConfigError

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "dsgd": DSGD,
    "dsgdm": DSGDm,
    "dsgdm-n": partial(DSGDm, nesterov=True),
    "qg-dsgdm": QGDSGDm,
    "qg-dsgdm-n": partial(QGDSGDm, nesterov=True),
    "sgd": partial(SGDm, beta=0.0),
    "sgdm": SGDm,
    "sgdm-n": partial(SGDm, nesterov=True),
}
"""Methods by their name in the paper's tables; a name fixes what it says (nesterov, momentum or none)."""


def build(name: str, **hyper_parameters: Any) -> Algorithm:
    """The named algorithm. Raises `ConfigError` for an unknown name, or one that does not take a
    hyper-parameter (a None means: leave the default)."""
    if name not in ALGORITHMS:
        raise ConfigError(f"expected one of {', '.join(ALGORITHMS)}, found {name!r}", key="algorithm.name")
    entry = ALGORITHMS[name]
    kind, fixed = (entry.func, entry.keywords) if isinstance(entry, partial) else (entry, {})
    allowed = {field.name for field in fields(kind)} - set(fixed) - {"nesterov"}  # type: ignore[arg-type]
    given = {key: value for key, value in hyper_parameters.items() if value is not None}
    for key in given:
        if key not in allowed:
            raise ConfigError(f"{name} takes {', '.join(sorted(allowed))}, found {key}", key="algorithm")
    return entry(**given)


__all__ = [
    "ALGORITHMS",
    "DSGD",
    "Algorithm",
    "Answer",
    "DSGDm",
    "Effect",
    "Gradient",
    "Mean",
    "Mix",
    "Program",
    "QGDSGDm",
    "Rate",
    "SGDm",
    "State",
    "build",
    "drive",
    "gradient",
    "mean",
    "mix",
]

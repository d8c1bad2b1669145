"""Optimisation methods, each defined once for a device on a network and for n simulated ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, fields
from functools import partial
from typing import Any

from p2pqg.algorithms.adam import Adam, DAdam, QGDAdam
from p2pqg.algorithms.base import Algorithm, Rate, State
from p2pqg.algorithms.corrected import D2, DMSGD, D2Plus, GradientTracking
from p2pqg.algorithms.effects import (
    Answer,
    Effect,
    Gradient,
    Mean,
    Mix,
    Norm,
    Program,
    drive,
    gradient,
    mean,
    mix,
    norm,
)
from p2pqg.algorithms.federated import MimeLite
from p2pqg.algorithms.momentum import DSGD, SGD, DSGDm, SGDm
from p2pqg.algorithms.quasi_global import QHM, QGDSGDm, QGSGDm
from p2pqg.algorithms.shared_momentum import BufferAveraged, BufferMixed, GradientMixed, SlowMo
from p2pqg.errors import ConfigError

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "dsgd": DSGD,
    "dsgdm": DSGDm,
    "dsgdm-n": partial(DSGDm, nesterov=True),
    "qg-dsgdm": QGDSGDm,
    "qg-dsgdm-n": partial(QGDSGDm, nesterov=True),
    "dadam": DAdam,
    "qg-dadam": QGDAdam,
    "dsgd-gt": partial(GradientTracking, beta=0.0),
    "dsgdm-n-gt": partial(GradientTracking, nesterov=True),
    "d2": D2,
    "d2-plus": D2Plus,
    "dmsgd-option-1": partial(DMSGD, option=1),
    "dmsgd-option-2": partial(DMSGD, option=2),
    "dsgdm-buffer-ring": BufferMixed,
    "dsgdm-n-buffer-ring": partial(BufferMixed, nesterov=True),
    "dsgdm-n-buffer-complete": partial(BufferAveraged, nesterov=True),
    "dsgdm-n-gradients-ring": partial(GradientMixed, nesterov=True),
    "slowmo": partial(SlowMo, nesterov=True),
    "mimelite": MimeLite,
    "sgd": SGD,
    "sgdm": SGDm,
    "sgdm-n": partial(SGDm, nesterov=True),
    "qg-sgdm": QGSGDm,
    "qg-sgdm-n": partial(QGSGDm, nesterov=True),
    "qhm": QHM,
    "adam": Adam,
}
"""Methods by their name in the paper's tables; a name fixes what it says (nesterov, momentum or none).

A method with a variant is "method-variant"; the ring of a variant is the graph on which models are mixed,
whichever it is. `docs/algorithms.md` has them all.
"""

_KINDS: dict[str, tuple[type, ...]] = {
    "float": (float, int),
    "float | None": (float, int),
    "int": (int,),
    "str": (str,),
}


def hyper_parameters(name: str) -> dict[str, Field[Any]]:
    """What the named algorithm can be given beside its name; each field's default and documentation."""
    entry = ALGORITHMS[name]
    kind, fixed = (entry.func, entry.keywords) if isinstance(entry, partial) else (entry, {})
    return {each.name: each for each in fields(kind) if each.name not in {*fixed, "nesterov"}}  # type: ignore[arg-type]


def build(name: str, **given: Any) -> Algorithm:
    """The named algorithm. Raises `ConfigError` for an unknown name, for one that does not take a
    hyper-parameter (a None means: leave the default), or for a value of another type."""
    if name not in ALGORITHMS:
        raise ConfigError(f"expected one of {', '.join(ALGORITHMS)}, found {name!r}", key="algorithm.name")
    allowed = hyper_parameters(name)
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        if key not in allowed:
            raise ConfigError(f"{name} takes {', '.join(sorted(allowed))}, found {key}", key="algorithm")
        kinds = _KINDS[str(allowed[key].type)]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ConfigError(f"expected {kinds[0].__name__}, found {value!r}", key=f"algorithm.{key}")
    return ALGORITHMS[name](**given)


__all__ = [
    "ALGORITHMS",
    "D2",
    "DMSGD",
    "DSGD",
    "QHM",
    "SGD",
    "Adam",
    "Algorithm",
    "Answer",
    "BufferAveraged",
    "BufferMixed",
    "D2Plus",
    "DAdam",
    "DSGDm",
    "Effect",
    "Gradient",
    "GradientMixed",
    "GradientTracking",
    "Mean",
    "MimeLite",
    "Mix",
    "Norm",
    "Program",
    "QGDAdam",
    "QGDSGDm",
    "QGSGDm",
    "Rate",
    "SGDm",
    "SlowMo",
    "State",
    "build",
    "drive",
    "gradient",
    "hyper_parameters",
    "mean",
    "mix",
    "norm",
]

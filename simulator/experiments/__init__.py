"""The paper's tables, figures and claims, each by name in a short file of its own."""

from __future__ import annotations

import importlib

from p2pqg.errors import ConfigError

from .base import Experiment

EXPERIMENTS: dict[str, str] = {
    **{f"table{k}": f"table{k}" for k in range(1, 9)},
    "figure1": "figure1",
    "figure2": "figure2",
    "figure3": "figure3",
    "figure4": "figure4",
    "figure5": "figure5",
    "figure6": "figure6",
    "figure7": "figure7",
    "figure8": "figure1",
    "figure9": "figure1",
    "figure10": "figure3",
    "figure11": "figure2",
    "figure12": "figure12",
    "figure13": "figure13",
    "figure14": "figure5",
    "figure15": "figure4",
    "figure16": "figure4",
    "figure17": "figure17",
    "figure18": "figure18",
    "theory-speedup": "theory_speedup",
    "theory-d2": "theory_d2",
    "abstract": "abstract",
}
"""Experiments by name, and the module of this package that has each as `experiment`."""


def load(name: str) -> Experiment:
    """The named experiment. Raises `ConfigError` for an unknown name."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"expected one of {', '.join(EXPERIMENTS)}, found {name!r}", where="reproduce")
    module = importlib.import_module(f".{EXPERIMENTS[name]}", __name__)
    experiment: Experiment = module.experiment
    return experiment

"""The paper's published numbers: ``results.csv``, a row for every number of its tables."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

NUMBERS = ("n", "alpha", "tau", "weight_decay", "mean", "std")
OUTCOME = ("mean", "std", "status", "note")
KEYS = ("dataset", "model", "method", "variant", "topology", "n", "alpha", "tau", "weight_decay")
"""Columns that say what was trained; an empty one is None."""


@dataclass(frozen=True)
class Published:
    """One row: test accuracy in percent, mean and standard deviation over three seeds. `status` is "ok", or
    says why there is no number."""

    table: str
    cell: Mapping[str, Any]
    mean: float | None
    std: float | None
    status: str
    note: str


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    """All rows, in the file's order."""
    text = resources.files(__package__).joinpath("results.csv").read_text(encoding="utf-8")
    return tuple(_row(row) for row in csv.DictReader(text.splitlines()))


def table(name: str) -> tuple[Published, ...]:
    """The rows of one table: "1" to "8", or "fig13"."""
    return tuple(row for row in published() if row.table == name)


def _row(row: Mapping[str, str]) -> Published:
    values: dict[str, Any] = {key: _value(key, text) for key, text in row.items()}
    if values["tau"] == 1:
        values["tau"] = None  # the method as it is
    cell = {key: values[key] for key in KEYS}
    return Published(row["table"], cell, values["mean"], values["std"], row["status"], row["note"])


def _value(key: str, text: str) -> Any:
    if key not in NUMBERS:
        return text if text or key in OUTCOME else None
    return None if not text else int(text) if key in ("n", "tau") else float(text)

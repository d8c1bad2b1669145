"""What reports are made of: one style for all pictures, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "savefig.dpi": 110,
}

PLAIN, LOCAL, QUASI_GLOBAL, OTHER = "0.45", "#d95f02", "#1b6ca8", "#c2185b"
"""Colours of methods: without momentum, with local momentum, with quasi-global momentum, any other."""

COMPLETE, RING = "#2e8b57", "#8e44ad"
"""Colours of graphs."""


@contextmanager
def canvas(
    rows: int, columns: int, width: float, height: float, **subplots: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `rows` x `columns` axes, row by row, each `width` x `height` inches, in the style."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, **subplots)
        yield figure, list(chain(*grid))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)

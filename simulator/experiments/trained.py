"""Reports of trained cells: scale by scale, and pictures of their curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .base import SHOWN_SCALES, Report, Scale
from .records import Record
from .training import Cell


def plot_curve(
    ax: Axes, cell: Cell, quantity: Callable[[Mapping[str, Any]], float], label: str, **style: Any
) -> None:
    """A quantity of the points of a cell's curves: the mean over seeds, and a band over their range."""
    curves = [run.result["curve"] for run in cell.runs]
    rounds = [point["round"] for point in curves[0]]
    values = np.array([[quantity(point) for point in curve] for curve in curves])  # [seeds, points]
    (line,) = ax.plot(rounds, values.mean(0), label=label, **style)
    ax.fill_between(rounds, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, lw=0)


def by_scale(
    name: str, records: Sequence[Record], draw: Callable[[Sequence[Record], Scale, str], Report | None]
) -> Report:
    """The parts that `draw(records, scale, file)` makes of the records of each scale."""
    parts = {scale: draw(records, scale, f"{name}-{scale}.png") for scale in SHOWN_SCALES}
    made = {scale: part for scale, part in parts.items() if part is not None}
    text = "\n\n".join(f"*{scale} scale*\n\n{part.markdown}" for scale, part in made.items())
    pictures = {file: figure for part in made.values() for file, figure in part.pictures.items()}
    return Report(text, pictures)

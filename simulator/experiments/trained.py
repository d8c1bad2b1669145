"""Reports of trained cells: scale by scale, and pictures of their curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .base import SHOWN_SCALES, Plan, Report, Scale
from .records import Record
from .training import Cell, by_precision


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
    """The parts that `draw(records, scale, file)` makes of the records of each scale and precision."""
    texts: list[str] = []
    pictures: dict[str, Figure] = {}
    for scale in SHOWN_SCALES:
        for precision, own in by_precision(records).items():
            usual = precision == Plan.precision
            part = draw(own, scale, f"{name}-{scale}{'' if usual else f'-{precision}'}.png")
            if part is not None:
                title = f"{scale} scale" if usual else f"{scale} scale, gradients in {precision}"
                texts.append(f"*{title}*\n\n{part.markdown}")
                pictures |= part.pictures
    return Report("\n\n".join(texts), pictures)

"""Figures 5 and 14: the effective step size lr / |x|² and the norm of the weights, one worker."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Report
from .presentation import canvas
from .records import Record
from .single_worker import METHODS, cells, summaries
from .trained import by_scale, plot_curve
from .training import Training


def present(records: Sequence[Record]) -> Report:
    return by_scale("figure5", records, draw)


def draw(records: Sequence[Record], scale: str, file: str) -> Report | None:
    found = list(summaries(records, scale))
    if not found:
        return None
    rows = sorted({(cell.cell["model"], cell.cell["weight_decay"]) for cell in found})
    with canvas(len(rows), 2, 3.4, 2.3) as (figure, axes):
        for (model, weight_decay), (step, norm) in zip(
            rows, zip(axes[::2], axes[1::2], strict=True), strict=True
        ):
            for cell in found:
                if (cell.cell["model"], cell.cell["weight_decay"]) == (model, weight_decay):
                    label = METHODS[cell.cell["method"]]
                    plot_curve(step, cell, lambda point: point["lr"] / point["norm"] ** 2, label)
                    plot_curve(norm, cell, lambda point: point["norm"], label)
            step.set(yscale="log", title=f"{model}, weight decay {weight_decay:g}: lr / |x|²", xlabel="step")
            norm.set(title="|x|", xlabel="step")
            step.legend()
    return Report(
        f"![Effective step sizes and weight norms]({file})\n\n"
        "**Figures 5 and 14.** Each method at its own best learning rate; lines are means over seeds, bands "
        "their range. The paper's point is the last part of training, where quasi-global momentum has the "
        "larger effective step.",
        {file: figure},
    )


experiment = Training("Figures 5 and 14: effective step size and weight norm, one worker", cells(), present)

"""Figure 6: test accuracy by number of agents on a ring; its numbers are Table 7's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from .base import Plan, Report, Scale
from .presentation import LOCAL, PLAIN, QUASI_GLOBAL, canvas
from .published import table
from .recipes import model_of
from .records import Record
from .trained import by_scale
from .training import Training, cells_of, summarise

COLOURS = {"dsgdm-n": LOCAL, "qg-dsgdm-n": QUASI_GLOBAL, "sgdm-n": PLAIN}
ROWS = table("7")


def present(records: Sequence[Record]) -> Report:
    return by_scale("figure6", records, draw)


def draw(records: Sequence[Record], scale: Scale, file: str) -> Report | None:
    plan = Plan(scale=scale)
    pairs = [
        (row, summarise({**row.cell, "model": model_of(row.cell, plan)}, scale, records)) for row in ROWS
    ]
    if len({cell.cell["n"] for _, cell in pairs if cell.runs}) < 2:
        return None
    with canvas(1, 2, 3.4, 2.6, sharey=True) as (figure, axes):
        for ax, alpha in zip(axes, (1.0, 0.1), strict=True):
            for method, colour in COLOURS.items():
                own = [
                    pair
                    for pair in pairs
                    if pair[0].cell["method"] == method and pair[0].cell["alpha"] in (alpha, None)
                ]
                paper = [(row.cell["n"], row.mean, row.std) for row, _ in own]
                bars(ax, paper, f"{method}, published", color=colour, ls=":", alpha=0.6)
                ours = [(row.cell["n"], *found) for row, cell in own if (found := cell.accuracy())]
                bars(ax, ours, f"{method}, ours", color=colour, marker="o")
            ax.set(title=f"alpha = {alpha:g}", xlabel="agents on a ring")
        axes[0].set_ylabel("test accuracy (%)")
        axes[0].legend()
    return Report(
        f"![Accuracy by number of agents]({file})\n\n**Figure 6.** The best epoch's mean accuracy of local "
        "models, mean and standard deviation over seeds.",
        {file: figure},
    )


def bars(ax: Axes, points: Sequence[tuple[Any, ...]], label: str, **style: Any) -> None:
    """Points of number of agents, mean and standard deviation (or None)."""
    if points:
        n, mean, std = zip(*points, strict=True)
        ax.errorbar(n, mean, [each or 0.0 for each in std], label=label, **style)


experiment = Training("Figure 6: numbers of agents (Table 7's numbers)", cells_of(ROWS), present)

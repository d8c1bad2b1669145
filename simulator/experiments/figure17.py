"""Figure 17: learning curves of ResNet-20 (EvoNorm) on CIFAR-10, by heterogeneity and graph."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Plan, Report, Scale
from .presentation import LOCAL, PLAIN, QUASI_GLOBAL, canvas
from .published import table
from .recipes import model_of
from .records import Record
from .trained import by_scale, plot_curve
from .training import Training, cells_of, distinct, summarise

COLOURS = {"dsgd": PLAIN, "dsgdm-n": LOCAL, "qg-dsgdm-n": QUASI_GLOBAL}
CELLS = [
    cell
    for cell in cells_of(table("1"))
    if cell["model"] == "resnet20-evonorm" and cell["topology"] in ("ring", "social")
]


def present(records: Sequence[Record]) -> Report:
    return by_scale("figure17", records, draw)


def draw(records: Sequence[Record], scale: Scale, file: str) -> Report | None:
    plan = Plan(scale=scale)
    cells = distinct([{**cell, "model": model_of(cell, plan)} for cell in CELLS])
    found = [summary for cell in cells if (summary := summarise(cell, scale, records)).runs]
    if not found:
        return None
    panels = distinct([{key: cell.cell[key] for key in ("topology", "n", "alpha")} for cell in found])
    columns = min(3, len(panels))
    with canvas(-(-len(panels) // columns), columns, 2.7, 2.3, sharey=True) as (figure, axes):
        for ax, panel in zip(axes, panels, strict=False):
            for cell in found:
                if panel.items() <= cell.cell.items():
                    method = cell.cell["method"]
                    plot_curve(
                        ax, cell, lambda point: 100 * point["mean_accuracy"], method, color=COLOURS[method]
                    )
            ax.set(title=f"{panel['topology']} of {panel['n']}, alpha = {panel['alpha']:g}", xlabel="round")
        axes[0].set_ylabel("mean test accuracy (%)")
        axes[0].legend(loc="lower right")
    return Report(
        f"![Learning curves]({file})\n\n**Figure 17.** Mean test accuracy of the local models, each method "
        "at its own best learning rate; lines are means over seeds, bands their range.",
        {file: figure},
    )


experiment = Training("Figure 17: learning curves by heterogeneity and graph", CELLS, present)

"""Figure 18: tuning the momentum factor of DSGDm-N instead of changing the method.

The paper's grid is not legible; ours is the learning rates and factors below, on the ring of 16 at alpha 0.1,
against QG-DSGDm-N with its default factor at the best of the same rates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Plan, Report, Scale
from .presentation import canvas
from .published import table
from .recipes import model_of
from .records import Record
from .trained import by_scale
from .training import Training, cells_of, of_cell, scores, summarise

FACTORS = (0.0, 0.5, 0.8, 0.9, 0.95)
RATES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
LOCAL_CELL, QG_CELL = (
    next(
        cell
        for cell in cells_of(table("1"))
        if (cell["model"], cell["method"], cell["topology"], cell["alpha"])
        == ("resnet20-evonorm", method, "ring", 0.1)
    )
    for method in ("dsgdm-n", "qg-dsgdm-n")
)
CELLS = [{**LOCAL_CELL, "beta": beta} for beta in FACTORS] + [QG_CELL]


def present(records: Sequence[Record]) -> Report:
    return by_scale("figure18", records, draw)


def draw(records: Sequence[Record], scale: Scale, file: str) -> Report | None:
    plan = Plan(scale=scale)
    cells = [{**cell, "model": model_of(cell, plan)} for cell in CELLS]
    local = [scores(of_cell(cell, scale, records)) for cell in cells[:-1]]
    best = summarise(cells[-1], scale, records).accuracy()
    if best is None or not any(local):
        return None
    gap = np.full((len(FACTORS), len(RATES)), np.nan)
    for i, done in enumerate(local):
        for j, rate in enumerate(RATES):
            own = [score for (lr, _), score in done.items() if lr == rate]
            if own and min(own) >= 0:
                gap[i, j] = 100 * np.mean(own) - best[0]
    with canvas(1, 1, 4.6, 2.8) as (figure, (ax,)):
        limit = float(np.nanmax(np.abs(gap)))
        image = ax.imshow(gap, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        ax.set(xticks=range(len(RATES)), yticks=range(len(FACTORS)), xlabel="learning rate of DSGDm-N",
               ylabel="its momentum factor")  # fmt: skip
        ax.set_xticklabels([f"{rate:g}" for rate in RATES])
        ax.set_yticklabels([f"{beta:g}" for beta in FACTORS])
        ax.grid(False)
        for (i, j), value in np.ndenumerate(gap):
            ax.text(j, i, "-" if np.isnan(value) else f"{value:+.1f}", ha="center", va="center", fontsize=7)
        figure.colorbar(image, label="points of accuracy")
    verdict = "no" if np.nanmax(gap) <= 0 else "some"
    return Report(
        f"![DSGDm-N less QG-DSGDm-N]({file})\n\n**Figure 18.** Accuracy of DSGDm-N less that of QG-DSGDm-N "
        f"with factor 0.9 at its best rate ({best[0]:.1f} %); a dash diverged or was not run. Here {verdict} "
        f"choice of rate and factor closes the gap (best {np.nanmax(gap):+.1f}).",
        {file: figure},
    )


experiment = Training("Figure 18: learning rate times momentum factor of DSGDm-N", CELLS, present, grid=RATES)

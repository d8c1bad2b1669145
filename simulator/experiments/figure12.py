"""Figure 12: learning curves of one worker, heavy-ball and Nesterov, with weight decay."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Report
from .compare import accuracy
from .presentation import canvas, table
from .records import Record
from .single_worker import METHODS, WEIGHT_DECAYS, cells, summaries
from .trained import by_scale, plot_curve
from .training import Training


def present(records: Sequence[Record]) -> Report:
    return by_scale("figure12", records, draw)


def draw(records: Sequence[Record], scale: str, file: str) -> Report | None:
    found = [cell for cell in summaries(records, scale) if cell.cell["weight_decay"] == WEIGHT_DECAYS[0]]
    if not found:
        return None
    models = sorted({cell.cell["model"] for cell in found})
    with canvas(len(models), 2, 3.4, 2.3) as (figure, axes):
        for k, model in enumerate(models):
            loss, score = axes[2 * k : 2 * k + 2]
            for cell in found:
                if cell.cell["model"] == model:
                    label = METHODS[cell.cell["method"]]
                    plot_curve(loss, cell, lambda point: point["train_loss"], label)
                    plot_curve(score, cell, lambda point: 100 * point["mean_accuracy"], label)
            loss.set(yscale="log", title=f"{model}: training loss", xlabel="step")
            score.set(title="test accuracy (%)", xlabel="step")
            score.legend()
    lines = [(cell.cell["model"], METHODS[cell.cell["method"]], accuracy(cell.accuracy())) for cell in found]
    return Report(
        f"![Learning curves of one worker]({file})\n\n**Figure 12.** Each method at its own best learning "
        f"rate; lines are means over seeds, bands their range.\n\n"
        + table(("model", "method", "best test accuracy (%)"), lines),
        {file: figure},
    )


experiment = Training(
    "Figure 12: learning curves of one worker",
    [cell for cell in cells() if cell["weight_decay"] == WEIGHT_DECAYS[0]],
    present,
)

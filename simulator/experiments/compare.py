"""Ours beside the paper's: tables in Markdown from the records of trained cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from p2pqg.tasks.precision import Precision

from .base import SHOWN_SCALES, Plan, Report, Scale
from .presentation import table as markdown
from .published import Published, table
from .recipes import DATA_SETS, Small, model_of
from .records import Record
from .training import Cell, Training, by_precision, cells_of, summarise

SHOWN = ("model", "method", "variant", "topology", "n", "alpha", "tau", "weight_decay")
SCALE_NOTES = {
    "full": "The paper's own scale.",
    "small": "Small scale: another model for fewer epochs ({recipe}), so only the order of methods is to be "
    "compared with the paper.",
}
PRECISION_NOTES: dict[Precision, str] = {
    "float32": "",
    "tf32": " Gradients and scores were computed in TF32.",
    "bfloat16": " Gradients and scores were computed in bfloat16.",
}
DATA_NOTES = {
    "cifar10-jpeg.tar.gz": "CIFAR-10 here is a JPEG-compressed copy of all 60,000 images, not the original "
    "pixels.",
    "ag_news_7600.csv": "AG News here is 7,600 real rows, a fifth of them held out, not the paper's 120,000.",
}
OURS = ("ours, best", "ours, last", "worst agent", "averaged model", "lr", "seeds")
DIFFERENCE = {"full": ["difference / published std"], "small": [], "smoke": []}


def published_cells(name: str, title: str) -> Training:
    """Training the cells of one table of ``results.csv``, to be compared with it."""
    return Training(title, cells_of(table(name)), partial(against_paper, name))


def against_paper(name: str, records: Sequence[Record]) -> Report:
    """All rows of one table of ``results.csv`` for which there are records, scale by scale."""
    parts = [
        part
        for scale in SHOWN_SCALES
        for precision, own in by_precision(records).items()
        for part in _at_scale(table(name), scale, precision, own)
    ]
    return Report("\n\n".join(parts))


def _at_scale(
    rows: Sequence[Published], scale: Scale, precision: Precision, records: Sequence[Record]
) -> Iterator[str]:
    plan = Plan(scale=scale)
    if scale == "small":  # one model stands for several of the paper's
        stands = {name: data_set.small.beside for name, data_set in DATA_SETS.items() if data_set.small}
        rows = [row for row in rows if stands.get(row.cell["dataset"]) == row.cell["model"]]
    cells = [summarise({**row.cell, "model": model_of(row.cell, plan)}, scale, records) for row in rows]
    found = [(row, cell) for row, cell in zip(rows, cells, strict=True) if cell.runs or cell.diverged]
    if not found:
        return
    recipes = [DATA_SETS[name].small for name in sorted({row.cell["dataset"] for row, _ in found})]
    text = "; ".join(_recipe(small) for small in recipes if small is not None)
    yield SCALE_NOTES[scale].format(recipe=text) + PRECISION_NOTES[precision]
    files = {run.result["settings"]["task"]["data"] for _, cell in found for run in cell.runs}
    notes = [note for file, note in DATA_NOTES.items() if file in files]
    if notes:
        yield " ".join(notes)
    yield markdown(*_columns([row for row, _ in found], [cell for _, cell in found], scale)).strip()


def _recipe(small: Small) -> str:
    more = f", {small.simplified}" if small.simplified else ""
    return f"{small.model} for {small.epochs} epochs beside {small.beside}{more}"


def _columns(
    rows: Sequence[Published], cells: Sequence[Cell], scale: Scale
) -> tuple[list[str], list[list[str]]]:
    """Keys in which the rows differ, then the numbers."""
    keys = [key for key in SHOWN if len({str(row.cell[key]) for row in rows}) > 1]
    header = [*keys, "published", *DIFFERENCE[scale], *OURS]
    lines = []
    for row, cell in zip(rows, cells, strict=True):
        ours = cell.accuracy()
        difference = "-"
        if ours is not None and row.mean is not None and row.std:
            difference = f"{(ours[0] - row.mean) / row.std:+.1f}"
        lines.append(
            [
                *(_text(row.cell[key]) for key in keys),
                accuracy((row.mean, row.std)) if row.mean is not None else row.status,
                *([difference] if DIFFERENCE[scale] else []),
                accuracy(ours) if ours else "diverged",
                accuracy(cell.accuracy(moment="last")),
                accuracy(cell.accuracy("worst_accuracy")),
                accuracy(cell.accuracy("averaged_accuracy")),
                "-" if cell.lr is None else f"{cell.lr:g}" + ("" if cell.interior else " (end of the grid)"),
                str(len(cell.runs)),
            ]
        )
    return header, lines


def _text(value: object) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def accuracy(value: tuple[float, float | None] | None) -> str:
    """Mean ± standard deviation, in percent."""
    if value is None:
        return "-"
    mean, spread = value
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"

"""Experiments that train networks: cells of the paper's tables, a learning rate searched for each.

All of them share one file of records, so a cell that stands in several tables is run once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from p2pqg.errors import ConfigError
from p2pqg.tasks.precision import PRECISIONS, Precision

from .base import Observe, Plan, Report, matches, quiet
from .program import SWARM, swarm, train
from .published import KEYS, Published
from .recipes import first_rates, model_of
from .records import Case, Record, Result
from .search import Scores, best_rate, interior, next_runs

TOGETHER = 8
"""Most runs in one program on an accelerator."""

SEARCHED = ("lr", "seed")


@dataclass(frozen=True)
class Training:
    """Cells (`KEYS` of ``results.csv``, and `beta` where it is not the method's own) to be trained."""

    title: str
    cells: Sequence[Case]
    present: Callable[[Sequence[Record]], Report]
    grid: tuple[float, ...] | None = None
    """Learning rates of an experiment that does not search."""
    records: str = "training"

    def pending(self, plan: Plan, records: Sequence[Record]) -> Sequence[Case]:
        chosen = [cell for cell in self.cells if matches(cell, plan.cell)]
        if not chosen:
            known = {key: sorted({str(cell[key]) for cell in self.cells}) for key in plan.cell if key in KEYS}
            raise ConfigError(
                f"expected the values of a row of the paper ({known or ', '.join(KEYS)}), "
                f"found {dict(plan.cell)}",
                where="reproduce",
                key="cell",
            )
        cases: list[Case] = []
        # What makes other records than the usual.
        other = {"engine": SWARM} if plan.engine == SWARM else {}
        for key in ("dtype", "precision"):
            if getattr(plan, key) != getattr(Plan, key):
                other[key] = getattr(plan, key)
        for cell in distinct([dict(cell) | other | {"model": model_of(cell, plan)} for cell in chosen]):
            seeds, first = (
                (1, first_rates(cell)[1:2]) if plan.scale == "smoke" else (plan.seeds, first_rates(cell))
            )
            grid = plan.lr_grid or (first if plan.scale == "smoke" else self.grid)
            runs = next_runs(first, seeds, scores(of_cell(cell, plan.scale, records)), grid)
            cases += [cell | {"lr": lr, "seed": seed} for lr, seed in runs]
        return cases

    def run(
        self, plan: Plan, cases: Sequence[Case], observe: Observe = quiet
    ) -> Iterator[tuple[Case, Result]]:
        if plan.engine == SWARM:
            for case in cases:
                observe([case], 0, 1)
                yield case, swarm(plan, case)
            return
        together = plan.together or (1 if plan.device == "cpu" else TOGETHER)
        for _, alike in groupby(sorted(cases, key=_program), key=_program):
            group = list(alike)
            for k in range(0, len(group), together):
                yield from train(plan, group[k : k + together], observe)

    def report(self, records: Sequence[Record]) -> Report:
        return self.present(records)


@dataclass(frozen=True)
class Cell:
    """What the records say of one cell at one scale: its runs at the best learning rate.

    Accuracies are in percent, mean and sample standard deviation (None for one seed) over seeds, of the best
    epoch (`best`, as the paper reports) and the last, each of the local models' mean, the worst local model
    and the averaged model.
    """

    cell: Case
    scale: str
    lr: float | None
    interior: bool
    runs: tuple[Record, ...]
    diverged: int

    def accuracy(
        self, which: str = "mean_accuracy", moment: str = "best"
    ) -> tuple[float, float | None] | None:
        """Mean and standard deviation over seeds, in percent."""
        values = [100 * run.result[moment][which] for run in self.runs]
        if not values:
            return None
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def summarise(cell: Case, scale: str, records: Sequence[Record]) -> Cell:
    """Runs of the cell (its keys without learning rate and seed)."""
    own = of_cell(cell, scale, records)
    done = scores(own)
    lr = best_rate(done)
    runs = [run for run in own if run.case["lr"] == lr and run.result["diverged"] is None]
    diverged = sum(run.result["diverged"] is not None for run in own)
    return Cell(
        cell, scale, lr, interior(done), tuple(sorted(runs, key=lambda run: run.case["seed"])), diverged
    )


def scores(runs: Sequence[Record]) -> Scores:
    """What the search chooses by: the best mean accuracy of each run of a cell."""
    return {
        (record.case["lr"], record.case["seed"]): -float("inf")
        if record.result["diverged"] is not None
        else record.result["best"]["mean_accuracy"]
        for record in runs
    }


def of_cell(cell: Case, scale: str, records: Sequence[Record]) -> list[Record]:
    """The records of a cell at a scale."""
    return [
        record for record in records if record.scale == scale and without(record.case, SEARCHED) == dict(cell)
    ]


def by_precision(records: Sequence[Record]) -> dict[Precision, list[Record]]:
    """The records of each precision that has any, their cases like those of the usual one."""
    parts: dict[Precision, list[Record]] = {
        precision: [
            replace(record, case=without(record.case, ("precision",)))
            for record in records
            if record.case.get("precision", Plan.precision) == precision
        ]
        for precision in PRECISIONS
    }
    return {precision: own for precision, own in parts.items() if own}


def without(case: Case, keys: Sequence[str]) -> dict[str, Any]:
    """A case less some of its keys."""
    return {key: value for key, value in case.items() if key not in keys}


def distinct(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The different ones, in order."""
    found: list[dict[str, Any]] = []
    for cell in cells:
        if cell not in found:
            found.append(dict(cell))
    return found


def cells_of(rows: Sequence[Published]) -> list[dict[str, Any]]:
    """The different cells of published rows."""
    return distinct([row.cell for row in rows])


def _program(case: Case) -> tuple[str, ...]:
    """The same for cases that can train together."""
    return tuple(f"{key}={value}" for key, value in sorted(case.items()) if key not in (*SEARCHED, "alpha"))

"""What an experiment is: cases that are still to run, a way to run them, and a report of what came out.

`p2pqg reproduce` asks an experiment which cases are `pending`, given the records so far, runs them and
appends their records, until none is left. So an interrupted experiment goes on where it stopped, and one
that searches (for a learning rate, say) decides from records alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from matplotlib.figure import Figure

from p2pqg.errors import ConfigError
from p2pqg.tasks.precision import Precision

from .records import Case, Record, Result

Scale = Literal["full", "small", "smoke"]
SCALES: tuple[Scale, ...] = ("full", "small", "smoke")
"""The paper's own; one that a CPU does in an hour or two and that still tells the truth; one that only shows
that everything runs."""
SHOWN_SCALES: tuple[Scale, ...] = ("full", "small")
"""Scales that a report shows: a smoke run shows nothing but that it ran."""


Observe = Callable[[Sequence[Case], int, int], None]
"""Told what runs, and how far it is: so many of so many steps."""


def quiet(cases: Sequence[Case], done: int, total: int) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Plan:
    """What the user asked for."""

    scale: Scale = "full"
    seeds: int = 3
    cell: Mapping[str, str] = field(default_factory=dict)
    """Only cases with these values."""
    lr_grid: tuple[float, ...] | None = None
    """Learning rates to try; None searches a factor-2 grid until its best is interior."""
    data: Path | None = None
    """Where the data sets lie (docs/paper.md)."""
    download: bool = False
    dtype: str = "float32"
    precision: Precision = "float32"
    device: str = "cpu"
    engine: str = "auto"
    together: int | None = None
    """Most runs that advance in one program; None lets the experiment choose."""
    work: Path = Path("records/work")
    """Checkpoints of runs that are not finished."""


@dataclass(frozen=True)
class Report:
    """Markdown, empty where there is nothing to report yet, and pictures by file name, which it refers to."""

    markdown: str
    pictures: Mapping[str, Figure] = field(default_factory=dict)


class Experiment(Protocol):
    """A table, a figure or a claim of the paper."""

    @property
    def title(self) -> str:
        """One line for ``p2pqg reproduce list``."""

    @property
    def records(self) -> str:
        """The file of its records; experiments that share one share their results."""

    def pending(self, plan: Plan, records: Sequence[Record]) -> Sequence[Case]:
        """The cases that the plan still lacks, in the order in which to run them. Raises `ConfigError` for
        a plan that makes no sense, such as a cell that does not exist."""

    def run(
        self, plan: Plan, cases: Sequence[Case], observe: Observe = quiet
    ) -> Iterator[tuple[Case, Result]]:
        """Run cases, in any order and grouping, and yield each as it ends."""

    def report(self, records: Sequence[Record]) -> Report:
        """What the records show, beside what the paper says."""


@dataclass(frozen=True)
class Computation:
    """An experiment whose cases are known beforehand and run one by one. `present` is given the records of
    all cases of a scale."""

    title: str
    records: str
    cases: Callable[[Plan], Sequence[Case]]
    compute: Callable[[Plan, Case], Result]
    present: Callable[[Sequence[Record]], Report]

    def pending(self, plan: Plan, records: Sequence[Record]) -> Sequence[Case]:
        if plan.precision != Plan.precision:
            raise ConfigError(
                f"expected {Plan.precision}, because no network is trained here; found {plan.precision}",
                where="reproduce",
                key="precision",
            )
        done = [record.case for record in records if record.scale == plan.scale]
        return [case for case in self.cases(plan) if case not in done and matches(case, plan.cell)]

    def run(
        self, plan: Plan, cases: Sequence[Case], observe: Observe = quiet
    ) -> Iterator[tuple[Case, Result]]:
        for done, case in enumerate(cases):
            observe([case], done, len(cases))
            yield case, self.compute(plan, case)

    def report(self, records: Sequence[Record]) -> Report:
        """Of the largest scale that is complete."""
        for scale in SHOWN_SCALES:
            own = [record for record in records if record.scale == scale]
            wanted = self.cases(Plan(scale=scale))
            if all(any(record.case == case for record in own) for case in wanted):
                return self.present(own)
        return Report("No scale has records of all of its cases yet (a smoke run shows nothing).")


def matches(case: Case, cell: Mapping[str, str]) -> bool:
    """Whether a case has the values asked for, numbers compared as numbers."""
    return all(key in case and _same(case[key], wanted) for key, wanted in cell.items())


def _same(value: object, wanted: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value) == float(wanted)
        except ValueError:
            return False
    return str("" if value is None else value) == wanted

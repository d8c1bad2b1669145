"""The abstract's "significant improvement in test performance (1%-20%)", from the paper's own tables.

A gain is the accuracy of QG-DSGDm-N (or QG-DAdam) less a decentralised competitor's in the same cell: data
set, model, graph, n and alpha. The paper does not say which gains it means; these are all of them: against
DSGDm-N (DAdam), which it calls its primary competitor, and against every method of its tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from .base import Computation, Plan, Report
from .presentation import table
from .published import Published, published
from .records import Case, Record, Result

OURS = {"qg-dsgdm-n": "dsgdm-n", "qg-dadam": "dadam"}
"""The method with quasi-global momentum that is put first, and its primary competitor."""
CELL = ("dataset", "model", "topology", "n", "alpha")


def compute(plan: Plan, case: Case) -> Result:
    """All gains, in percentage points and relative to the competitor; None where that did not converge."""
    return {"gains": gains(published())}


def gains(rows: Sequence[Published]) -> list[dict[str, Any]]:
    """Each pair once, though tables repeat cells."""
    found: dict[tuple[object, ...], dict[str, Any]] = {}
    for ours in rows:
        if ours.cell["method"] not in OURS or ours.cell["tau"] or ours.mean is None:
            continue
        for other in rows:
            if not competes(ours, other):
                continue
            name = "-".join(filter(None, (other.cell["method"], other.cell["variant"])))
            cell = {key: ours.cell[key] for key in CELL}
            gain = None if other.mean is None else round(ours.mean - other.mean, 2)
            found[(*cell.values(), ours.cell["method"], name)] = {
                **cell,
                "method": ours.cell["method"],
                "competitor": name,
                "primary": name == OURS[ours.cell["method"]],
                "gain": gain,
                "relative": None if gain is None or other.mean is None else round(100 * gain / other.mean, 1),
            }
    return list(found.values())


def competes(ours: Published, other: Published) -> bool:
    """Whether a row is another method's of the same family, SGD or Adam, in the same cell."""
    same_cell = all(ours.cell[key] == other.cell[key] for key in CELL)
    a, b = ours.cell["method"], other.cell["method"]
    return same_cell and not b.startswith("qg-") and ("adam" in a) is ("adam" in b)


def present(records: Sequence[Record]) -> Report:
    every = records[0].result["gains"]
    primary = [gain for gain in every if gain["primary"]]
    groups = {"DSGDm-N or DAdam": primary, "any decentralised method": every}
    rows = [
        (name, f"{alpha:g}" if alpha else "all", *_summary([g for g in group if alpha in (None, g["alpha"])]))
        for name, group in groups.items()
        for alpha in (10, 1, 0.1, None)
    ]
    points, hardest = _known(primary, "gain"), _known([g for g in primary if g["alpha"] == 0.1], "relative")
    inside = sum(1 <= point <= 20 for point in points)
    header = (
        "against",
        "alpha",
        "pairs",
        "least",
        "median",
        "most",
        "least, relative",
        "most, relative",
        "did not converge",
    )
    markdown = f"""\
**The abstract's 1 % to 20 %.** Against its primary competitor, DSGDm-N (DAdam for QG-DAdam), the paper's
own tables have gains of {points[0]:.2f} to {points[-1]:.2f} percentage points; {inside} of {len(points)}
are between 1 and 20, none is above 12. Against any method they end at {_known(every, "gain")[-1]:.1f}
points. **We find the range only in one reading**: relative to DSGDm-N's accuracy, at alpha = 0.1, gains are
{hardest[0]:.1f} % to {hardest[-1]:.1f} %. At alpha = 10 all are below half a point.

{table(header, rows)}
Gains are in percentage points of test accuracy, relative ones in percent of the competitor's accuracy."""
    return Report(markdown)


def _known(group: Sequence[Mapping[str, Any]], what: str) -> list[float]:
    return sorted(gain[what] for gain in group if gain[what] is not None)


def _summary(group: Sequence[Mapping[str, Any]]) -> tuple[object, ...]:
    points, relative = _known(group, "gain"), _known(group, "relative")
    values = [f"{value:.2f}" for value in (points[0], median(points), points[-1])]
    return len(points), *values, f"{relative[0]:.1f} %", f"{relative[-1]:.1f} %", len(group) - len(points)


experiment = Computation(
    'The abstract: "1%-20%" from the tables',
    "abstract",
    lambda plan: [{"source": "results.csv"}],
    compute,
    present,
)

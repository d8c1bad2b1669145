"""The audit's records as a table and pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..experiments.base import Report
from ..experiments.presentation import LOCAL, QUASI_GLOBAL, canvas, table
from ..experiments.records import Record
from .views import MESSAGES, SUMS, VIEWS

COLOURS = {MESSAGES: LOCAL, SUMS: QUASI_GLOBAL}
HEADER = (
    "protection",
    "membership: AUC",
    "found at 1 % false alarms",
    "rebuilt from 1 image, dB",
    "from 4, dB",
    "recognised, 1 / 4",
    "accuracy",
    "CPU / time of a round",
    "bytes a round",
)


def present(records: Sequence[Record]) -> Report:
    """One table for each data set, the curves of membership, and what was rebuilt; cells without a record are
    left out."""
    parts, pictures = [], {}
    member = [record for record in records if record.case["attack"] == "membership"]
    if member:
        pictures["audit-membership.png"] = _curves(member)
    for data in _sets(records):
        own = [record for record in records if record.case["data"] == data]
        rows = [_row(own, epsilon, kind) for epsilon in _epsilons(own) for kind in VIEWS]
        rebuilt = [record for record in own if record.case["attack"] == "inversion"]
        note = f" (the mean image: {_spread(rebuilt[0].result['baseline'])} dB)" if rebuilt else ""
        parts.append(f"**{data.capitalize()}**{note}\n\n{table(HEADER, rows)}")
        if rebuilt:
            pictures[f"audit-{data}.png"] = _pictures(rebuilt)
    return Report("\n".join(parts), pictures)


def _row(records: Sequence[Record], epsilon: float | None, kind: str) -> list[str]:
    known = _find(records, "membership", epsilon)
    one, four = (_find(records, "inversion", epsilon, batch) for batch in (1, 4))
    found = ["-"] * (len(HEADER) - 1)
    if known:
        seen, cost = known["views"][kind], known["per_agent_round"][kind]
        found[0] = _interval(seen["auc"], seen["auc_interval"], 2)
        found[1] = _interval(100 * seen["tpr"], [100 * end for end in seen["tpr_interval"]], 1) + " %"
        found[5] = f"{100 * known['accuracy'][0]:.1f} ± {100 * known['accuracy'][1]:.1f} %"
        found[6] = f"{1e3 * cost['cpu_s']:.1f} / {1e3 * cost['wall_s']:.1f} ms"
        found[7] = f"{cost['bytes'] / 1e3:.0f} kB"
    for column, result in ((2, one), (3, four)):
        if result:
            found[column] = _spread(result["views"][kind]["psnr"])
    shares = [
        f"{100 * result['views'][kind]['recognised']:.0f} %" if result else "-" for result in (one, four)
    ]
    found[4] = " / ".join(shares)
    return [label(epsilon, kind), *found]


def label(epsilon: float | None, kind: str) -> str:
    """A protection in words."""
    privacy = [] if epsilon is None else [f"DP, ε = {epsilon:g}"]
    sums = ["secure sums"] if kind == SUMS else []
    return " and ".join(privacy + sums) or "none: plain gossip"


def _curves(records: Sequence[Record]) -> Figure:
    """AUC and accuracy over epsilon."""
    sets = _sets(records)
    with canvas(1, len(sets), 4.2, 3.0, sharey=True) as (figure, panels):
        for panel, data in zip(panels, sets, strict=True):
            own = [record for record in records if record.case["data"] == data]
            epsilons = _epsilons(own)[::-1]
            for shift, kind in zip((-0.06, 0.06), VIEWS, strict=True):
                found = [_find(own, "membership", epsilon)["views"][kind] for epsilon in epsilons]
                middle = np.array([each["auc"] for each in found])
                ends = np.array([each["auc_interval"] for each in found]).T
                panel.errorbar(
                    np.arange(len(epsilons)) + shift,
                    middle,
                    np.abs(ends - middle),
                    color=COLOURS[kind],
                    marker="o",
                    capsize=3,
                    label=f"AUC, attacker sees {'sums' if kind == SUMS else 'messages'}",
                )
            accuracies = [_find(own, "membership", epsilon)["accuracy"][0] for epsilon in epsilons]
            panel.plot(accuracies, color="0.45", marker="s", linestyle="--", label="test accuracy")
            panel.axhline(0.5, color="0.45", linewidth=0.8, linestyle=":")
            panel.set_xticks(range(len(epsilons)), ["∞" if e is None else f"{e:g}" for e in epsilons])
            panel.set_xlabel("ε of each record")
            panel.set_title(data)
        panels[0].legend(loc="upper left")
        panels[0].set_ylim(0, 1)
    return figure


def _pictures(records: Sequence[Record]) -> Figure:
    """Originals, and what was rebuilt of them: a panel for each size of a mini-batch, a row for each
    protection."""
    rows = [(epsilon, kind) for epsilon in _epsilons(records) for kind in VIEWS]
    batches = sorted({record.case["batch"] for record in records})
    with canvas(1 + len(rows), len(batches), 4.4, 1.05) as (figure, axes):
        for place in axes:
            place.axis("off")
        for column, batch in enumerate(batches):
            axes[column].set_title(f"mini-batches of {batch}")
            first = next(record.result for record in records if record.case["batch"] == batch)
            _strip(axes[column], first["originals"], first["shape"], "originals")
            for k, (epsilon, kind) in enumerate(rows, 1):
                found = _find(records, "inversion", epsilon, batch)
                if found:
                    place = axes[k * len(batches) + column]
                    _strip(place, found["views"][kind]["pictures"], found["shape"], label(epsilon, kind))
    return figure


def _strip(axes: Axes, packed: str, shape: Sequence[int], title: str) -> None:
    images = np.frombuffer(base64.b64decode(packed), dtype=np.uint8).reshape(-1, *shape)[:, 0]
    framed = np.pad(images, ((0, 0), (0, 0), (0, max(1, shape[-1] // 14))), constant_values=255)
    axes.imshow(np.concatenate(list(framed), axis=1), cmap="gray", vmin=0, vmax=255)
    axes.text(
        -0.02,
        0.5,
        title.replace(" and ", "\n"),
        transform=axes.transAxes,
        ha="right",
        va="center",
        fontsize=8,
    )


def _find(records: Sequence[Record], attack: str, epsilon: float | None, batch: int | None = None) -> Any:
    for record in records:
        case = record.case
        if (case["attack"], case["epsilon"], case.get("batch")) == (attack, epsilon, batch):
            return record.result
    return None


def _sets(records: Sequence[Record]) -> list[str]:
    return sorted({record.case["data"] for record in records})


def _epsilons(records: Sequence[Record]) -> list[float | None]:
    """From none to the strongest."""
    found = {record.case["epsilon"] for record in records}
    return sorted(found, key=lambda epsilon: -(epsilon or inf))


def _interval(value: float, ends: Sequence[float], digits: int) -> str:
    return f"{value:.{digits}f} ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"


def _spread(pair: Sequence[float]) -> str:
    return f"{pair[0]:.1f} ± {pair[1]:.1f}"

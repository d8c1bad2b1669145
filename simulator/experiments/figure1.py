"""Figures 1, 8 and 9: how many samples of each class an agent holds, as dots.

The partition is the paper's (`p2pqg.tasks.partition`), with the released code's default seed. CIFAR-10's
labels are read where the data lie (`--data`), any data set's from `NAME-labels.txt` there, a class number a
line; else the classes have the sizes below, in order. The size of an ImageNet class varies from 732 to
1,300; without a file it is their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from p2pqg.errors import ConfigError
from p2pqg.tasks import partition
from p2pqg.tasks.images import CIFAR10, read_cifar
from p2pqg.tasks.partition import Indices

from .base import Computation, Plan, Report
from .presentation import QUASI_GLOBAL, canvas, table
from .recipes import find_data
from .records import Case, Record, Result

CLASS_SIZES = {
    "cifar10": [5000] * 10,
    "imagenet32": [1281] * 1000,
    "agnews": [24_000] * 4,  # four fifths of the published training part (paper-protocol, section 3.4)
    "sst2": [29_780, 37_569],
}
ALPHAS = (10, 1, 0.1)
SEED = 6
SHOWN = 10
"""Classes that a record counts one by one."""

FIGURES = {
    "figure1": [("cifar10", 16)],
    "figure8": [("cifar10", 32), ("imagenet32", 16)],
    "figure9": [("agnews", 16), ("sst2", 16)],
}


def cases(plan: Plan) -> Sequence[Case]:
    shown = dict.fromkeys(each for row in FIGURES.values() for each in row)
    wanted = [each for each in shown if plan.scale != "smoke" or each[0] != "imagenet32"]
    return [{"dataset": name, "n": n, "alpha": alpha} for name, n in wanted for alpha in ALPHAS]


def compute(plan: Plan, case: Case) -> Result:
    """Counts `[classes, n]` of the first classes; means over agents of the largest class's share, of the
    number of classes with more than a tenth of an even share, and of the distance to all data,
    sum |share - all's| / 2."""
    labels, source = find_labels(case["dataset"], plan)
    classes, n = int(labels.max()) + 1, case["n"]
    try:
        blocks = partition("dirichlet", labels, n, case["alpha"], SEED)
    except ConfigError as error:
        return {"labels": source, "samples": len(labels), "impossible": str(error)}
    counts = np.array([np.bincount(labels[block], minlength=classes) for block in blocks])  # [n, classes]
    shares = counts / counts.sum(1, keepdims=True)
    overall = np.bincount(labels, minlength=classes) / len(labels)
    return {
        "labels": source,
        "samples": len(labels),
        "counts": counts.T[:SHOWN].tolist(),
        "largest_share": float(shares.max(1).mean()),
        "classes": float((shares > 0.1 / classes).sum(1).mean()),
        "distance": float(np.abs(shares - overall).sum(1).mean() / 2),
    }


def find_labels(name: str, plan: Plan) -> tuple[Indices, str]:
    """Labels of a data set's training part, and where they are from. Raises `ConfigError` for a folder
    without CIFAR-10, and for a label file that holds anything else than whole numbers from 0."""
    if plan.data is not None and (file := plan.data / f"{name}-labels.txt").exists():
        return read_labels(file), file.name
    if plan.data is not None and name == "cifar10":
        path = find_data(name, plan)
        return read_cifar(path, CIFAR10).train_labels, path.name
    sizes = CLASS_SIZES[name]
    return np.repeat(np.arange(len(sizes)), sizes), "class sizes"


def read_labels(file: Path) -> Indices:
    """A whole number from 0 a line."""
    try:
        return np.array([_label(line) for line in file.read_text(encoding="utf-8").split()], dtype=np.int64)
    except (OSError, ValueError) as error:
        raise ConfigError(f"expected a whole number from 0 a line: {error}", where=str(file)) from error


def _label(text: str) -> int:
    if (label := int(text)) < 0:
        raise ValueError(f"found {text}")
    return label


def present(records: Sequence[Record]) -> Report:
    found = {
        tuple(record.case[key] for key in ("dataset", "n", "alpha")): record.result for record in records
    }
    drawn = {name: [row for row in rows if (*row, 1) in found] for name, rows in FIGURES.items()}
    pictures = {f"{name}.png": dots(found, rows) for name, rows in drawn.items()}
    header = (
        "data",
        "n",
        "alpha",
        "labels",
        "samples",
        "share of the largest class",
        "classes above a tenth of an even share",
        "distance to all data",
    )
    rows = [
        (*key, r["labels"], f"{r['samples']:,}",
         *(("no draw", "-", "-") if "impossible" in r
           else (f"{r['largest_share']:.2f}", f"{r['classes']:.1f}", f"{r['distance']:.2f}")))
        for key, r in found.items()
    ]  # fmt: skip
    ten, tenth = (found["cifar10", 16, alpha]["largest_share"] for alpha in (10, 0.1))
    markdown = f"""\
![CIFAR-10 on 16 agents for alpha 10, 1 and 0.1](figure1.png)

**Figure 1.** A dot is what one agent (left to right) holds of one class (bottom to top), its area the
number of samples, to one scale in each row of panels. The smaller alpha, the fewer classes an agent has:
its largest makes up {ten:.0%} of its data at alpha = 10 and {tenth:.0%} at 0.1. **We agree.** (All agents
have equally many samples, as in the released code, which cuts the lists that were drawn into equal blocks.)

![CIFAR-10 on 32 agents and ImageNet-32 on 16](figure8.png)

**Figure 8.** The same on 32 agents, and for the first {SHOWN} of ImageNet-32's 1,000 classes. **We
agree.**

![AG News and SST-2 on 16 agents](figure9.png)

**Figure 9.** AG News and SST-2. **We agree but for one panel**: the released procedure has no partition of
two classes for alpha = 0.1, as each of ten agents must get half of the mean and nearly all of a class goes
to one or two. The paper must have drawn that panel another way.

{table(header, rows)}"""
    return Report(markdown, pictures)


def dots(found: Mapping[tuple[object, ...], Result], rows: Sequence[tuple[str, int]]) -> Figure:
    heights = [0.75 + 0.11 * len(found[(*row, 10)]["counts"]) for row in rows]
    ratios = [height / sum(heights) for height in heights]
    with canvas(len(rows), 3, 2.6, sum(heights) / len(rows), height_ratios=ratios) as (figure, axes):
        panels = [(*row, alpha) for row in rows for alpha in ALPHAS]
        for ax, (name, n, alpha) in zip(axes, panels, strict=True):
            most = max(max(map(max, found[name, n, a].get("counts", [[0]]))) for a in ALPHAS)
            ax.set_title(f"{name}, n = {n}, alpha = {alpha:g}")
            result = found[name, n, alpha]
            if "impossible" in result:
                ax.text(0.5, 0.5, "no draw in 10,000\nleaves every agent enough", ha="center", va="center")
                ax.set_axis_off()
                continue
            counts = np.array(result["counts"])
            classes, agents = np.nonzero(counts)
            area = 90 * 16 / n * counts[classes, agents] / most
            ax.scatter(agents, classes, s=area, color=QUASI_GLOBAL, linewidths=0)
            ax.set(xlim=(-0.8, n - 0.2), ylim=(-0.8, len(counts) - 0.2))
            ax.set_xticks(range(0, n, 5 if n == 16 else 10))
            ax.set_yticks(range(0, len(counts), 3 if len(counts) > 4 else 1))
        for ax in axes[::3]:
            ax.set_ylabel("class")
        for ax in axes[-3:]:
            ax.set_xlabel("agent")
    return figure


experiment = Computation(
    "Figures 1, 8 and 9: how samples of each class are shared out", "figure1", cases, compute, present
)

"""Figures 4, 15 and 16: one worker with quasi-global or heavy-ball momentum on two functions of the plane.

The first is (y - x^2)^2 + 100 (x - 1)^2 as the paper prints it, which is not Rosenbrock's function: its
steep direction is x, not the curved valley. For the second, of Lucas et al. 2019, neither beta nor learning
rate is printed; ours are those of the first, 0.9, 0.99 and 0.001. Gradients are exact. The numbers of steps
are ours, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from p2pqg import algorithms, topology

from ..descent import descend
from .base import Computation, Plan, Report
from .presentation import LOCAL, QUASI_GLOBAL, canvas, table
from .records import Case, Record, Result

LR = {"valley": 0.001, "wave": 0.003}
STEPS = {"valley": 400, "wave": 2000}
A, B = 8, 10
HEADER = (
    "function",
    "beta",
    "start",
    "method",
    "crossings of the floor",
    "length of the path",
    "f above its minimum in the end",
)
BETAS = (0.9, 0.99)
METHODS = {"sgdm": "SGDm", "qg-sgdm": "QG-SGDm"}


def valley(x: Tensor) -> Tensor:
    """(y - x^2)^2 + 100 (x - 1)^2; 0 at (1, 1)."""
    x, y = x.unbind(-1)
    return (y - x**2) ** 2 + 100 * (x - 1) ** 2


def wave(x: Tensor) -> Tensor:
    """log(e^x + e^-x) + b log(e^u + e^-u), u = e^x (y - sin a x); (1 + b) log 2 at (0, 0)."""
    x, y = x.unbind(-1)
    u = x.exp() * (y - torch.sin(A * x))
    return torch.logaddexp(x, -x) + B * torch.logaddexp(u, -u)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"valley": valley, "wave": wave}
NAMES = {"valley": "first", "wave": "second"}
MINIMUM = {"valley": (1, 1), "wave": (0, 0)}
LEAST = {"valley": 0.0, "wave": (1 + B) * math.log(2)}
STARTS = {"valley": ((0, 0), (2, 0), (0, 2), (2, 2)), "wave": ((-2, 0),)}


def cases(plan: Plan) -> Sequence[Case]:
    return [
        {"function": function, "beta": beta, "start": list(start), "method": method}
        for function, starts in STARTS.items()
        for beta in BETAS
        for start in starts
        for method in METHODS
    ]


def compute(plan: Plan, case: Case) -> Result:
    f = FUNCTIONS[case["function"]]
    slope = torch.func.grad(lambda x: f(x).sum())
    start = torch.tensor([case["start"]], dtype=torch.float64)
    alone = topology.build("isolated", 1)
    algorithm = algorithms.build(case["method"], beta=case["beta"])
    steps = descend(algorithm, alone, start, lambda x, round: slope(x), LR[case["function"]])
    taken = [step.x for step in islice(steps, 50 if plan.scale == "smoke" else STEPS[case["function"]])]
    path = torch.cat([start, *taken])
    across = path[:, 0] - 1 if f is valley else path[:, 1] - torch.sin(A * path[:, 0])
    return {
        "path": [[round(c, 4) for c in point] for point in path.tolist()],
        "length": float(path.diff(dim=0).norm(dim=-1).sum()),
        "crossings": int((across[1:] * across[:-1] < 0).sum()),
        "excess": float(f(path[-1])) - LEAST[case["function"]],
    }


def present(records: Sequence[Record]) -> Report:
    found = {key(record.case): record.result for record in records}
    rows = [
        (
            NAMES[function],
            beta,
            start,
            METHODS[method],
            r["crossings"],
            f"{r['length']:.1f}",
            f"{r['excess']:.0e}",
        )
        for (function, beta, start, method), r in found.items()
    ]
    old, new = (found["valley", 0.9, (0, 0), method] for method in METHODS)
    wild, steady = (found["wave", 0.99, (-2, 0), method] for method in METHODS)
    markdown = f"""\
![One path of SGDm and one of QG-SGDm from (0, 0) to (1, 1)](figure4.png)

**Figure 4.** Heavy-ball SGDm overshoots the valley x = 1 and crosses it {old["crossings"]} times, QG-SGDm
with the same beta = 0.9 and lr = 0.001 {new["crossings"]} times. **We agree with the paper.** Shading shows
f, dark where it is low; the cross is its minimum.

![The same from four starts, for beta 0.9 and 0.99](figure15.png)

**Figure 15.** Four starts, beta = 0.9 above and 0.99 below: everywhere QG-SGDm oscillates less. **We
agree**, and add the price: along the flat direction y it arrives later. After {STEPS["valley"]} steps with
beta = 0.9 SGDm is closer to the minimum from every start; with 0.99 QG-SGDm is (last column of the table).

![Both on a function with a winding valley](figure16.png)

**Figure 16.** The winding valley of Lucas et al.: with beta = 0.9 both take the same way and get about as
far; with 0.99 SGDm shoots across the bends, crossing the floor y = sin 8x {wild["crossings"]} times against
{steady["crossings"]}. **We agree** that QG-SGDm oscillates less. It is not the faster one: with beta = 0.99
it has gone less than half of the way when SGDm, for all its turns, is at the minimum.

{table(HEADER, rows)}"""
    pictures = {
        "figure4.png": paths(found, [("valley", 0.9, (0, 0))], 1, (-0.2, 2.3), (-0.3, 2.3), 4.2, 3.4),
        "figure15.png": paths(found, panels("valley"), 4, (-0.4, 2.4), (-0.8, 2.8), 2.3, 2.3),
        "figure16.png": paths(found, panels("wave"), 1, (-2.1, 0.5), (-1.6, 1.6), 6.5, 2.4),
    }
    return Report(markdown, pictures)


Path = tuple[str, float, tuple[float, ...]]
"""Function, beta and start."""


def panels(function: str) -> list[Path]:
    return [(function, beta, start) for beta in BETAS for start in STARTS[function]]


def key(case: Case) -> tuple[str, float, tuple[float, ...], str]:
    return case["function"], case["beta"], tuple(case["start"]), case["method"]


def paths(
    found: Mapping[Any, Result],
    shown: Sequence[Path],
    columns: int,
    x: tuple[float, float],
    y: tuple[float, float],
    width: float,
    height: float,
) -> Figure:
    """Both methods' paths, over contours of the function in the window x, y."""
    grid = torch.stack(torch.meshgrid(torch.linspace(*x, 200), torch.linspace(*y, 200), indexing="xy"), -1)
    with canvas(len(shown) // columns, columns, width, height, sharex=True, sharey=True) as (figure, axes):
        for ax, (function, beta, start) in zip(axes, shown, strict=True):
            excess = FUNCTIONS[function](grid) - LEAST[function]
            levels = torch.logspace(-2, 2.5, 12).tolist()
            ax.contourf(
                grid[..., 0],
                grid[..., 1],
                excess,
                levels=levels,
                cmap="Greys_r",
                alpha=0.35,
                norm=LogNorm(),
                extend="both",
            )
            for method, color in (("sgdm", LOCAL), ("qg-sgdm", QUASI_GLOBAL)):
                ax.plot(
                    *zip(*found[function, beta, start, method]["path"], strict=True),
                    color=color,
                    linewidth=0.9,
                    label=METHODS[method],
                )
            ax.plot(*MINIMUM[function], "k+", markersize=9)
            ax.set(xlim=x, ylim=y, title=f"beta {beta}, from {start}")
            ax.grid(False)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


experiment = Computation(
    "Figures 4, 15 and 16: quasi-global and heavy-ball momentum on two functions of the plane",
    "figure4",
    cases,
    compute,
    present,
)

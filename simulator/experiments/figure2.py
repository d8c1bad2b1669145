"""Figures 2 and 11: two agents that are pulled to different points, with and without momentum.

Both start at (0, 0); in every round agent i has a gradient of length 1 away from its own minimum, (0, 5) or
(4, 0), and the models are averaged. The paper prints neither the length of a step nor the number of rounds;
ours are 0.3 and 60. What both agents minimise together, the mean of |x - a_i|, is least on the whole
segment between the two points.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from p2pqg import algorithms, topology

from ..descent import descend
from .base import Computation, Plan, Report
from .presentation import canvas, table
from .records import Case, Record, Result

MINIMA = torch.tensor([[0.0, 5.0], [4.0, 0.0]], dtype=torch.float64)
LR = 0.3
ROUNDS = 60
FACTORS = (0.5, 0.7, 0.9, 0.95, 0.99)
HEADER = (
    "momentum",
    "beta = mu",
    "largest distance of local models",
    "rounds until at the segment",
    "crossings of its line",
    "largest distance after arrival",
)
METHODS = {"dsgd": "no momentum", "dsgdm": "local momentum", "qg-dsgdm": "quasi-global momentum"}


def cases(plan: Plan) -> Sequence[Case]:
    """mu = beta throughout."""
    compared: list[Case] = [{"method": "dsgd", "beta": None}]
    return compared + [
        {"method": method, "beta": beta} for method in ("dsgdm", "qg-dsgdm") for beta in FACTORS
    ]


def compute(plan: Plan, case: Case) -> Result:
    algorithm = algorithms.build(case["method"], beta=case["beta"])
    start = torch.zeros(2, 2, dtype=torch.float64)
    steps = descend(algorithm, topology.build("complete", 2), start, pull, LR)
    taken = list(islice(steps, 20 if plan.scale == "smoke" else ROUNDS))
    local, mean = torch.stack([step.sent for step in taken]), torch.stack([step.x[0] for step in taken])
    return {"local": local.tolist(), "averaged": mean.tolist(), **measures(local, mean)}


def pull(x: Tensor, round: int) -> Tensor:
    """Unit vectors from the agents' minima to `x: [2, 2]`; 0 at a minimum."""
    away = x - MINIMA
    unit: Tensor = away / away.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return unit


def signed_distance(x: Tensor) -> Tensor:
    """Of `x: [..., 2]` to the line through both minima; negative on the side of the start."""
    a, along = MINIMA[0], MINIMA[1] - MINIMA[0]
    normal = torch.stack([-along[1], along[0]]) / along.norm()
    distance: Tensor = (x - a) @ normal
    return distance


def measures(local: Tensor, mean: Tensor) -> dict[str, Any]:
    """For `local: [rounds, 2, 2]` before and `mean: [rounds, 2]` after averaging: how far the local models of
    a round are apart at most, rounds until the averaged one first reaches the segment, how far it then goes
    astray at most, and how often it crosses the line."""
    distance = signed_distance(mean)
    beyond = (distance > -LR / 10).nonzero()
    arrival = int(beyond[0]) if len(beyond) else None
    sides = torch.sign(distance[distance.abs() > 1e-9])
    return {
        "spread": float((local[:, 0] - local[:, 1]).norm(dim=-1).max()),
        "arrival": None if arrival is None else arrival + 1,
        "astray": None if arrival is None else float(distance[arrival:].abs().max()),
        "crossings": int((sides[1:] != sides[:-1]).sum()),
    }


def present(records: Sequence[Record]) -> Report:
    found = {(record.case["method"], record.case["beta"]): record.result for record in records}
    compared = [("dsgd", None), ("dsgdm", 0.9), ("qg-dsgdm", 0.9)]
    with canvas(1, 3, 2.9, 2.9, sharex=True, sharey=True) as (figure2, axes):
        for ax, each in zip(axes, compared, strict=True):
            draw(ax, found[each], METHODS[each[0]])
        figure2.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    with canvas(2, len(FACTORS), 1.9, 2.1, sharex="col", sharey="col") as (figure11, axes):
        for ax, each in zip(axes, [(m, b) for m in ("dsgdm", "qg-dsgdm") for b in FACTORS], strict=True):
            draw(ax, found[each], f"{METHODS[each[0]].removesuffix(' momentum')}, {each[1]}")
    rows = [
        (METHODS[method], beta or "", f"{r['spread']:.1f}", r["arrival"] or "-", r["crossings"],
         "-" if r["astray"] is None else f"{r['astray']:.2f}")
        for (method, beta), r in found.items()
    ]  # fmt: skip
    plain, local, quasi = (found[each] for each in compared)
    markdown = f"""\
![Paths of two agents with no, local and quasi-global momentum](figure2.png)

**Figure 2.** Two agents start at (0, 0) and pull towards (0, 5) and (4, 0) (stars) with steps of constant
length; blue and green are their models after a local step, black their average, and markers grow with the
rounds. Local momentum tears the two models up to {local["spread"]:.1f} apart, where plain steps take them
{plain["spread"]:.1f}, and quasi-global momentum {quasi["spread"]:.1f}, since its buffer holds only what
both agents did together. The average crosses the line between the minima {local["crossings"]} times with
local and {quasi["crossings"]} times with quasi-global momentum. **We agree with the paper on the picture**,
and add that the black path is no effect of different data: with exact averages it is that of one worker
with heavy-ball momentum on the mean gradient (tests/paper/test_figures.py).

![The same for five momentum factors](figure11.png)

**Figure 11.** The same with other factors, mu = beta (columns share their axes). The larger beta, the
further local momentum tears the models apart; with quasi-global momentum they never are further apart than
without momentum, but a large factor makes it arrive later. **We agree.**

{table(HEADER, rows)}"""
    return Report(markdown, {"figure2.png": figure2, "figure11.png": figure11})


def draw(ax: Axes, result: Result, title: str) -> None:
    local, mean = torch.tensor(result["local"]), torch.tensor(result["averaged"])
    size = torch.linspace(2, 22, len(mean))
    ax.plot(*MINIMA.T, color="0.8", zorder=1)
    ax.plot([0, *mean[:, 0]], [0, *mean[:, 1]], color="black", linewidth=0.6, zorder=2)
    for agent, color in enumerate(("tab:blue", "tab:green")):
        ax.scatter(
            local[:, agent, 0],
            local[:, agent, 1],
            s=size,
            color=color,
            alpha=0.6,
            linewidths=0,
            zorder=3,
            label=f"agent {agent + 1}, after its step",
        )
    ax.scatter(mean[:, 0], mean[:, 1], s=size, color="black", linewidths=0, zorder=4, label="average")
    ax.scatter(
        MINIMA[:, 0],
        MINIMA[:, 1],
        marker="*",
        s=90,
        color=["tab:blue", "tab:green"],
        edgecolors="white",
        zorder=5,
    )
    ax.set_title(title)
    ax.set_aspect("equal")


experiment = Computation(
    "Figures 2 and 11: two agents pulled apart, with local and with quasi-global momentum",
    "figure2",
    cases,
    compute,
    present,
)

"""Theorem 3.1: do n agents need an n-th of the rounds, and where does the graph stand in the way?

n agents run QG-DSGDm for T rounds with the theorem's learning rate, and the squared gradient at their mean
is averaged over these rounds, as in the theorem. Rounds to epsilon are the smallest such T (between powers
of two interpolated) whose average is epsilon.

f is the same for every n: agent i has f_i = f + s_i h, with s_i = 1 on one half of the ring and -1 on the
other, which is the data that mix most slowly; h(x) = c x + x B x / 2. (With B = 0 the mean of quadratics
moves as if all data lay in one place, whatever the graph.) Gradients carry normal noise of total variance
sigma^2.

The rate of the proof is that of its virtual sequence, lr / (1 - beta), and that is what is sqrt(4 n (f(x0)
- f*) / (L sigma^2 T)) here; the theorem prints this for lr, which is the same only while beta is tiny. Of
the caps in Theorem C.7 we keep that of plain SGD, (1 - beta) / (4 L): with rho / (7 L) the 1 / rho would be
put in by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from p2pqg import seeds, topology
from p2pqg.algorithms import QGDSGDm

from ..descent import descend
from .base import Computation, Plan, Report
from .presentation import COMPLETE, RING, canvas, table
from .records import Case, Record, Result

D = 10
SIGMA = 2.0
"""Standard deviation of the noise on a coordinate of a gradient; sigma^2 = D SIGMA^2."""
CURVATURE = torch.logspace(0, -1, D, dtype=torch.float64)
C = 1 / math.sqrt(D)
"""Each coordinate of c, so that |c| = 1."""
L = 1.5
"""Bounds all second derivatives of all f_i."""

AGENTS = (1, 2, 4, 8, 16, 32, 64)
MOMENTA = ("bounded", "0.9")
TITLES = {"bounded": "beta / (1 - beta) = rho / 21", "0.9": "beta = 0.9"}
EPSILONS = {"quadratic": (0.4, 0.06), "non-convex": (0.4, 0.1)}


@dataclass(frozen=True)
class Function:
    """f(x) = sum_k value(x_k), whose least value is 0, and the diagonal of its halves' B."""

    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    b: Tensor


FUNCTIONS = {
    "quadratic": Function(lambda x: CURVATURE * x * x / 2, lambda x: CURVATURE * x, CURVATURE / 2),
    "non-convex": Function(
        lambda x: x * x / (1 + x * x) / 2 + x * x / 20,
        lambda x: x / (1 + x * x) ** 2 + x / 10,
        torch.zeros(D, dtype=torch.float64),
    ),
}
"""The curvature of the second differs from place to place, so that its halves only differ in slope."""
START = torch.ones(D, dtype=torch.float64)
"""Where the second function is concave."""


def cases(plan: Plan) -> Sequence[Case]:
    """One and two agents have the same W on both graphs."""
    agents = (1, 4) if plan.scale == "smoke" else AGENTS
    return [
        {"function": function, "momentum": momentum, "topology": graph, "n": n}
        for function in FUNCTIONS
        for momentum in MOMENTA
        for n in agents
        for graph in (("complete",) if n < 4 else ("complete", "ring"))
    ]


def compute(plan: Plan, case: Case) -> Result:
    n, network = case["n"], topology.build(case["topology"], case["n"])
    rho = 1 - topology.second_eigenvalue(network) ** 2
    beta = rho / (21 + rho) if case["momentum"] == "bounded" else float(case["momentum"])
    horizons = [2**k for k in range(4, 9 if plan.scale == "smoke" else longest(n) + 1)]
    rates = [learning_rate(case["function"], n, beta, rounds) for rounds in horizons]
    averages = [
        squared_gradient(case["function"], network, beta, lr, rounds, runs=plan.seeds)
        for lr, rounds in zip(rates, horizons, strict=True)
    ]
    return {
        "rho": rho,
        "beta": beta,
        "runs": plan.seeds,
        "rounds": horizons,
        "lr": rates,
        "squared_gradient": averages,
    }


def longest(n: int) -> int:
    """Binary logarithm of the most rounds: n agents are given what they need if the theorem holds, and time
    to show if it does not."""
    return 15 if n == 1 else 14 if n < 16 else 13


def learning_rate(function: str, n: int, beta: float, rounds: int) -> float:
    """(1 - beta) min(1 / (4 L), sqrt(4 n (f(x0) - f*) / (L sigma^2 T)))."""
    start = float(FUNCTIONS[function].value(START).sum())
    return (1 - beta) * min(1 / (4 * L), math.sqrt(4 * n * start / (L * D * SIGMA**2 * rounds)))


def gradients(function: str, n: int) -> Callable[[Tensor], Tensor]:
    """Of all f_i, without noise, at `[n, ..., d]`."""
    side = torch.tensor([0.0] if n == 1 else [1.0] * (n // 2) + [-1.0] * (n // 2), dtype=torch.float64)
    own_b, own_c = side[:, None, None] * FUNCTIONS[function].b, side[:, None, None] * C
    f = FUNCTIONS[function].gradient
    return lambda x: f(x).addcmul_(own_b, x).add_(own_c)


def squared_gradient(
    function: str, network: topology.Topology, beta: float, lr: float, rounds: int, runs: int
) -> float:
    """Mean over runs and rounds t < T of |grad f(mean_i x_i(t))|^2."""
    random = seeds.generator(0, "speed-up", function, rounds)
    own = gradients(function, network.n)

    def noisy(x: Tensor, round: int) -> Tensor:
        noise = torch.randn(x.shape, dtype=x.dtype, generator=random)
        return own(x).add_(noise, alpha=SIGMA)

    start = START.expand(network.n, runs, D).contiguous()
    steps = descend(QGDSGDm(beta=beta), network, start, noisy, lr)
    means = torch.stack([START.expand(runs, D), *(step.x.mean(0) for step in islice(steps, rounds - 1))])
    return float(FUNCTIONS[function].gradient(means).square().sum(-1).mean())


def rounds_to(epsilon: float, rounds: Sequence[int], averages: Sequence[float]) -> float | None:
    """The T at which the average falls to epsilon, between measured ones on a straight line in logarithms;
    None if it is above epsilon at the last."""
    if averages[-1] > epsilon:
        return None
    k = max((k for k, average in enumerate(averages) if average > epsilon), default=-1) + 1
    if k == 0:
        return float(rounds[0])
    (low, high), (above, below) = rounds[k - 1 : k + 1], averages[k - 1 : k + 1]
    share = math.log(above / epsilon) / math.log(above / below)
    return float(low * (high / low) ** share)


def present(records: Sequence[Record]) -> Report:
    found = {tuple(record.case[key] for key in KEYS): record.result for record in records}
    agents = sorted({n for _, _, _, n in found})
    rows = [
        (
            function,
            momentum,
            graph,
            f"{epsilon:g}",
            *(_work(found, (function, momentum, graph, n), epsilon) for n in agents),
        )
        for function in FUNCTIONS
        for momentum in MOMENTA
        for graph in ("complete", "ring")
        for epsilon in EPSILONS[function]
    ]
    small = EPSILONS["quadratic"][-1]
    one, many = (work(found, ("quadratic", "bounded", "complete", n), small) for n in (agents[0], agents[-1]))
    heavy = [work(found, ("quadratic", "0.9", "complete", n), small) for n in (agents[0], agents[-1])]
    ring = found["quadratic", "bounded", "ring", agents[-1]]
    markdown = f"""\
![Rounds to epsilon times n against n](theory-speedup.png)

**Theorem 3.1.** Rounds until the average squared gradient is epsilon, times n: a flat line is the theorem's
linear speed-up. With the momentum that it allows (beta / (1 - beta) = rho / 21, left) and exact averages
the line *is* flat where epsilon is small: {_count(one)} gradients with one agent, {_count(many)} with
{agents[-1]}. **We agree.** Where epsilon is large (dashed) the terms without n take over: the rounds stay
what they are.

The graph: on the ring the line is flat for up to 8 agents and then rises as rho falls (0.10 for 16 agents,
0.006 for 64); the quadratics of {agents[-1]} agents do not come below {ring["squared_gradient"][-1]:.2f} in
{ring["rounds"][-1]:,} rounds. "Independent of the communication topology" is true of the limit only.

With beta = 0.9 (right), which the theorem excludes, ring and complete graph are all but equal up to 32
agents. At the same effective rate lr / (1 - beta) an agent's own gradient moves it ten times less in a
round, which may be why. But the buffer has to fill, which costs everyone the same rounds, so that more
agents gain less: {_count(heavy[0])} gradients with one agent, {_count(heavy[1])} with {agents[-1]}.

Rounds times n (-: epsilon was not reached in the rounds tried):

{table(("function", "momentum", "graph", "epsilon", *(f"n = {n}" for n in agents)), rows)}"""
    return Report(markdown, {"theory-speedup.png": lines(found, agents)})


KEYS = ("function", "momentum", "topology", "n")
Found = Mapping[tuple[Any, ...], Result]


def work(found: Found, key: tuple[Any, ...], epsilon: float) -> float | None:
    """n times rounds to epsilon; one or two agents are the same on both graphs."""
    function, momentum, _, n = key
    result = found.get(key) or found[function, momentum, "complete", n]
    rounds = rounds_to(epsilon, result["rounds"], result["squared_gradient"])
    return None if rounds is None else n * rounds


def _work(found: Found, key: tuple[Any, ...], epsilon: float) -> str:
    return _count(work(found, key, epsilon))


def _count(gradients: float | None) -> str:
    return "-" if gradients is None else f"{float(f'{gradients:.2g}'):,.0f}"


def lines(found: Found, agents: Sequence[int]) -> Figure:
    with canvas(2, 2, 4.2, 2.7, sharex=True, sharey="row") as (figure, axes):
        panels = [(function, momentum) for function in FUNCTIONS for momentum in MOMENTA]
        for ax, (function, momentum) in zip(axes, panels, strict=True):
            for graph, color in (("complete", COMPLETE), ("ring", RING)):
                for epsilon, line in zip(EPSILONS[function], ("--", "-"), strict=True):
                    works = [work(found, (function, momentum, graph, n), epsilon) for n in agents]
                    known = [(n, w) for n, w in zip(agents, works, strict=True) if w is not None]
                    label = f"{graph}, {'small' if line == '-' else 'large'} epsilon"
                    ax.plot(
                        *zip(*known, strict=True), line, color=color, marker="o", markersize=3, label=label
                    )
                    if len(known) < len(agents):
                        ax.annotate(
                            "not reached",
                            known[-1],
                            (8, 0),
                            textcoords="offset points",
                            color=color,
                            fontsize=8,
                            va="center",
                        )
            ax.set(
                xscale="log",
                yscale="log",
                title=f"{function}, {TITLES[momentum]}; epsilon {' and '.join(map(str, EPSILONS[function]))}",
            )
            ax.set_xticks(agents, map(str, agents), minor=False)
            ax.minorticks_off()
        for ax in axes[2:]:
            ax.set_xlabel("agents n")
        for ax in axes[::2]:
            ax.set_ylabel("n x rounds to epsilon")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


experiment = Computation(
    "Theorem 3.1: n agents need an n-th of the rounds, if the graph lets them",
    "theory-speedup",
    cases,
    compute,
    present,
)

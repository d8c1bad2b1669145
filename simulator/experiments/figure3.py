"""Figures 3 and 10: does quasi-global momentum agree faster than gossip, when nobody trains?

Equation 4 against X' = W X, buffers zero at the start, beta = mu = 0.9, from one standard normal start of
100 coordinates in float64. The paper's Figure 3 is "a fixed ring" of unnamed size, and sizes and graphs of
its Figure 10 cannot be read; ours are the paper's rings of 16, 32 and 48 for the first, and for the second
the other graphs of its tables, with a torus between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from p2pqg import topology
from p2pqg.algorithms import DSGD, QGDSGDm

from ..consensus import disagreement, random_start, rates, rounds_to, rounds_to_stay
from .base import Computation, Plan, Report
from .presentation import PLAIN, QUASI_GLOBAL, canvas, table
from .records import Case, Record, Result

BETA = 0.9
LEVELS = (1e-1, 1e-2, 1e-4, 1e-8, 1e-12)
CRITICAL = 1e-2
"""The consensus distance that the paper names."""
RINGS = (("ring", 16), ("ring", 32), ("ring", 48))
OTHERS = (("social", 32), ("one-peer-exponential", 16), ("torus", 16), ("torus", 36))
ROUNDS, SHOWN = 8000, 300
WHEN = ("rounds_to", "stays")
METHODS = {"gossip": DSGD(), "momentum": QGDSGDm(beta=BETA, mu=BETA)}


def cases(plan: Plan) -> Sequence[Case]:
    return [{"topology": name, "n": n} for name, n in (*RINGS, *OTHERS, ("complete", 16))]


def compute(plan: Plan, case: Case) -> Result:
    """Of both: rounds to each level and until below it for good, the rate in the end and the first distances,
    relative to the start."""
    graph = topology.build(case["topology"], case["n"])
    rounds = 100 if plan.scale == "smoke" else ROUNDS
    curves = {
        name: disagreement(method, graph, random_start(case["n"]), rounds) for name, method in METHODS.items()
    }
    in_the_end = rates(graph, BETA, BETA) if graph.period == 1 else (None, None)
    return {
        name: {
            "rounds_to": [rounds_to(curve, level) for level in LEVELS],
            "stays": [rounds_to_stay(curve, level) for level in LEVELS],
            "rate": rate,
            "curve": [float(f"{distance:.3g}") for distance in curve[: SHOWN + 1]],
        }
        for (name, curve), rate in zip(curves.items(), in_the_end, strict=True)
    }


def present(records: Sequence[Record]) -> Report:
    found = {(record.case["topology"], record.case["n"]): record.result for record in records}
    header = ("topology", *(f"{level:.0e}" for level in LEVELS), "rate in the end")
    rows = {
        what: table(header, [(f"{name} {n}", *_row(result, what)) for (name, n), result in found.items()])
        for what in WHEN
    }
    k = LEVELS.index(CRITICAL)
    at = {
        (ring, what): " / ".join(str(found[ring][m][what][k]) for m in METHODS)
        for ring in RINGS
        for what in WHEN
    }
    first, stays = (", ".join(f"{at[ring, what]} for n = {ring[1]}" for ring in RINGS) for what in WHEN)
    markdown = f"""\
![Consensus distance against rounds on three rings](figure3.png)

**Figure 3.** Nobody trains; agents with random models only gossip, plainly or by equation 4 (beta = mu =
0.9). On rings the latter is the first to touch the distance of 1e-2 that the paper names (dotted), and the
earlier the larger the ring; rounds of gossip / momentum: {first}. **We agree, but** it swings back above:
it is below 1e-2 *for good* after {stays}, which is earlier only on the largest ring.

![The same on four other graphs](figure10.png)

**Figure 10.** On graphs that mix well momentum is no later only at a rough distance, and its own memory is
what it waits for afterwards. **We do not agree** that it is faster "on different communication topologies":
it is where they mix badly.

Rounds until the consensus distance has fallen to a fraction of its start, gossip / momentum:

{rows["rounds_to"]}
Rounds until it is below for good:

{rows["stays"]}
**Why.** In the direction of an eigenvalue w of W, gossip shrinks the disagreement by w in a round; the two
eigenvalues of equation 4 have the product w (mu + (1 - mu) beta). Where they are complex, as on these
rings, momentum shrinks it by sqrt(w (mu + (1 - mu) beta)) in the long run, which is less than w only if w
exceeds mu + (1 - mu) beta = 0.99. The second eigenvalue of the ring is 0.949 for 16 agents, 0.987 for 32
and 0.994 for 48: only from there on does momentum win at every precision. Before that it wins the beginning
and loses the end, and on graphs that mix in a few rounds the beginning is over before momentum has built
up."""
    pictures = {"figure3.png": curves(found, RINGS), "figure10.png": curves(found, OTHERS)}
    return Report(markdown, pictures)


def _row(result: Result, what: str) -> list[str]:
    gossip, momentum = (result[method] for method in METHODS)
    cells = [f"{a} / {b}" for a, b in zip(gossip[what], momentum[what], strict=True)]
    return [*cells, "-" if gossip["rate"] is None else f"{gossip['rate']:.4f} / {momentum['rate']:.4f}"]


def curves(found: Mapping[tuple[str, int], Result], graphs: Sequence[tuple[str, int]]) -> Figure:
    with canvas(1, len(graphs), 8.8 / len(graphs), 2.6, sharey=True) as (figure, axes):
        for ax, graph in zip(axes, graphs, strict=True):
            for method, color, label in (
                ("gossip", PLAIN, "gossip"),
                ("momentum", QUASI_GLOBAL, "with quasi-global momentum (equation 4)"),
            ):
                ax.plot([max(d, 1e-20) for d in found[graph][method]["curve"]], color=color, label=label)
            ax.axhline(CRITICAL, color="black", linewidth=0.6, linestyle=":")
            ax.set(yscale="log", ylim=(1e-4, 1.5), xlabel="rounds", title=f"{graph[0]}, n = {graph[1]}")
            ax.set_xlim(0, SHOWN if graph in RINGS else 80)
        axes[0].set_ylabel("consensus distance")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


experiment = Computation(
    "Figures 3 and 10: gossip against equation 4, the average consensus", "figure3", cases, compute, present
)

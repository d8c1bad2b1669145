"""Figure 7: the social network of Davis, Gardner and Gardner (1941), as networkx has it."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from p2pqg import topology
from p2pqg.topology import spectral_gap

from .base import Computation, Plan, Report
from .presentation import PLAIN, QUASI_GLOBAL, canvas
from .records import Case, Record, Result


def compute(plan: Plan, case: Case) -> Result:
    social = topology.build("social", case["n"])
    (graph,) = social.graphs
    edges = [[i, j] for i in range(social.n) for j in graph.incoming[i] if i < j]
    self_weights = graph.matrix().diagonal().tolist()
    return {"edges": edges, "self_weights": self_weights, "spectral_gap": spectral_gap(social)}


def present(records: Sequence[Record]) -> Report:
    result = records[0].result
    graph: nx.Graph[int] = nx.Graph(result["edges"])
    degrees = dict(graph.degree())
    women = [node for node in sorted(graph) if node < 18]
    with canvas(1, 1, 4.2, 3.4) as (figure, (ax,)):
        places = nx.kamada_kawai_layout(graph)
        nx.draw_networkx(
            graph,
            places,
            ax=ax,
            node_color=[QUASI_GLOBAL if node in women else "#d95f02" for node in graph],
            node_size=[60 + 14 * degrees[node] for node in graph],
            edge_color=PLAIN,
            width=0.5,
            font_size=6,
            font_color="white",
        )
        ax.set_axis_off()
    return Report(
        "![The social network](figure7.png)\n\n**Figure 7.** 18 women (blue) and the 14 events they went to "
        f"(orange): {graph.number_of_nodes()} agents, {graph.number_of_edges()} edges, degrees "
        f"{min(degrees.values())} to {max(degrees.values())}, spectral gap {result['spectral_gap']:.3f}. "
        "We agree with the paper: it is the same graph of networkx.",
        {"figure7.png": figure},
    )


experiment = Computation(
    "Figure 7: the social network", "figure7", lambda plan: [{"n": 32}], compute, present
)

"""How fast a topology mixes."""

from __future__ import annotations

import torch

from p2pqg.topology.graph import Topology


def second_eigenvalue(topology: Topology) -> float:
    """Per-round contraction of the disagreement: the largest |eigenvalue| of one period's product of W,
    restricted to vectors that sum to zero, to the power 1/period. 0.94925 for the ring of 16."""
    n = topology.n
    product = torch.eye(n, dtype=torch.float64)
    for graph in topology.graphs:
        product = graph.matrix() @ product
    deviation = product - torch.full_like(product, 1 / n)
    radius = float(torch.linalg.eigvals(deviation).abs().max())
    # A period that averages exactly leaves rounding errors, whose root would look like slow mixing.
    return 0.0 if radius < 1e-7 else float(radius ** (1 / topology.period))


def spectral_gap(topology: Topology) -> float:
    """1 - second eigenvalue: 1 averages at once, 0 never agrees."""
    return 1 - second_eigenvalue(topology)

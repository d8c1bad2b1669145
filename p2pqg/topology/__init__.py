"""Graphs, the rows of mixing weights that follow from them, and matrices for the simulator."""

from p2pqg.topology.graph import Graph, Topology, metropolis_hastings
from p2pqg.topology.named import TOPOLOGIES, build, from_edge_list, from_networkx
from p2pqg.topology.spectrum import second_eigenvalue, spectral_gap

__all__ = [
    "TOPOLOGIES",
    "Graph",
    "Topology",
    "build",
    "from_edge_list",
    "from_networkx",
    "metropolis_hastings",
    "second_eigenvalue",
    "spectral_gap",
]

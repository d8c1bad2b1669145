"""Table 7: numbers of agents."""

from .compare import published_cells

experiment = published_cells("7", "Table 7: numbers of agents")

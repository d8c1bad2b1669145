"""Table 4: the time-varying one-peer exponential graph."""

from .compare import published_cells

experiment = published_cells("4", "Table 4: the time-varying one-peer exponential graph")

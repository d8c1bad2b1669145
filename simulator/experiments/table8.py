"""Table 8: refreshing the quasi-global buffer every tau rounds."""

from .compare import published_cells

experiment = published_cells("8", "Table 8: refreshing the quasi-global buffer every tau rounds")

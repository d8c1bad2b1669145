"""Table 2: gradient tracking and D2 against quasi-global momentum."""

from .compare import published_cells

experiment = published_cells("2", "Table 2: gradient tracking and D2 against quasi-global momentum")

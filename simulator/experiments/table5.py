"""Table 5: other ways to share momentum."""

from .compare import published_cells

experiment = published_cells("5", "Table 5: other ways to share momentum")

"""Table 6: Adam and quasi-global Adam."""

from .compare import published_cells

experiment = published_cells("6", "Table 6: Adam and quasi-global Adam")

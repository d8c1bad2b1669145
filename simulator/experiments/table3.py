"""Table 3: ImageNet-32 and ImageNet."""

from .compare import published_cells

experiment = published_cells("3", "Table 3: ImageNet-32 and ImageNet")

"""Table 1: methods, models and heterogeneity on CIFAR-10."""

from .compare import published_cells

experiment = published_cells("1", "Table 1: methods, models and heterogeneity on CIFAR-10")

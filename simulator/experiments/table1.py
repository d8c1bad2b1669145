"""Table 1: methods, models and heterogeneity on CIFAR-10."""

from functools import partial

from .compare import against_paper
from .published import table
from .training import Training, cells_of

experiment = Training(
    "Table 1: methods, models and heterogeneity on CIFAR-10",
    cells_of(table("1")),
    partial(against_paper, "1"),
)

"""Table 4: the time-varying one-peer exponential graph."""

from functools import partial

from .compare import against_paper
from .published import table
from .training import Training, cells_of

experiment = Training(
    "Table 4: the time-varying one-peer exponential graph", cells_of(table("4")), partial(against_paper, "4")
)

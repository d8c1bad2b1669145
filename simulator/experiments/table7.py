"""Table 7: numbers of agents."""

from functools import partial

from .compare import against_paper
from .published import table
from .training import Training, cells_of

experiment = Training("Table 7: numbers of agents", cells_of(table("7")), partial(against_paper, "7"))

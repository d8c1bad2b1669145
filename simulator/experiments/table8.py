"""Table 8: refreshing the quasi-global buffer every tau rounds."""

from functools import partial

from .compare import against_paper
from .published import table
from .training import Training, cells_of

experiment = Training(
    "Table 8: refreshing the quasi-global buffer every tau rounds",
    cells_of(table("8")),
    partial(against_paper, "8"),
)

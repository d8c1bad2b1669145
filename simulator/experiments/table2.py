"""Table 2: gradient tracking and D2 against quasi-global momentum."""

from functools import partial

from .compare import against_paper
from .published import table
from .training import Training, cells_of

experiment = Training(
    "Table 2: gradient tracking and D2 against quasi-global momentum",
    cells_of(table("2")),
    partial(against_paper, "2"),
)

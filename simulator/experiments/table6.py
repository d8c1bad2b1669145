"""Table 6: Adam and quasi-global Adam."""

from functools import partial

from .compare import against_paper
from .published import table
from .training import Training, cells_of

experiment = Training(
    "Table 6: Adam and quasi-global Adam", cells_of(table("6")), partial(against_paper, "6")
)

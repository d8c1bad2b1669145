"""Table 5: other ways to share momentum."""

from functools import partial

from .compare import against_paper
from .published import table
from .training import Training, cells_of

experiment = Training(
    "Table 5: other ways to share momentum", cells_of(table("5")), partial(against_paper, "5")
)

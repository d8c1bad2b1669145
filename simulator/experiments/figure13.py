"""Figure 13: one worker, Nesterov momentum, with and without weight decay."""

from functools import partial

from .compare import against_paper
from .published import table
from .training import Training, cells_of

experiment = Training(
    "Figure 13: one worker, with and without weight decay",
    cells_of(table("fig13")),
    partial(against_paper, "fig13"),
)

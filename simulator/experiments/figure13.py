"""Figure 13: one worker, Nesterov momentum, with and without weight decay."""

from .compare import published_cells

experiment = published_cells("fig13", "Figure 13: one worker, with and without weight decay")

"""Table 3: ImageNet-32 and ImageNet."""

from functools import partial

from .compare import against_paper
from .published import table
from .training import Training, cells_of

experiment = Training("Table 3: ImageNet-32 and ImageNet", cells_of(table("3")), partial(against_paper, "3"))

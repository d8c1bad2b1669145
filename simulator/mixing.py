"""W @ v for all agents at once, dense or sparse, whichever the graph makes faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

Product = Callable[[Tensor], Tensor]

SPARSE_BELOW = 1 / 4
"""Share of nonzeros in W up to which the sparse product wins on a CPU. Measured for n = 16, 64, 256 and
9,000 to 130,000 parameters: a ring of 16 (3/16) mixes in 0.6 of the dense time and a ring of 256 in 0.07,
at 5/16 the two are equal, and a complete graph takes 2 to 5 times as long."""


def product(
    W: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
) -> Product:
    """The function v -> W @ v for `W: [n, n]` and `v: [n, d]` of the given dtype and device; with `rows` and
    `columns` (which hold all nonzeros of these rows) that part of W only, and v is then the rows `columns`.

    On a CPU a sparse W is applied as weighted sums of rows (`embedding_bag`), which beats torch's COO and
    CSR products about twofold and has no beta warning. Its sums run in order of the columns, so that a part
    gives bit for bit what the whole would.
    """
    W = W.to(dtype=dtype, device=device)
    sparse = device.type == "cpu" and int((W != 0).sum()) <= SPARSE_BELOW * W.numel()
    if rows is not None and columns is not None and len(rows) < len(W):
        W = W[list(rows)][:, list(columns)]
    if not sparse:
        return lambda v: W @ v
    nonzero = W != 0
    positions = nonzero.nonzero()[:, 1]
    weights = W[nonzero]
    firsts = nonzero.sum(1).cumsum(0).roll(1)
    firsts[0] = 0
    return lambda v: embedding_bag(positions, v, firsts, mode="sum", per_sample_weights=weights)

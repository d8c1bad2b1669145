"""W @ v for all agents at once, dense or sparse, whichever the graph makes faster; or as agents with secure
sums compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from p2pqg.privacy.masking import RANGE, encode, mixed

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


class SecureSums:
    """The function v -> W @ v, bit for bit as agents with secure sums make it: each row from the own vector
    and the fixed-point sum of the neighbours'. Masks, which cancel, are left out. Arguments as of `product`;
    `saturated` counts the numbers of each row's own vector that did not fit, over all calls."""

    def __init__(
        self, W: Tensor, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None
    ) -> None:
        rows = range(len(W)) if rows is None else rows
        columns = range(len(W)) if columns is None else columns
        self._own = [columns.index(i) for i in rows]
        self._terms = [
            [(k, float(W[i, j])) for k, j in enumerate(columns) if j != i and W[i, j]] for i in rows
        ]
        self.saturated = torch.zeros(len(rows), dtype=torch.int64)

    def __call__(self, v: Tensor) -> Tensor:
        encoded: dict[tuple[int, float], Tensor] = {}
        own = v[self._own]
        out = torch.empty_like(own)
        for x, terms, row in zip(own, self._terms, out, strict=True):
            total = torch.zeros(v.shape[1], dtype=torch.int32, device=v.device)
            for j, w in terms:
                if (j, w) not in encoded:
                    encoded[j, w], _ = encode(v[j], w)
                total += encoded[j, w]
            row.copy_(mixed(x, total, [w for _, w in terms]))
        self.saturated += (own.abs() > RANGE).sum(1).cpu()
        return out

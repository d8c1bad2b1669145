"""W @ v for all agents at once: as agents compute it, bit for bit, or as one matrix product.

    x_i + sum_j w_ij (x_j - x_i)      (`p2pqg.gossip.mixing`)

is taken for all agents together, one neighbour of each after the other. That is n times as many passes over
memory as an agent has neighbours, so where some agent has many (a star, a complete graph), and on an
accelerator, a library multiplies with W instead, in an order that depends on its shapes: the same up to
rounding.

Decided against: weighted sums of rows by `embedding_bag`, which for a ring take half the time (of about a
hundredth of a round) and add fused products, the own among them, as no agent does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from p2pqg.gossip.mixing import pulled
from p2pqg.privacy.masking import RANGE, encode, mixed

from .columns import blocks

Product = Callable[[Tensor], Tensor]

FEW_NEIGHBOURS, SHARE = 8, 1 / 16
"""Neighbours, as a number and as a share of all agents, up to which W @ v is taken as agents take it."""


def product(
    W: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
) -> Product:
    """The function v -> W @ v for `W: [n, n]` and `v: [n, d]` of the given dtype and device; with `rows` and
    `columns` (which hold all nonzeros of these rows) that part of W only, and v is then the rows `columns`.
    """
    degree = int((W != 0).fill_diagonal_(False).sum(1).max())
    as_agents = device.type == "cpu" and degree <= max(FEW_NEIGHBOURS, SHARE * len(W))
    rows = range(len(W)) if rows is None else rows
    columns = range(len(W)) if columns is None else columns
    if as_agents:
        return _AsAgents(W, rows, columns, dtype)
    part = W.to(dtype=dtype, device=device)
    if len(rows) < len(W):
        part = part[list(rows)][:, list(columns)]
    return lambda v: part @ v


class _AsAgents:
    """v -> W @ v as agents compute it; arguments as of `product`.

    An agent with fewer neighbours than others pulls towards itself with weight 0, which changes nothing.
    """

    def __init__(self, W: Tensor, rows: Sequence[int], columns: Sequence[int], dtype: torch.dtype) -> None:
        self._own = torch.tensor([columns.index(i) for i in rows])
        self._all = len(rows) == len(columns)
        part = W[list(rows)][:, list(columns)].scatter(1, self._own[:, None], 0.0)
        edges = part != 0
        order = edges.int().argsort(dim=1, descending=True, stable=True)[:, : int(edges.sum(1).max())]
        weights = part.gather(1, order)
        theirs = torch.where(weights != 0, order, self._own[:, None])
        self._pulls = list(zip(weights.to(dtype).T[:, :, None], theirs.T.contiguous(), strict=True))

    def __call__(self, v: Tensor) -> Tensor:
        n, d = v.shape
        columns = blocks(n, d, v.itemsize)
        if len(columns) == 1:
            return self._mixed(v)
        out = v.new_empty(len(self._own), d)
        for block in columns:
            out[:, block] = self._mixed(v[:, block])
        return out

    def _mixed(self, v: Tensor) -> Tensor:
        own = v if self._all else v[self._own]
        return pulled(
            own, ((weights, v.index_select(0, theirs).sub_(own)) for weights, theirs in self._pulls)
        )


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

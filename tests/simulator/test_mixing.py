"""Dense or sparse, W @ v is W @ v."""

from __future__ import annotations

import pytest
import torch

from p2pqg import topology
from p2pqg.gossip.mixing import pulled
from p2pqg_simulator.mixing import SecureSums, product

GRAPHS = [
    *[(name, n) for name in ("ring", "complete", "star", "isolated") for n in (1, 2, 3, 8, 33)],
    ("torus", 36), ("social", 32), ("one-peer-exponential", 13), ("one-peer-hypercube", 32),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("name", "n"), GRAPHS)
def test_product_equals_the_matrix(name: str, n: int, dtype: torch.dtype, tolerance: float) -> None:
    v = torch.randn(n, 17, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    for graph in topology.build(name, n).graphs:
        mixed = product(graph.matrix(), dtype, torch.device("cpu"))(v.to(dtype))
        assert mixed.dtype == dtype
        torch.testing.assert_close(mixed.double(), graph.matrix() @ v, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "n"), [("ring", 33), ("torus", 16), ("star", 9), ("complete", 9), ("one-peer-exponential", 13)]
)
def test_few_neighbours_mix_as_agents_do_bit_for_bit(name: str, n: int, dtype: torch.dtype) -> None:
    """Agent by agent, neighbour by neighbour; narrow, and so wide that it is taken in blocks of columns."""
    for graph, d in zip(topology.build(name, n).graphs, (3, 1 + (1 << 20)), strict=False):
        v = torch.randn(n, d // n + 1, generator=torch.Generator().manual_seed(n), dtype=dtype)
        found = product(graph.matrix(), dtype, torch.device("cpu"))(v)
        for i in range(n):
            assert torch.equal(found[i], pulled(v[i], [(w, v[j] - v[i]) for j, w in graph.row(i).items()]))
        rows = [0, n - 1]
        columns = sorted({*rows, *graph.incoming[0], *graph.incoming[n - 1]})
        part = product(graph.matrix(), dtype, torch.device("cpu"), rows, columns)
        assert torch.equal(part(v[columns]), found[rows])


@pytest.mark.parametrize(("name", "n"), [("ring", 5), ("torus", 9), ("social", 32), ("complete", 4)])
def test_secure_sums_are_the_matrix_within_their_rounding(name: str, n: int) -> None:
    v = torch.randn(n, 17, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    W = topology.build(name, n).graph(0).matrix()
    sums = SecureSums(W)
    mixed = sums(v)
    torch.testing.assert_close(mixed, W @ v, rtol=0, atol=n * 2**-25)
    assert not sums.saturated.any()
    rows = [1, 3]
    columns = [j for j in range(n) if any(W[i, j] for i in rows)]
    assert torch.equal(SecureSums(W, rows, columns)(v[columns]), mixed[rows])
    v[1, :3] = 200.0
    sums(v)
    assert sums.saturated.tolist() == [3 * (i == 1) for i in range(n)]

"""Dense or sparse, W @ v is W @ v."""

from __future__ import annotations

import pytest
import torch

from p2pqg import topology
from p2pqg_simulator.mixing import product

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

"""Tensors on the wire: exact where they can be, unbiased where they cannot."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from p2pqg.errors import LocalProtocolError, TrainingDiverged
from p2pqg.seeds import generator
from p2pqg.wire.tensors import WIRE_DTYPES, finite, payload, snapshot, tensor

NARROWING = [
    (torch.float32, "float16"),
    (torch.float64, "float16"),
    (torch.bfloat16, "float16"),
    (torch.float64, "float32"),
]
LOSSLESS = [
    (torch.float16, "float16"),
    (torch.float16, "float32"),
    (torch.bfloat16, "float32"),
    (torch.float32, "float32"),
    (torch.float32, "float64"),
    (torch.float64, "float64"),
]


def narrow(dtype: torch.dtype, wire: str) -> tuple[float, float, float]:
    """Smallest normal, smallest subnormal and largest value that both dtypes hold."""
    info, own = torch.finfo(WIRE_DTYPES[wire]), torch.finfo(dtype)
    return info.tiny, info.tiny * info.eps, min(info.max, own.max)


def spread(dtype: torch.dtype, wire: str, d: int, seed: int = 0) -> Tensor:
    """Values of every magnitude the wire dtype has, subnormal ones and zero included."""
    g = generator(seed, "test")
    _, grid, largest = narrow(dtype, wire)
    low, high = np.log2(grid) - 3, np.log2(largest) - 0.01
    exponents = low + (high - low) * torch.rand(d, generator=g, dtype=torch.float64)
    x = (2**exponents * (2 * torch.randint(0, 2, (d,), generator=g) - 1)).to(dtype)
    x[0] = 0.0
    return x


def neighbours(x: Tensor, wire: str) -> tuple[np.ndarray, np.ndarray]:
    """The largest wire value <= x and the smallest >= x, from numpy's rounding."""
    exact = x.double().numpy()
    nearest = exact.astype(wire)
    up, down = (
        np.nextafter(nearest, np.asarray(np.inf, wire)),
        np.nextafter(nearest, np.asarray(-np.inf, wire)),
    )
    below = np.where(nearest.astype(np.float64) <= exact, nearest, down)
    above = np.where(nearest.astype(np.float64) >= exact, nearest, up)
    return below.astype(np.float64), above.astype(np.float64)


@pytest.mark.parametrize(("dtype", "wire"), NARROWING, ids=str)
def test_narrowing_picks_one_of_the_two_neighbours(dtype: torch.dtype, wire: str) -> None:
    x = spread(dtype, wire, 20_000)
    below, above = neighbours(x, wire)
    q = snapshot(x, wire, generator(1, "wire"))
    assert q.dtype == WIRE_DTYPES[wire]
    values = q.double().numpy()
    assert np.all((values == below) | (values == above))
    inexact = below < above
    if dtype != torch.bfloat16:  # whose normal values are all halfs
        assert 0.4 < np.mean(values[inexact] == above[inexact]) < 0.6


@pytest.mark.parametrize(("dtype", "wire"), NARROWING, ids=str)
def test_narrowing_is_unbiased(dtype: torch.dtype, wire: str) -> None:
    x = spread(dtype, wire, 300, seed=2)
    draws, g = 4000, generator(2, "wire")
    mean = torch.zeros(300, dtype=torch.float64)
    for _ in range(draws):
        mean += snapshot(x, wire, g).double() / draws
    below, above = neighbours(x, wire)
    gap = np.where(above > below, above - below, 1.0)
    p = (x.double().numpy() - below) / gap
    deviation = np.sqrt(np.maximum(p * (1 - p), 1 / draws) / draws)
    z = (mean.numpy() - x.double().numpy()) / gap / deviation
    z[below == above] = 0  # exact, up to the sum over draws
    assert np.abs(z).max() < 5
    assert abs(z.mean()) < 5 / np.sqrt(300)


@pytest.mark.parametrize(("dtype", "wire"), NARROWING + LOSSLESS, ids=str)
def test_what_the_wire_holds_goes_out_unchanged(dtype: torch.dtype, wire: str) -> None:
    x = spread(dtype, wire, 5000).to(WIRE_DTYPES[wire]).to(dtype)
    q = snapshot(x, wire, generator(3, "wire"))
    assert torch.equal(q.to(dtype), x)


@pytest.mark.parametrize(("dtype", "wire"), LOSSLESS, ids=str)
def test_a_snapshot_is_a_copy(dtype: torch.dtype, wire: str) -> None:
    x = torch.ones(10, dtype=dtype)
    g = generator(4, "wire")
    before = g.get_state()
    q = snapshot(x, wire, g)
    assert torch.equal(g.get_state(), before), "nothing was rounded, so nothing was drawn"
    x.zero_()
    assert q.sum() == 10


@pytest.mark.parametrize("d", [1, 2, 3, 5, 1000])
def test_every_length(d: int) -> None:
    x = torch.randn(d, generator=generator(d, "test"))
    assert (snapshot(x, "float16", generator(0, "wire")) - x).abs().max() < 2 * 2**-10 * x.abs().max()


def test_the_same_generator_gives_the_same_value_and_another_gives_another() -> None:
    x = torch.randn(1000, generator=generator(5, "test"))
    first, again, other = (snapshot(x, "float16", generator(5, "wire", agent)) for agent in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("dtype", "wire"), NARROWING + LOSSLESS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_never_leaves(dtype: torch.dtype, wire: str, value: float) -> None:
    x = torch.zeros(100, dtype=dtype)
    x[50] = value
    with pytest.raises(TrainingDiverged):
        snapshot(x, wire, generator(0, "wire"))


def test_a_value_too_large_for_the_wire_never_leaves() -> None:
    g = generator(0, "wire")
    assert snapshot(torch.tensor([65504.0, -65503.9]), "float16", g).abs().max() == 65504
    with pytest.raises(TrainingDiverged, match="65504"):
        snapshot(torch.tensor([1.0, -65505.0]), "float16", g)
    with pytest.raises(TrainingDiverged, match="float32"):
        snapshot(torch.tensor([1e39], dtype=torch.float64), "float32", g)


@pytest.mark.parametrize("wire", sorted(WIRE_DTYPES))
def test_payloads_are_views_of_little_endian_bytes(wire: str) -> None:
    q = torch.tensor([1.0, -2.5, 0.0], dtype=WIRE_DTYPES[wire])
    view = payload(q)
    assert bytes(view) == np.array([1.0, -2.5, 0.0]).astype(np.dtype(wire).newbyteorder("<")).tobytes()
    buffer = bytearray(view)
    back = tensor(buffer, wire, 3)
    assert torch.equal(back, q)
    if sys.byteorder == "little":
        q[2] = 7.0
        assert bytes(view)[-2:] != bytes(2)
        back[0] = 9.0
        assert tensor(buffer, wire, 3)[0] == 9.0


def test_a_buffer_of_another_size_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError, match="12 bytes"):
        tensor(bytearray(12), "float32", 4)


@given(st.lists(st.floats(width=16), min_size=1, max_size=20), st.sampled_from(sorted(WIRE_DTYPES)))
def test_finite(values: list[float], wire: str) -> None:
    assert finite(torch.tensor(values, dtype=WIRE_DTYPES[wire])) == bool(np.isfinite(values).all())


def test_a_sum_that_overflows_is_looked_at_twice() -> None:
    assert finite(torch.full((10,), 3e38))
    assert finite(torch.full((10_000_000,), 65504.0, dtype=torch.float16))


# What rounding does to training: quasi-global momentum on quadratics, gossiping on a ring as the agents do.

AGENTS, COORDINATES, REPLICAS = 8, 4, 2000
BETA, MU, ROUNDS = 0.9, 0.9, 100


def train(lr: float, wire: str, stochastic: bool) -> tuple[Tensor, float]:
    """Agent i descends f_i(x) = |x - c_i|^2 / 2, a problem of a few coordinates that is repeated many times
    along d, so that replicas differ by the rounding's draws only.

    Returns the momentum buffers `[agents, replicas, coordinates]` after the last round and how far the
    exchanges moved the sum over agents, relative to its size, at worst.
    """
    problem = generator(11, "test")
    shape = (AGENTS, 1, COORDINATES)
    c = torch.randn(shape, generator=problem, dtype=torch.float64)
    x = 3 + 0.01 * torch.randn(shape, generator=problem, dtype=torch.float64)
    c, x = (v.repeat(1, REPLICAS, 1) for v in (c, x))
    m_hat, draws, worst = torch.zeros_like(x), generator(11, "wire"), 0.0
    for _ in range(ROUNDS):
        half = x - lr * (BETA * m_hat + (x - c))
        q = snapshot(half.flatten(), wire, draws).view_as(x) if stochastic else half.to(WIRE_DTYPES[wire])
        q = q.double()
        mixed = half + (q.roll(1, 0) - q) / 3 + (q.roll(-1, 0) - q) / 3
        worst = max(worst, ((mixed.sum(0) - half.sum(0)).norm() / half.sum(0).norm()).item())
        m_hat = MU * m_hat + (1 - MU) * (x - mixed) / lr
        x = mixed
    return m_hat, worst


@pytest.mark.parametrize("lr", [1e-4, 1e-5])
def test_at_a_small_learning_rate_the_mean_is_kept_and_the_momentum_unbiased(lr: float) -> None:
    """The buffer's error is rounding / lr. Rounded at random its mean is zero (everything else is linear), so
    over many replicas it vanishes; rounded to nearest it is the same in every replica and stays."""
    exact, _ = train(lr, "float64", stochastic=False)
    at_random, drift_at_random = train(lr, "float16", stochastic=True)
    to_nearest, drift_to_nearest = train(lr, "float16", stochastic=False)
    assert max(drift_at_random, drift_to_nearest) < 1e-12
    standard_error = (at_random - exact).std(dim=1) / REPLICAS**0.5
    assert ((at_random - exact).mean(dim=1).abs() / standard_error).max() < 5
    assert ((to_nearest - exact).mean(dim=1).abs() / standard_error).median() > 10
    assert (to_nearest - exact).norm() > 1e-6 / lr * exact.norm(), "grows as the rate shrinks"

"""Tensors <-> payloads: little-endian values of the wire dtype, nothing else.

A narrower wire rounds. What an agent sends is then also what it must use for itself: the exchange adds
w (Q_j - Q_i), where Q is the value that went out, so the mean over agents is kept exactly however coarse
Q is. Rounding is stochastic, because the quasi-global difference d = (x - x') / lr divides the rounding
error by lr: an error that is zero on average stays harmless there, a deterministic one does not.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from p2pqg.errors import LocalProtocolError, TrainingDiverged

WIRE_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
"""The wire dtypes by the name that travels in BEGIN."""

_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
_BLOCK = 1 << 18
_FRACTION_BITS = {torch.float16: 10, torch.float32: 23, torch.float64: 52}


def snapshot(x: Tensor, wire: str, generator: torch.Generator) -> Tensor:
    """The value of `x: [d]` that goes out: a new contiguous tensor in the wire dtype, on the CPU.

    Exact where the wire dtype holds every value of x's dtype; otherwise x is rounded to one of its two
    neighbours with probabilities that make the mean exact, E[Q] = x. The generator is not drawn from
    when nothing is rounded.

    Raises `TrainingDiverged` for a value that is not finite or that the wire dtype cannot hold.
    """
    dtype = WIRE_DTYPES[wire]
    if torch.promote_types(x.dtype, dtype) == dtype:
        q = x.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
        if not finite(q):
            raise TrainingDiverged("a parameter is not finite")
        return q
    carrier = torch.promote_types(x.dtype, torch.float32)  # holds x exactly and can be seen as integers
    return _round_stochastically(x.detach().to("cpu", carrier), dtype, generator)


def payload(q: Tensor) -> memoryview:
    """The bytes of `q: [d]` as they travel, without a copy (on little-endian machines)."""
    array = q.numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).data.cast("B")


def tensor(buffer: bytearray | memoryview, wire: str, d: int) -> Tensor:
    """A writable buffer that holds a payload as a tensor `[d]` that shares its memory."""
    dtype = WIRE_DTYPES[wire]
    if len(buffer) != d * dtype.itemsize:
        raise LocalProtocolError(f"{len(buffer)} bytes are not {d} values of {wire}")
    q = torch.frombuffer(buffer, dtype=dtype)
    if sys.byteorder == "big":
        q.numpy().byteswap(inplace=True)
    return q


def finite(x: Tensor) -> bool:
    """Whether every value is finite.

    The sum of values that include NaN or an infinity is never finite, and summing is 25 times faster
    than looking at each value; only a sum that overflowed is looked at twice.
    """
    total = x.sum(dtype=torch.float32 if x.dtype == torch.float16 else None)
    return bool(total.isfinite()) or bool(x.isfinite().all())


def _round_stochastically(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """x: [d] in float32 or float64 -> [d] in a narrower dtype, E[result] = x; in blocks that fit a cache."""
    low, high = x.aminmax()
    limit = torch.finfo(dtype).max
    if not (low >= -limit and high <= limit):
        raise TrainingDiverged(
            f"a parameter is not finite or larger than {limit:g}, which {str(dtype)[6:]} cannot hold"
        )
    q = torch.empty(x.shape, dtype=dtype)
    for target, block in zip(torch.split(q, _BLOCK), torch.split(x, _BLOCK), strict=True):
        _round_block(block, target, generator)
    return q


def _round_block(x: Tensor, q: Tensor, generator: torch.Generator) -> None:
    """Round x: [b] into q: [b].

    Above the smallest normal number, adding a uniform integer to the fraction bits that will be cut off,
    and then cutting them, rounds the magnitude up with probability (distance from below) / ulp, exactly.
    Below it the narrow format is a fixed grid of its smallest subnormal number.
    """
    cut = _FRACTION_BITS[x.dtype] - _FRACTION_BITS[q.dtype]
    bits = x.view(_BITS[x.dtype])
    rounded = _uniform_bits(bits, cut, generator).add_(bits).bitwise_and_(-(1 << cut))
    q.copy_(rounded.view(x.dtype))
    info = torch.finfo(q.dtype)
    subnormal = (x.abs() < info.tiny).nonzero().squeeze(1)
    if subnormal.numel():
        grid = info.tiny * info.eps
        steps = x[subnormal] / grid
        below = steps.floor()
        up = torch.rand(steps.shape, generator=generator, dtype=torch.float64) < steps - below
        q[subnormal] = ((below + up) * grid).to(q.dtype)


def _uniform_bits(like: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Integers uniform on [0, 2^count) in the shape and dtype of `like`.

    One draw of 63 bits costs about as much as one float, so four values share it where 15 bits suffice.
    """
    if count <= 15:
        draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(generator=generator)
        return (draws.view(torch.int16)[: like.numel()] & ((1 << count) - 1)).to(like.dtype)
    return torch.empty_like(like).random_(0, 1 << count, generator=generator)

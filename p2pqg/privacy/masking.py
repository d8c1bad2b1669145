"""Numbers whose sum is exact, and masks that hide them: the arithmetic of secure sums.

    Enc(w x) = round(2^24 w x) in 32 bits, two's complement
    c_j = Enc(w_ij x_j) + sum over the other senders k of s_jk PRG(key_jk)   mod 2^32,   s_jk = -s_kj
    sum_j c_j = sum_j Enc(w_ij x_j)

so the masked sum is the unmasked one bit for bit, in whatever order it is added up. One step is 6e-8, about
that of float32 between 0.5 and 1. Values beyond ±128 saturate; because the weights add up to less than 1,
nothing else can leave the range. Rounding is to the nearest, as float32 rounds: a stochastic one would cost
as much as the rest together, to make an error smaller than that of the arithmetic around it unbiased.

The generator is ChaCha20. AES in counter mode is 1.5 times as fast with AES instructions, several times
slower without them, as small devices are, and both are a small part of the encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2pqg.errors import TrainingDiverged
from p2pqg.privacy.randomness import Secret

FRACTION_BITS = 24
SCALE = 2.0**FRACTION_BITS
RANGE = 2.0 ** (31 - FRACTION_BITS)
"""Magnitude at which a number saturates: 128."""

Pad = tuple[Secret, int]
"""What two senders share for one sum, and +1 or -1: which of them adds the mask."""


def encode(x: Tensor, weight: float) -> tuple[Tensor, int]:
    """round(2^24 w clamp(x, -128, 128)) as int32, shaped like x, and how many values were clamped.

    Raises `TrainingDiverged` for a value that is not finite.
    """
    scaled, limit = x * (weight * SCALE), weight * RANGE * SCALE
    low, high = scaled.aminmax()
    saturated = 0
    if not (low >= -limit and high <= limit):
        if not (low.isfinite() and high.isfinite()):
            raise TrainingDiverged("a parameter is not finite")
        saturated = int((scaled.abs() > limit).sum())
        scaled.clamp_(-limit, limit)
    return scaled.round_().to(torch.int32), saturated


def mixed(x: Tensor, total: Tensor, weights: Sequence[float]) -> Tensor:
    """x + sum_j w_j (x_j - x), of `x: [d]` and `total: [d]`, the int32 sum of the Enc(w_j x_j), with the
    weights in order of names."""
    return (x * (1.0 - sum(weights))).add_(total.to(x.dtype), alpha=1 / SCALE)


def apart(x: Tensor, mixed: Tensor, weights: Sequence[float]) -> float:
    """How far the neighbours' average is from the own model: ||sum_j w_j (x_j - x)|| / (sum_j w_j ||x||)."""
    return float((mixed - x).norm() / (sum(weights) * x.norm()).clamp(min=torch.finfo(x.dtype).tiny))


def masked(values: Tensor, pads: Iterable[Pad]) -> tuple[memoryview, int]:
    """The payload of `values: int32 [d]` with all pads on it, and 64 bits with the rest of the same pads.

    Over all senders of a sum the latter add up to 0 modulo 2^64 exactly if the masks cancel (and by chance
    once in 2^64).
    """
    words = values.numel()
    sum_ = values.numpy().view(np.uint32).copy()
    check = 0
    for secret, sign in pads:
        mask, rest = pad(secret, words)
        if sign > 0:
            sum_ += mask
        else:
            sum_ -= mask
        check += sign * rest
    return sum_.astype("<u4", copy=False).data.cast("B"), check % (1 << 64)


def pad(secret: Secret, words: int) -> tuple[NDArray[np.uint32], int]:
    """So many words of 32 bits, and one of 64."""
    stream = secret.stream("mask")
    return stream.words(-(-words // 2)).view("<u4")[:words], int(stream.words(1)[0])


def total(payload: memoryview) -> Tensor:
    """A sum as it was added up, as int32 `[d]` that shares its memory."""
    return torch.frombuffer(payload, dtype=torch.int32)

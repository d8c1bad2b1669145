"""The only source of public randomness: one seed, one stream for each role, agent and round.

A stream is named, not drawn from another stream, so nothing depends on the order in which agents or
rounds happen to run. Two agents never share a stream unless they name the same one. Secret randomness
(noise for differential privacy, masks) must *not* come from here: a neighbour knows the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stream(seed: int, role: str, agent: str = "", round: int = 0) -> int:
    """A 63-bit seed: blake2b of ``seed | role | agent | round``."""
    name = f"{seed}|{role}|{agent}|{round}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def generator(
    seed: int, role: str, agent: str = "", round: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A torch generator for one named stream."""
    return torch.Generator(device).manual_seed(stream(seed, role, agent, round))


def numpy_generator(seed: int, role: str, agent: str = "", round: int = 0) -> np.random.Generator:
    """A numpy generator for one named stream."""
    return np.random.default_rng(stream(seed, role, agent, round))


@contextmanager
def scoped(seed: int, role: str, agent: str = "", round: int = 0) -> Iterator[None]:
    """Run third-party code that insists on torch's global CPU generator (module initialisers, dropout)
    on a named stream, and leave the global generator as it was."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(stream(seed, role, agent, round))
    try:
        yield
    finally:
        torch.set_rng_state(before)

"""Secure sums at one agent: when they can be had, its vector masked for each receiver, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch import Tensor

from p2pqg.algorithms import Algorithm
from p2pqg.errors import ConfigError
from p2pqg.gossip.sums import Mask, Summed
from p2pqg.privacy.keys import KeyRing
from p2pqg.privacy.masking import apart, encode, masked, mixed, total
from p2pqg.topology import Topology

WIRE = "fixed32"
"""What the agents of a network agree on as their wire format."""


def require_possible(topology: Topology, algorithm: Algorithm, name: str, min_senders: int) -> None:
    """Raise `ConfigError` with the reason why `algorithm` (called `name`) cannot mix sums on a topology."""
    if algorithm.needs_exact_sums or algorithm.needs_mean:
        raise ConfigError(
            f"{name} needs exchanges that both ends make or neither: a secure sum that is lost is lost at "
            "one end, from which its corrections or averages never recover; expected another, qg-dsgdm-n say",
            key="algorithm.name",
        )
    few = [
        (len(incoming), i, round)
        for round, graph in enumerate(topology.graphs)
        for i, incoming in enumerate(graph.incoming)
        if len(incoming) < min_senders
    ]
    if few:
        degree, i, round = min(few)
        raise ConfigError(
            f"secure sums add up at least {min_senders} neighbours, because a sum of fewer shows single "
            f"models; in round {round} of {topology.name} agent {i} has {degree}",
            key="topology",
        )


@dataclass
class Tally:
    """What secure sums have brought and cost an agent: `masked` sums received, `lost` mixes, `saturated`
    numbers of its own, and `drift`, an estimate of how far its losses have moved the sum of all models:
    each by the share of the row that was lost at this end alone, times the length of its last whole mix."""

    masked: int = 0
    lost: int = 0
    saturated: int = 0
    drift: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For checkpoint, card and metrics."""
        return {f"sums_{name}": value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Tally:
        """The inverse of `as_json`."""
        return cls(**{name.removeprefix("sums_"): value for name, value in record.items()})


class SecureSums:
    """The computing part: call it in the worker thread. `enter` takes the vector of an exchange, `mask` makes
    of it what a receiver asks for, `mixed` takes the result."""

    def __init__(self, keys: KeyRing) -> None:
        self.keys, self.tally = keys, Tally()
        self.apart = 0.0
        """How far the last neighbours' average was, see `masking.apart`."""
        self.just_saturated = 0
        """Numbers in the last exchange that did not fit."""
        self._x = torch.empty(0)
        self._encoded: dict[float, Tensor] = {}
        self._moved = 0.0

    def enter(self, x: Tensor) -> None:
        """`x: [d]` is what goes out in the exchange that begins."""
        self._x, self._encoded, self.just_saturated = x, {}, 0

    def mask(self, job: Mask) -> tuple[memoryview, int, int]:
        """Payload, its checksum (xxh3-64) and the check word."""
        if job.weight not in self._encoded:
            self._encoded[job.weight], saturated = encode(self._x, job.weight)
            self.tally.saturated += max(0, saturated - self.just_saturated)
            self.just_saturated = max(self.just_saturated, saturated)
        payload, check = masked(self._encoded[job.weight], self.keys.pads(job))
        return payload, xxhash.xxh3_64_intdigest(payload), check

    def mixed(self, summed: Summed) -> Tensor:
        """The own vector after the exchange."""
        x, tally = self._x, self.tally
        tally.lost += bool(summed.lost)
        tally.drift += summed.one_sided * self._moved
        if summed.total is None:
            return x.clone()
        weights = tuple(summed.weights.values())
        after = mixed(x, total(summed.total), weights)
        tally.masked += 1
        self._moved, self.apart = float((after - x).norm()), apart(x, after, weights)
        return after

"""What a secure sum is made of: the request to mask a vector, the sum as it comes in, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from p2pqg.errors import RemoteProtocolError
from p2pqg.gossip.edge import Position
from p2pqg.gossip.messages import Data, Key, Masked, Senders

WORD_BYTES = 4
"""A number on the wire: 32 bits, as float32 takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """To do: weigh and mask the own vector of `position` for the receiver `peer`, with the `keys` of the
    other senders in `announced`, and hand it to `SecureGossip.masked`."""

    peer: str
    position: Position
    weight: float
    announced: Senders
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Summed:
    """An exchange is over. `total` is the sum modulo 2^32, as int32, over `weights` (by name, in order); None
    if there is none, with the reason in `lost` if senders were asked. `one_sided` is the share of the
    incoming edges on which a peer took from this agent, or was to, and this agent not from the peer."""

    position: Position
    total: memoryview | None
    weights: Mapping[str, float]
    missed: Mapping[str, str]
    heard: float
    traded: Mapping[str, tuple[int, int]]
    one_sided: float
    lost: str = ""

    @property
    def mixed(self) -> tuple[str, ...]:
        """Whose sum it is."""
        return tuple(self.weights) if self.total is not None else ()


class Keys(Protocol):
    """The agent's keys."""

    @property
    def own(self) -> Key:
        """What the agent says of its own key."""

    def check(self, key: Key) -> None:
        """Raise `RemoteProtocolError` unless it is a key of the agent that it names."""


@dataclass(slots=True, eq=False)
class Sum:
    """What comes from the senders of one set, added up as it comes."""

    announced: Senders
    weights: Mapping[str, float]
    total: NDArray[np.uint32]
    check: int = 0
    received: dict[str, int] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    _hashes: dict[str, xxhash.xxh3_64] = field(default_factory=dict)

    def append(self, sender: str, data: Data) -> bool:
        """Add the next chunk; whether there was anything new in it."""
        start, chunk = self.received.get(sender, 0), data.payload
        end = data.offset + len(chunk)
        if end <= start:
            return False
        if data.offset != start or end > self.total.nbytes or end % WORD_BYTES:
            raise RemoteProtocolError(
                f"chunk covers bytes {data.offset} to {end}, expected from {start} to at most "
                f"{self.total.nbytes}"
            )
        self.total[start // WORD_BYTES : end // WORD_BYTES] += np.frombuffer(chunk, dtype="<u4")
        self._hashes.setdefault(sender, xxhash.xxh3_64()).update(chunk)
        self.received[sender] = end
        return True

    def finish(self, sender: str, masked: Masked) -> None:
        """All of a sender is here."""
        if sender in self.finished:
            return
        if self.received.get(sender, 0) != self.total.nbytes:
            raise RemoteProtocolError(
                f"{self.received.get(sender, 0)} of {self.total.nbytes} bytes arrived before MASKED"
            )
        if self._hashes[sender].intdigest() != masked.checksum:
            raise RemoteProtocolError("checksum differs")
        self.check = (self.check + masked.check) % (1 << 64)
        self.finished.add(sender)

    @property
    def complete(self) -> bool:
        """Whether all have sent all."""
        return self.finished == set(self.announced.names)

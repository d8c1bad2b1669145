"""An agent's state at a round boundary as bytes, for one that joins.

The tensors of a checkpoint, in order of their names, as they lie in memory (little-endian). The receiver
knows every name, shape and dtype from its own model, so nothing but numbers travels and nothing is allocated
from a peer's word.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor

from p2pqg.errors import RemoteProtocolError
from p2pqg.gossip.messages import Data, StateHead
from p2pqg.wire.tensors import finite


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The state at the start of `round`; `checksum` is xxh3-64 over its bytes."""

    round: int
    payload: memoryview
    checksum: int


def snapshot(tensors: Mapping[str, Tensor], round: int) -> Snapshot:
    """A copy of `tensors` that later rounds do not change."""
    data = np.empty(size(tensors), dtype=np.uint8)
    start = 0
    for name in sorted(tensors):
        raw = _little_endian(tensors[name].detach().cpu().contiguous().reshape(-1))
        data[start : start + len(raw)] = raw
        start += len(raw)
    return Snapshot(round, data.data, xxhash.xxh3_64_intdigest(data.data))


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of a snapshot of tensors like these."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


class Download:
    """A snapshot as it arrives. Its size is that of our own state; chunks must follow each other without a
    gap; what has arrived stays when a connection breaks, and counts as long as the donor still has the same
    snapshot."""

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._like = dict(like)
        self._bytes = np.empty(size(like), dtype=np.uint8)
        self.head: StateHead | None = None
        self.received = 0

    @property
    def complete(self) -> bool:
        """Whether every byte is here."""
        return self.head is not None and self.received == len(self._bytes)

    def begin(self, head: StateHead) -> None:
        """The donor's answer. Raises `RemoteProtocolError` if it is not to what we asked."""
        if head.size != len(self._bytes):
            raise RemoteProtocolError(f"expected a state of {len(self._bytes)} bytes, found {head.size}")
        if self.head is None or head.snapshot != self.head.snapshot:
            self.received = 0
        if head.offset != self.received:
            raise RemoteProtocolError(f"expected the state from byte {self.received}, found {head.offset}")
        self.head = head

    def append(self, chunk: Data) -> None:
        """Take the next chunk. Raises `RemoteProtocolError` if it does not fit."""
        end = chunk.offset + len(chunk.payload)
        if self.head is None or chunk.offset != self.received or end > len(self._bytes):
            raise RemoteProtocolError(
                f"chunk covers bytes {chunk.offset} to {end}, expected from {self.received} "
                f"to at most {len(self._bytes)}"
            )
        self._bytes[chunk.offset : end] = np.frombuffer(chunk.payload, dtype=np.uint8)
        self.received = end

    def tensors(self) -> dict[str, Tensor]:
        """The state, checked. Raises `RemoteProtocolError` if it is not what the donor announced, or holds a
        value that is not finite; all of it is to be thrown away then."""
        assert self.head is not None
        if xxhash.xxh3_64_intdigest(self._bytes.data) != self.head.snapshot:
            self.head, self.received = None, 0
            raise RemoteProtocolError("the checksum of the state differs")
        tensors, start = {}, 0
        for name in sorted(self._like):
            like = self._like[name]
            end = start + like.numel() * like.element_size()
            raw = torch.from_numpy(_little_endian_bytes(self._bytes[start:end], like.element_size()))
            tensors[name] = raw.view(like.dtype).reshape(like.shape).clone()
            if like.is_floating_point() and not finite(tensors[name]):
                self.head, self.received = None, 0
                raise RemoteProtocolError(f"{name} holds a value that is not finite")
            start = end
        return tensors


def _little_endian(flat: Tensor) -> np.ndarray:
    raw = flat.view(torch.uint8).numpy()
    return _little_endian_bytes(raw, flat.element_size())


def _little_endian_bytes(raw: np.ndarray, item: int) -> np.ndarray:
    """The bytes, turned around in every item on a big-endian machine."""
    return raw if sys.byteorder == "little" else raw.reshape(-1, item)[:, ::-1].reshape(-1).copy()

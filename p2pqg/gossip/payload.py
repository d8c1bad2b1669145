"""One neighbour's vector as it arrives, checked byte by byte as it does."""

from __future__ import annotations

import math

import numpy as np
import torch
import xxhash

from p2pqg.errors import RemoteProtocolError
from p2pqg.gossip.messages import Begin, Data, End

ITEM_BYTES = {"float16": 2, "float32": 4, "float64": 8}
"""Wire dtypes and the size of one number."""


class Incoming:
    """The payload that a BEGIN announced. Its size is checked before memory is taken; chunks must follow
    each other without a gap; END must match the checksum; every number must be finite.

    A repeated chunk is dropped; everything else that does not fit raises `RemoteProtocolError`.
    """

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.position = (begin.round, begin.exchange)
        self.payload = np.empty(begin.payload_bytes, dtype=np.uint8)
        self.received = 0
        self.complete = begin.payload_bytes == 0
        self.checksum = 0
        self._hash = xxhash.xxh3_64()

    def append(self, data: Data) -> None:
        """Take the next chunk."""
        chunk = np.frombuffer(data.payload, dtype=np.uint8)
        end = data.offset + len(chunk)
        if end <= self.received:
            return
        if data.offset != self.received or end > len(self.payload):
            raise RemoteProtocolError(
                f"chunk covers bytes {data.offset} to {end}, expected from {self.received} "
                f"to at most {len(self.payload)}"
            )
        if len(chunk) % ITEM_BYTES[self.begin.wire]:
            raise RemoteProtocolError(f"chunk of {len(chunk)} bytes cuts a {self.begin.wire} in two")
        self.payload[data.offset : end] = chunk
        self._hash.update(chunk)
        if not _finite(self.payload[data.offset : end].view(self.begin.wire)):
            raise RemoteProtocolError("payload holds a value that is not finite")
        self.received = end

    def finish(self, end: End) -> None:
        """Compare with what the sender says it sent."""
        if self.received != len(self.payload):
            raise RemoteProtocolError(f"{self.received} of {len(self.payload)} bytes arrived before END")
        if self._hash.intdigest() != end.checksum:
            raise RemoteProtocolError("checksum differs")
        self.checksum = end.checksum
        self.complete = True


def _finite(values: np.ndarray[tuple[int], np.dtype[np.floating]]) -> bool:
    """Whether all are finite. A finite sum proves it and is 30 times faster; a sum may overflow without
    cause, so only then every value is looked at."""
    tensor = torch.from_numpy(values)
    total = float(tensor.sum(dtype=torch.float32 if tensor.dtype == torch.float16 else tensor.dtype))
    return math.isfinite(total) or bool(tensor.isfinite().all())

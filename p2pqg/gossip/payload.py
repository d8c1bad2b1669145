"""One neighbour's vector as it arrives, checked byte by byte as it does."""

from __future__ import annotations

import numpy as np
import torch
import xxhash

from p2pqg.errors import RemoteProtocolError
from p2pqg.gossip.messages import Begin, Data, End
from p2pqg.wire.tensors import WIRE_DTYPES, finite


class Incoming:
    """The payload that a BEGIN announced. Its size is checked before memory is taken; chunks must follow
    each other without a gap; END must match the checksum; every number must be finite.

    A repeated chunk is dropped; everything else that does not fit raises `RemoteProtocolError`.
    """

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.position = (begin.round, begin.exchange)
        self._bytes = np.empty(begin.payload_bytes, dtype=np.uint8)  # numpy, because it does not fill
        self.payload: memoryview = self._bytes.data
        self.received = 0
        self.complete = begin.payload_bytes == 0
        self.checksum = 0
        self._hash = xxhash.xxh3_64()

    def append(self, data: Data) -> None:
        """Take the next chunk."""
        chunk = data.payload
        end = data.offset + len(chunk)
        if end <= self.received:
            return
        if data.offset != self.received or end > len(self.payload):
            raise RemoteProtocolError(
                f"chunk covers bytes {data.offset} to {end}, expected from {self.received} "
                f"to at most {len(self.payload)}"
            )
        dtype = WIRE_DTYPES[self.begin.wire]
        if len(chunk) % dtype.itemsize:
            raise RemoteProtocolError(f"chunk of {len(chunk)} bytes cuts a {self.begin.wire} in two")
        self.payload[data.offset : end] = chunk
        self._hash.update(chunk)
        if not finite(torch.from_numpy(self._bytes[data.offset : end]).view(dtype)):
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

"""What secure sums cost an agent, to be measured: a simulation adds up fixed-point numbers without masks,
because masks cancel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from p2pqg.gossip.messages import CHUNK_BYTES, Data, Masked, Senders
from p2pqg.gossip.sums import Mask, Sum, Summed
from p2pqg.privacy import KeyRing, SecureSums


def round_of_sums(x: Tensor) -> Callable[[], None]:
    """All that secure sums compute for one agent in a round on a ring: its model `x: [d]` masked for two
    receivers (each with one other sender), two masked models added up as they arrive, and the row of W."""
    rings = [KeyRing("benchmark", "1", name, 1) for name in ("a", "b", "c")]
    side = SecureSums(rings[0])
    senders = {peer: Senders(1, 0, 0, 2, 1, ("a", "b"), (1, 1)) for peer in ("d", "e")}
    jobs = [Mask(peer, (0, 0), 1 / 3, asked, (rings[1].own,)) for peer, asked in senders.items()]
    asked = Senders(1, 0, 0, 2, 1, ("b", "c"), (1, 1))
    others = []
    for ring, other in ((rings[1], rings[2]), (rings[2], rings[1])):
        theirs = SecureSums(ring)
        theirs.enter(x)
        others.append(theirs.mask(Mask("a", (0, 0), 1 / 3, asked, (other.own,))))
    weights = {"b": 1 / 3, "c": 1 / 3}

    def mixing() -> None:
        side.enter(x)
        for job in jobs:
            side.mask(job)
        incoming = Sum(asked, weights, np.zeros(len(x), dtype=np.uint32))
        for name, (payload, checksum, check) in zip(asked.names, others, strict=True):
            for start in range(0, len(payload), CHUNK_BYTES):
                incoming.append(name, Data(1, start, payload[start : start + CHUNK_BYTES]))
            incoming.finish(name, Masked(1, checksum, check))
        assert incoming.complete
        assert not incoming.check
        total = incoming.total.view(np.int32).data.cast("B")
        side.mixed(Summed((0, 0), total, weights, {}, 0.0, {}, 0.0))

    return mixing

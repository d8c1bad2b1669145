"""hivemind's two-peer averaging, as a baseline: all-reduce time once the group has been formed.

    pip install hivemind

Each averager is a process of its own, like our agents. `require_trigger` holds both at the moment the group
stands, so that finding each other does not count.
"""

from __future__ import annotations

import statistics
import time

import torch
from hivemind import DHT
from hivemind.averaging import DecentralizedAverager
from hivemind.averaging.control import AveragingStage

MEGABYTES, REPETITIONS = 10, 7


def median_seconds() -> float:
    """Seconds to average `MEGABYTES` of float32 between two peers."""
    first = DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    peers = [first, DHT(start=True, initial_peers=first.get_visible_maddrs())]
    averagers = [
        DecentralizedAverager(
            [torch.randn(MEGABYTES * 250_000)],
            dht,
            prefix="benchmark",
            target_group_size=2,
            min_matchmaking_time=0.5,
            request_timeout=0.2,
            start=True,
        )
        for dht in peers
    ]
    try:
        return statistics.median(sorted(_once(averagers) for _ in range(REPETITIONS + 1))[:REPETITIONS])
    finally:
        for averager in averagers:
            averager.shutdown()
        for dht in peers:
            dht.shutdown()


def _once(averagers: list[DecentralizedAverager]) -> float:
    controls = [averager.step(wait=False, require_trigger=True, timeout=60) for averager in averagers]
    deadline = time.monotonic() + 60
    while any(control.stage != AveragingStage.AWAITING_TRIGGER for control in controls):
        if time.monotonic() > deadline:
            raise TimeoutError("hivemind's peers did not find each other")
        time.sleep(0.001)
    start = time.perf_counter()
    for control in controls:
        control.allow_allreduce()
    for control in controls:
        control.result()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(f"{1e3 * median_seconds():.1f} ms for {MEGABYTES} MB between two peers")

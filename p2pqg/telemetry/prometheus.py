"""The status as Prometheus metrics, made when they are asked for: training pays nothing for them.

Every number of a round's measurements is a gauge of its own, so what an algorithm or a privacy ledger adds
to them is there without a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from p2pqg.addresses import host_and_port
from p2pqg.errors import ConfigError
from p2pqg.storage import REASONS

Metric = CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily

COUNTED = {"bytes_sent": "Encoded bytes sent.", "bytes_received": "Encoded bytes received."}
PEER_COUNTS = {
    "rounds": "Rounds mixed with the peer.",
    "missed": "Rounds in which the peer was missing.",
    "model_bytes_sent": "Bytes of models sent to the peer.",
    "model_bytes_received": "Bytes of models received from the peer.",
}


class StatusCollector(Collector):
    """Turns `Status.as_json()` into metrics."""

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        status = self._status()
        about = {key: str(status[key]) for key in ("agent", "network", "run", "version", "state")}
        yield InfoMetricFamily("p2pqg_agent", "Which agent this is, and what it does.", about)
        yield gauge("neighbours", "Peers that are connected.", status["neighbours"])
        yield gauge("problems", "Matters that need an operator.", len(status["problems"]))
        yield gauge("uptime_seconds", "Since the agent was started.", status["uptime_s"])
        if (days := status["security"].get("days_left")) is not None:
            yield gauge("certificate_days_left", "Until the agent's certificate expires.", days)
        metrics = {**status["scores"], **status["metrics"], "round": status["round"]}
        for key, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if key in COUNTED:
                yield CounterMetricFamily(f"p2pqg_{key}", COUNTED[key], value=value)
            else:
                name = key.removesuffix("_s") + "_seconds" if key.endswith("_s") else key
                yield gauge(name, f"{key} of the last round.", value)
        yield from self._of_peers(status["peers"])

    def _of_peers(self, peers: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
        connected = GaugeMetricFamily(
            "p2pqg_peer_connected", "Whether the peer is connected.", labels=["peer"]
        )
        for name, peer in peers.items():
            connected.add_metric([name], peer["connected"])
        yield connected
        for key, text in PEER_COUNTS.items():
            counter = CounterMetricFamily(f"p2pqg_peer_{key}", text, labels=["peer"])
            for name, peer in peers.items():
                counter.add_metric([name], peer[key])
            yield counter


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """One gauge without labels."""
    return GaugeMetricFamily(f"p2pqg_{name}", text, value=value)


def serve(address: str, status: Callable[[], Mapping[str, Any]]) -> Callable[[], None]:
    """Serve metrics at ``host:port`` from a thread of its own; returns what ends it.

    Raises `ConfigError` if the address is wrong or taken.
    """
    host, port = host_and_port(address, "telemetry.prometheus")
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        why = REASONS.get(error.errno or 0, error.strerror or str(error))
        raise ConfigError(f"cannot listen at {address}: {why}", key="telemetry.prometheus") from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop

"""What an agent tells about itself. It emits events; everything here only listens.

jsonl        JSON lines that survive a crash
metrics      measurements of each round, in the agent's home
status       what the agent is doing now: for `p2pqg status`, `peers` and the metrics endpoint
journal      what the agent remembers of its run: curves, events, the quality of its links
audit        who joined, who was refused and why, what was exchanged
log          the same events for people on a terminal, or as JSON
prometheus   the status as metrics

An observer is any `observe(event, details)`. None of them imports torch.
"""

from p2pqg.telemetry.jsonl import JsonLines, clean
from p2pqg.telemetry.metrics import MetricsWriter, read_metrics

__all__ = ["JsonLines", "MetricsWriter", "clean", "read_metrics"]

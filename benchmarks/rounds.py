"""Sections of `benchmarks/gossip.py`: what a round of real agents costs beside its training.

Agents are processes that talk gRPC over loopback, as `p2pqg swarm` starts them; times come from the
`metrics.jsonl` that every agent writes, bytes from their cards.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from claims import Claim

from p2pqg.telemetry import read_metrics
from p2pqg_simulator.simulate import make_tasks, settings_from
from p2pqg_simulator.swarm import Swarm, run

TASKS = Path(__file__).with_name("tasks.py").resolve()
WARM_UP = 5
"""Rounds at the start that do not count."""


def measured(rounds: int, **options: Any) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Run a swarm; each agent's metrics after the warm-up, and each agent's card."""
    settings = settings_from({"rounds": WARM_UP + rounds, "finish_rounds": 0, **options})
    with tempfile.TemporaryDirectory() as folder:
        swarm = Swarm(settings, Path(folder))
        if run(swarm, make_tasks(settings), lambda members: None) is None:
            raise SystemExit("the swarm did not finish")
        homes = [member.home for member in swarm.members]
        lines = [read_metrics(home / "metrics.jsonl")[WARM_UP : WARM_UP + rounds] for home in homes]
        return lines, [json.loads((home / "model.json").read_text()) for home in homes]


def overhead() -> list[Claim]:
    """Four agents on a ring: what of a round is not the agent's own training."""
    small, _ = measured(200, agents=4, task="digits", task_options={"width": 45}, alpha=1.0)
    idle_s = statistics.median(line["exchange_s"] for agent in small for line in agent)
    big, cards = measured(
        4, agents=4, task=f"{TASKS}:make_dense", task_options={"millions": 10.0}, local_steps=40, lr=0.01
    )
    share = statistics.median(1 - line["exchange_s"] / line["round_s"] for agent in big for line in agent)
    round_s = statistics.median(line["round_s"] for agent in big for line in agent)
    raw = (WARM_UP + 4) * 2 * 4 * big_parameters(cards[0])
    bytes_ratio = statistics.median(raw / card["bytes_sent"] for card in cards)
    return [
        Claim("a round of 51k parameters, not training", f"{1e3 * idle_s:.1f} ms (at most 50)",
              0.05 / idle_s, 1.0),
        Claim("training's share, 10 M parameters, 40 steps", f"{share:.1%} of {round_s:.2f} s a round",
              share, 0.7),
        Claim("two raw models / bytes sent a round", f"{1 / bytes_ratio:.5f} x the raw bytes",
              bytes_ratio, 1 / 1.001),
    ]  # fmt: skip


def big_parameters(card: dict[str, Any]) -> int:
    """Parameters of the model that a card describes."""
    return int(card["agreed"]["model"].split()[0])


def exchange() -> list[Claim]:
    """Two agents exchange 10 MB and do nothing else: snapshot, checksum, both ways at once, checks of every
    byte, the three-message decision, mixing."""
    lines, _ = measured(100, agents=2, task=f"{TASKS}:make_still", algorithm="dsgd")
    seconds = statistics.median(line["exchange_s"] for agent in lines for line in agent)
    whole = statistics.median(line["round_s"] for agent in lines for line in agent)
    claims = [
        Claim("validated exchange of 10 MB", f"{1e3 * seconds:.1f} ms (at most 20)", 0.02 / seconds, 1.0),
        Claim("the whole round around it", f"{1e3 * whole:.1f} ms", 0.02 / whole),
    ]
    theirs = hivemind_seconds()
    if theirs is None:
        print("hivemind is not installed: its averaging is not measured (pip install hivemind)")
    else:
        claims.append(
            Claim("hivemind's averaging of 10 MB / ours", f"{1e3 * theirs:.1f} / {1e3 * seconds:.1f} ms",
                  theirs / seconds, 3.0)
        )  # fmt: skip
    return claims


def hivemind_seconds() -> float | None:
    """Median time in which two of hivemind's averagers average 10 MB, both in own processes; None if it is
    not installed."""
    try:
        import hivemind_baseline
    except ImportError:
        return None
    return float(hivemind_baseline.median_seconds())

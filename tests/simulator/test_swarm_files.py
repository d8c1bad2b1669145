"""What a swarm gathers from its agents' files when not every agent did every round."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from p2pqg import checkpoint
from p2pqg.config import SimulationSettings
from p2pqg.tasks.quadratic import make_task
from p2pqg.telemetry import read_metrics
from p2pqg_simulator.swarm import Swarm

ROUNDS = 4


def test_rounds_that_an_agent_left_out_are_marked(tmp_path: Path) -> None:
    """Means are over those who were there; the last round has its scores even if nobody did it."""
    settings = SimulationSettings.model_validate(
        {"agents": 2, "rounds": ROUNDS, "task": {"name": "quadratic", "dtype": "float64"}}
    )
    swarm = Swarm(settings, tmp_path)
    tasks = [make_task(settings.context(name, settings.names)) for name in settings.names]
    done = {"agent-000": (1, 2, 3, 5), "agent-001": (1, 3, 5, 6)}
    for i, member in enumerate(swarm.members):
        x = torch.full((tasks[0].spec.d,), float(i), dtype=torch.float64)
        checkpoint.save(member.home / "checkpoint.safetensors", {"x": x}, {"round": ROUNDS})
        save_file(tasks[0].spec.views(x), member.home / "model.safetensors")
        card = {"agent": member.name, "gossip_only_rounds": 2, "bytes_sent": 1, "privacy": None,
                "participation": {}}  # fmt: skip
        (member.home / "model.json").write_text(json.dumps(card))
        lines = [
            {"round": round, "disagreement": 0.1 * i}
            if round > ROUNDS
            else {"round": round, "lr": 0.1, "loss": float(i + round), "round_s": 1.0, "exchange_s": 0.5}
            for round in done[member.name]
        ]
        (member.home / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    summary = swarm.gather(tasks)

    lines = {line["round"]: line for line in read_metrics(swarm.folder.metrics)}
    assert list(lines) == [1, 2, 3, 4, 5, 6]
    assert [lines[round].get("train_loss") for round in (1, 2, 3)] == [1.5, 2.0, 3.5]
    assert [lines[round].get("missing", []) for round in lines] == [
        [], ["agent-001"], [], ["agent-000", "agent-001"], [], ["agent-000"],
    ]  # fmt: skip
    assert lines[4]["mean_loss"] == summary["last"]["mean_loss"]
    assert lines[6]["disagreement"] == 0.1

"""An agent as a process whose background task is killed: it ends with an error, and names the task."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ENVIRONMENT, network

DYING = """
import asyncio, sys
from p2pqg.agent import Agent
from p2pqg.cli.main import main

killed, train = sys.argv.pop(), Agent._train_one_round

async def train_until_a_task_is_killed(self, metrics):
    if self.training.round == 3:
        (task,) = [t for t in asyncio.all_tasks() if t.get_name() == f"{self.name}: {killed}"]
        task.cancel()
    return await train(self, metrics)

Agent._train_one_round = train_until_a_task_is_killed
main()
"""


SLOWLY = [pytest.param(n, marks=pytest.mark.slow) for n in ("watch certificates", "signs of life", "page")]


@pytest.mark.parametrize("name", ["clock", *SLOWLY])
def test_an_agent_whose_background_task_is_killed_ends_and_names_it(tmp_path: Path, name: str) -> None:
    web = {"telemetry": {"web": "127.0.0.1:0"}} if name == "page" else {}
    (agent,) = network(tmp_path, 1, rounds=10_000, **web)
    file = tmp_path / agent / "agent.toml"
    command = [sys.executable, "-c", DYING, "join", "--config", str(file), name]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, env=ENVIRONMENT)
    assert ended.returncode == 1, ended.stderr
    assert f"Error: background task '{name}' was cancelled" in ended.stderr
    status = json.loads((tmp_path / agent / "home" / "status.json").read_text())
    assert (status["state"], name in status["reason"]) == ("failed", True)

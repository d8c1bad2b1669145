"""Stopped at a named round and started again, a network goes on bit for bit as if it never stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from p2pqg.agent import Agent
from p2pqg.algorithms import ALGORITHMS, build
from p2pqg.config import AgentTable, RunSettings
from p2pqg.errors import ConfigError
from p2pqg.home import Home
from p2pqg.tasks import load_task_factory
from p2pqg.telemetry import read_metrics
from p2pqg.transport import virtual_time
from p2pqg.transport.memory import Faults, MemoryNetwork
from p2pqg_simulator.swarm import memory_network

MEASURED_BY_THE_CLOCK = {"round_s", "exchange_s", "bytes_sent", "bytes_received"}


def settings(algorithm: str = "qg-dsgdm-n", **changes: Any) -> RunSettings:
    table = {
        "rounds": 9,
        "eval_every": 3,
        "task": {"name": "digits", "alpha": 0.1, "options": {"width": 2}},
        "algorithm": {"name": algorithm, "local_steps": 2 if build(algorithm).multi_step else 1},
        "schedule": {"lr": 0.05, "milestones": [12]},
        "finish": {"max_rounds": 3},
    }
    return RunSettings.model_validate(table | changes)


def run(homes: Path, settings: RunSettings, stop_after: int | None = None, seed: int = 0) -> list[Agent]:
    topology = "complete" if settings.algorithm.build().needs_mean else "ring"
    network = memory_network(topology, 4)
    memory = MemoryNetwork(seed, Faults(delay_s=(0.0, 0.1)))
    factory = load_task_factory(settings.task.name, homes)
    agents = [
        Agent(
            AgentTable(name=name),
            network,
            settings,
            factory(settings.context(name, network.names)),
            memory.transport(name),
            home=Home(homes / name),
            stop_after=stop_after,
        )
        for name in network.names
    ]

    async def main() -> None:
        await asyncio.gather(*(agent.run() for agent in agents))

    virtual_time.run(main())
    return agents


FEW = ("qg-dsgdm-n", "qg-dadam", "d2-plus")
"""Each keeps something else: a buffer, counters, several vectors."""


@pytest.mark.parametrize(
    "algorithm",
    [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS if name not in FEW)],
)
def test_a_stopped_network_resumes_bit_for_bit(algorithm: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", settings(algorithm))
    stopped = run(tmp_path / "parts", settings(algorithm), stop_after=4)
    assert {agent.training.round for agent in stopped} == {4}
    assert not (tmp_path / "parts" / "agent-000" / "model.safetensors").exists()
    resumed = run(tmp_path / "parts", settings(algorithm), seed=1)
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one.training.x, other.training.x)
        for name in one.training.state:
            assert torch.equal(one.training.state[name], other.training.state[name])
        assert one.participation == other.participation


def test_resumed_metrics_are_those_of_an_uninterrupted_run(tmp_path: Path) -> None:
    run(tmp_path / "whole", settings())
    run(tmp_path / "parts", settings(), stop_after=5)
    run(tmp_path / "parts", settings())

    def lines(folder: str) -> list[dict[str, Any]]:
        metrics = read_metrics(tmp_path / folder / "agent-001" / "metrics.jsonl")
        return [{k: v for k, v in line.items() if k not in MEASURED_BY_THE_CLOCK} for line in metrics]

    assert lines("parts") == lines("whole")


def test_an_incarnation_is_never_used_twice(tmp_path: Path) -> None:
    assert [Home(tmp_path).next_incarnation() for _ in range(3)] == [1, 2, 3]


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    run(tmp_path, settings(), stop_after=2)
    with pytest.raises(ConfigError, match=r"checkpoint\.safetensors: made with algorithm = qg-dsgdm-n"):
        run(tmp_path, settings("dsgd"))
    with pytest.raises(ConfigError, match=r"made with schedule = .*; restore the settings"):
        run(tmp_path, settings(schedule={"lr": 0.1}))

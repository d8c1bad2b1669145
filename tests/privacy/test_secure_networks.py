"""Agents that mix by secure sums: the simulator's trajectory, what crosses the wire, what a crash costs."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from p2pqg.agent import Agent
from p2pqg.config import AgentTable, NetworkFile, RunSettings, SimulationSettings, agent_names
from p2pqg.errors import ConfigError
from p2pqg.gossip.messages import Data, Key, Masked, Message, Ready, Senders
from p2pqg.home import Home
from p2pqg.tasks.quadratic import make_task
from p2pqg.telemetry import read_metrics
from p2pqg.transport import virtual_time
from p2pqg.transport.memory import Cut, Faults, MemoryNetwork
from p2pqg_simulator import simulate
from p2pqg_simulator.swarm import in_memory, memory_network

DELAYS = Faults(delay_s=(0.001, 0.3), duplicate=0.1)
N = 4


def settings(algorithm: str = "qg-dsgdm-n", rounds: int = 12, **changes: Any) -> SimulationSettings:
    table = {
        "agents": N,
        "rounds": rounds,
        "task": {"name": "quadratic", "dtype": "float64", "options": {"noise": 0.1}},
        "algorithm": {"name": algorithm, "weight_decay": 1e-3},
        "schedule": {"lr": 0.2, "warmup_steps": 4, "milestones": [9]},
        "finish": {"max_rounds": 6},
        "privacy": {"secure_sums": True},
    }
    return SimulationSettings.model_validate(table | changes)


def network(run: SimulationSettings, memory: MemoryNetwork, **table: Any) -> list[Agent]:
    tasks = [make_task(run.context(name, run.names)) for name in run.names]
    there = memory_network(run.topology, run.agents)
    return [agent for agent, _ in in_memory(there, run, tasks, memory, **table)]


def models(agents: list[Agent]) -> Tensor:
    return torch.stack([agent.training.x for agent in agents])


@pytest.mark.parametrize(
    ("algorithm", "topology", "n"),
    [
        ("qg-dsgdm-n", "ring", 4),
        ("qg-dsgdm-n", "ring", 5),
        ("dsgd", "complete", 4),
        ("qg-dadam", "torus", 9),
        ("dsgdm-n-buffer-ring", "ring", 3),
    ],
)
def test_agents_equal_the_simulator_bit_for_bit(algorithm: str, topology: str, n: int) -> None:
    run = settings(algorithm, agents=n, topology=topology)
    *_, reference = simulate(run, engine="loop")
    for seed in range(2):
        agents = network(run, MemoryNetwork(seed, DELAYS))
        assert torch.equal(models(agents), reference.x)
        assert all(a.sums and a.sums.tally.lost == 0 and a.sums.tally.masked >= 12 for a in agents)

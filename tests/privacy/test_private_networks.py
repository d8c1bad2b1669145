"""Agents with privacy: the same trajectory as the simulator's, what leaves them, restarts, a spent budget."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from private_tasks import SECRET, dense, task
from torch import Tensor

from p2pqg.agent import Agent
from p2pqg.config import AgentTable, SimulationSettings
from p2pqg.errors import ConfigError, StorageError
from p2pqg.home import Home
from p2pqg.privacy import PrivateTask
from p2pqg.tasks.base import TaskContext
from p2pqg.telemetry import read_metrics
from p2pqg.transport import virtual_time
from p2pqg.transport.memory import Faults, MemoryNetwork
from p2pqg_simulator import simulate
from p2pqg_simulator.engine import Simulation
from p2pqg_simulator.private import PrivateLoop, PrivateVmap
from p2pqg_simulator.record import record
from p2pqg_simulator.simulate import build
from p2pqg_simulator.swarm import memory_network

pytest.importorskip("opacus")

ALGORITHMS = ["dsgd", "qg-dsgdm-n", "qg-dadam", "dsgdm-n-gt", "d2-plus", "dsgdm-n-buffer-ring"]


def make_task(context: TaskContext) -> Any:
    """Shares of different sizes."""
    return task(dense, samples=12 + 3 * context.index, batch_size=4, agent=context.agent)


def settings(algorithm: str = "qg-dsgdm-n", local_steps: int = 1, **changes: Any) -> SimulationSettings:
    table = {
        "agents": 4,
        "rounds": 6,
        "task": {"dtype": "float64"},
        "algorithm": {"name": algorithm, "weight_decay": 1e-3, "local_steps": local_steps},
        "schedule": {"lr": 0.1},
        "finish": {"max_rounds": 2},
        "privacy": {"dp": True, "noise_multiplier": 1.0, "max_grad_norm": 0.5, "accountant": "rdp"},
    }
    return SimulationSettings.model_validate(table | changes)


def network(
    run: SimulationSettings, homes: Path | None = None, events: list[Any] | None = None, **options: Any
) -> list[Agent]:
    names = run.names
    memory = MemoryNetwork(0, Faults(delay_s=(0.001, 0.2)))
    agents = [
        Agent(
            AgentTable(name=name, checkpoint_every=2),
            memory_network(run.topology, run.agents),
            run,
            make_task(run.context(name, names)),
            memory.transport(name),
            home=Home(homes / name) if homes else None,
            observe=lambda event, details, name=name: (
                None if events is None else events.append((name, event, dict(details)))
            ),
            **options,
        )
        for name in names
    ]

    async def main() -> None:
        await asyncio.gather(*(agent.run() for agent in agents))

    virtual_time.run(main())
    return agents


def models(agents: list[Agent]) -> Tensor:
    return torch.stack([agent.training.x for agent in agents])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_agents_equal_the_simulator_with_the_same_secret(algorithm: str, engine: Any) -> None:
    run = settings(algorithm)
    found = models(network(run, secret=SECRET))
    *_, last = simulate(run, task=make_task, engine=engine, secret=SECRET)
    torch.testing.assert_close(found, last.x, rtol=0, atol=1e-6 if engine == "vmap" else 1e-12)
    *_, other = simulate(run, task=make_task, engine=engine)
    assert not torch.allclose(found, other.x), "another secret, other noise"


def test_both_engines_give_the_same_private_gradients() -> None:
    loop, batched = (
        build(settings(), make_task=make_task, engine=e, secret=SECRET) for e in ("loop", "vmap")
    )
    assert isinstance(loop.gradients, PrivateLoop)
    assert isinstance(batched.gradients, PrivateVmap)
    x = torch.randn(4, loop.spec.d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for step in range(5):
        one, other = (simulation.gradients(x, [{}] * 4, step)[0] for simulation in (loop, batched))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)  # the grid is 6e-8 of the noise


def test_local_steps_are_steps_of_the_budget() -> None:
    run = settings(local_steps=3)
    *_, last = simulate(run, task=make_task, engine="loop", secret=SECRET)
    torch.testing.assert_close(models(network(run, secret=SECRET)), last.x, rtol=0, atol=1e-12)


def test_budgets_end_at_the_same_step_in_both() -> None:
    privacy = {"dp": True, "noise_multiplier": 1.0, "target_epsilon": 6.0, "accountant": "rdp"}
    run = settings(privacy=privacy)
    simulation = build(run, make_task=make_task, engine="loop", secret=SECRET)
    affordable = [each.account.affordable for each in simulation.tasks if isinstance(each, PrivateTask)]
    assert min(affordable) < run.rounds < max(affordable), "some agents' budgets end, others' do not"
    *_, last = simulate(run, task=make_task, engine="loop", secret=SECRET)
    torch.testing.assert_close(models(network(run, secret=SECRET)), last.x, rtol=0, atol=1e-12)


def test_a_network_pays_says_and_goes_on_mixing(tmp_path: Path) -> None:
    events: list[Any] = []
    privacy = {"dp": True, "noise_multiplier": 1.0, "target_epsilon": 6.0, "accountant": "rdp"}
    network(settings(privacy=privacy), tmp_path, events)
    spent = [name for name, event, _ in events if event == "budget_spent"]
    assert spent
    assert len(set(spent)) == len(spent), "said once"
    for name in settings().names:
        card = json.loads((tmp_path / name / "model.json").read_text())["privacy"]
        lines = [line for line in read_metrics(tmp_path / name / "metrics.jsonl") if line["round"] <= 6]
        assert card["spent"] == (name in spent)
        assert card["epsilon"] <= 6.0
        assert lines[-1]["epsilon"] >= card["epsilon"] * (1 - 1e-9)
        assert lines[-1]["privacy"]["steps"] == card["steps"] <= 6
        assert all(line["loss"] is None for line in lines), "losses are private"
        assert all(line["neighbours"] == 2 for line in lines), "all go on mixing"


def test_a_network_resumes_and_pays_on(tmp_path: Path) -> None:
    run = settings()
    network(run, tmp_path, stop_after=4)
    agents = network(run, tmp_path)
    assert {agent.training.round for agent in agents} == {8}
    for agent in agents:
        assert agent.protection is not None
        assert agent.protection.report()["steps"] == 6


def test_after_a_rollback_rounds_are_other_rounds_and_cost_again(tmp_path: Path) -> None:
    """The older checkpoints are put back; the ledgers stay. Even an injected secret gives other noise,
    because the incarnation is another."""
    run = settings(finish={"max_rounds": 0})
    network(run, tmp_path, stop_after=2, secret=SECRET)
    for name in run.names:
        shutil.copy(tmp_path / name / "checkpoint.safetensors", tmp_path / name / "old")
    ends = []
    for _ in range(2):
        agents = network(run, tmp_path, secret=SECRET)
        ends.append(models(agents))
        for name in run.names:
            shutil.copy(tmp_path / name / "old", tmp_path / name / "checkpoint.safetensors")
            (tmp_path / name / "model.json").unlink()
    assert not bool((ends[0] == ends[1]).any())
    assert {agent.protection.report()["steps"] for agent in agents if agent.protection} == {2 + 4 + 4}


def test_an_older_ledger_keeps_an_agent_from_starting(tmp_path: Path) -> None:
    run = settings()
    network(run, tmp_path, stop_after=2)
    for name in run.names:
        shutil.copy(tmp_path / name / "ledger.json", tmp_path / name / "old")
    network(run, tmp_path, stop_after=4)
    for name in run.names:
        shutil.copy(tmp_path / name / "old", tmp_path / name / "ledger.json")
    with pytest.raises(StorageError, match="not the newest"):
        network(run, tmp_path)


def test_a_checkpoint_of_training_without_privacy_is_refused(tmp_path: Path) -> None:
    network(settings(privacy=None), tmp_path, stop_after=2)
    with pytest.raises(ConfigError, match="expected a checkpoint of private training"):
        network(settings(), tmp_path)


def test_a_simulation_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Its secret is kept in the folder, so that noise goes on where it stopped."""
    run = SimulationSettings.model_validate(
        {
            "agents": 2,
            "topology": "complete",
            "rounds": 4,
            "task": {"name": "digits", "options": {"width": 2}},
            "privacy": {"dp": True, "target_epsilon": 5.0, "accountant": "rdp"},
        }
    )
    record(run, tmp_path / "whole", secret=SECRET)
    record(run, tmp_path / "parts", stop_after=2, secret=SECRET)
    summary = record(run, tmp_path / "parts", resume=True)
    assert summary is not None
    assert 4.0 < summary["epsilon"] <= 5.0
    for name in ("local-models.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_shares_and_models_that_differ_are_refused_by_the_batched_engine() -> None:
    tasks = build(settings(), make_task=make_task, secret=SECRET).tasks
    assert isinstance(tasks[0], PrivateTask)
    tasks[0].task.transform = object()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="same model and transform"):
        Simulation(
            tasks,
            settings().graph,
            settings().algorithm.build(),
            settings().schedule.build(),
            engine="vmap",
        )

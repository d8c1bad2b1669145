"""What a simulation says it takes, and what it takes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from sample_tasks import dense, normalised, supervised
from torch import nn

from p2pqg import algorithms, allocator, checkpoint, seeds
from p2pqg.algorithms import Algorithm, Answer, Effect, Gradient, drive
from p2pqg.errors import ConfigError
from p2pqg.tasks.registry import TaskContext
from p2pqg.tasks.supervised import SupervisedTask
from p2pqg_simulator import memory, record
from p2pqg_simulator.simulate import build, settings_from


def test_a_dense_gradient_costs_what_its_shapes_say() -> None:
    task = supervised([8], module=dense)[0]
    cost = memory.cost_of(task)
    layers, batch = ((6, 5), (5, 3)), 8
    forward = sum(2 * batch * a * b for a, b in layers)
    inward = 2 * batch * layers[1][0] * layers[1][1]  # the input needs no gradient
    assert cost.operations == 2 * forward + inward
    kept = 8 * batch * (6 + 5 + 3)  # inputs and what the layers make of them, in float64
    assert kept < cost.activations < 8 * kept


def test_live_bytes_sees_what_is_alive_at_once() -> None:
    with memory.LiveBytes() as live:
        a = torch.zeros(1000, dtype=torch.float64)
        b = a + 1
        view = b[:10]
        del b
        torch.zeros(100, dtype=torch.float64)
        assert view.sum() == 10
    assert live.peak == 8 * 2100  # the view keeps all of b


def kept_and_sent(algorithm: Algorithm) -> tuple[int, int]:
    """Vectors of an agent's parameters and state, and of its largest message."""
    messages = []

    def answer(effect: Effect) -> Answer:
        if isinstance(effect, Gradient):
            return (effect.x.clone(),)
        messages.append(len(effect.vectors))
        return effect.vectors

    x = torch.ones(2, 8)
    state = algorithm.init(x)
    drive(algorithm.round(x, state, [0.1]), answer)
    return 1 + sum(v.shape == x.shape for v in state.values()), max(messages, default=0)


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_a_round_in_blocks_takes_state_message_and_gradient(name: str) -> None:
    algorithm = algorithms.build(name)
    state, message = kept_and_sent(algorithm)
    immutable = memory.vectors_of(algorithm, in_blocks=True)
    assert immutable < max(state + message + 1, 2 * state) + 0.3  # the state before and the one after
    assert immutable < memory.vectors_of(algorithm, in_blocks=False)
    limit = state + message + 1 + 0.2
    assert memory.vectors_of(algorithm, in_blocks=True, overwrite=True) < limit
    kept = name == "qg-dadam"  # which asks for a norm after an exchange
    assert memory.vectors_of(algorithm, in_blocks=True, overwrite=True, once=True) < limit + kept


def test_a_footprint_adds_up() -> None:
    tasks = supervised([8, 9, 10, 11], module=normalised)
    one, three = memory.footprint(tasks, 1, 4.5), memory.footprint(tasks, 3, 4.5)
    assert three.activations == 3 * one.activations
    assert memory.footprint(tasks, 9, 4.5).activations == 4 * one.activations
    assert one.data == (8 + 9 + 10 + 11 + 30) * 8 * (6 + 1)
    buffers = 8 * 5 * 2 + 8  # running mean and variance, number of batches
    assert one.models == 8 * tasks[0].spec.d + 4 * buffers
    assert one.vectors == 4 * (8 * tasks[0].spec.d * 4.5 + 2 * buffers)
    assert one.total == one.vectors + one.models + one.activations + one.data


def test_too_little_memory_is_said_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_from({"task": "quadratic", "agents": 4})
    needed = round(memory.KEPT * build(settings).footprint().training)
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed)
    build(settings)
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed - 1)
    with pytest.raises(ConfigError, match=r"agents: training takes .* GiB of memory, cpu has .* GiB left"):
        build(settings)


def test_available_memory_respects_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2000 kB\nMemAvailable:    1000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    cpu = torch.device("cpu")
    assert memory.available_bytes(cpu) == 1000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    assert memory.available_bytes(cpu) == 1000 * 1024
    (tmp_path / "memory.max").write_text("6000\n")
    assert memory.available_bytes(cpu) == 1000
    meminfo.unlink()
    (tmp_path / "memory.max").unlink()
    assert memory.available_bytes(cpu) is None


def test_a_checkpoint_is_written_without_copies(tmp_path: Path) -> None:
    x, m = torch.ones(2, 1 << 18), torch.zeros(2, 1 << 18)
    tracemalloc.start()
    with memory.LiveBytes(x, m) as live:
        checkpoint.save(tmp_path / "checkpoint", {"x": x, "m": m}, {})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert live.peak < x.nbytes / 10
    assert most < x.nbytes / 2
    assert torch.equal(checkpoint.load(tmp_path / "checkpoint")[0]["x"], x)


N, WIDTH, FEATURES, BATCH = 64, 8000, 64, 256
"""64 models of 0.5 M parameters, with activations of 8 MB a layer."""


def wide(context: TaskContext) -> SupervisedTask:
    """A task for `record`."""

    def module() -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))

    random = seeds.generator(0, "data", context.agent)
    inputs, targets = torch.randn(BATCH, FEATURES, generator=random), torch.arange(BATCH) % 3
    return SupervisedTask(
        module, (inputs, targets), (inputs[:8], targets[:8]), agent=context.agent, seed=0, batch_size=BATCH
    )


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(name: str, engine: Any, options: str) -> None:
    """In a process of its own: print what training 64 agents was said to take, and what a run into a folder
    added to the peak, from the first model to the last checkpoint."""
    allocator.pin(memory.KEPT_BLOCKS)  # as the commands do
    settings = settings_from(
        {
            "agents": N, "task": f"{__file__}:wide", "topology": "ring", "lr": 0.01, "rounds": 3,
            "eval_every": 1, "finish_rounds": 2, "algorithm": name, "algorithm_options": json.loads(options),
        }
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        few = settings.model_copy(update={"agents": 4})
        record(few, Path(folder, "few"), engine=engine, threads=1)  # what libraries take, once
        before = peak_bytes()
        record(settings, Path(folder, "all"), engine=engine, threads=1)
        measured = peak_bytes() - before
    simulation = build(settings, engine=engine, overwrite=True)
    stated = simulation.footprint()
    vectors = sum(kept_and_sent(simulation.algorithm)) + 1  # state, message and gradient
    print(stated.training, vectors * N * 4 * simulation.spec.d + stated.activations, measured)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "engine", "options"),
    [
        ("qg-dsgdm-n", "loop", {}),
        ("qg-dsgdm-n", "vmap", {}),
        ("qg-dsgdm-n", "loop", {"tau": 3}),
        *((name, "loop", {}) for name in ("dadam", "qg-dadam", "d2", "dsgdm-n-gt", "slowmo", "mimelite")),
    ],
)
def test_the_statement_holds_for_a_real_process(name: str, engine: str, options: dict[str, int]) -> None:
    command = f"import test_memory; test_memory.measure({name!r}, {engine!r}, {json.dumps(options)!r})"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    )
    stated, limit, measured = map(int, done.stdout.split())
    assert stated / 2 < measured < memory.KEPT * stated
    assert measured < 1.05 * limit

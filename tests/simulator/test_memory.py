"""What a simulation says it takes, and what it takes."""

from __future__ import annotations

import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from sample_tasks import dense, normalised, supervised
from torch import nn

from p2pqg import algorithms, allocator, checkpoint, topology
from p2pqg.algorithms import Algorithm, Answer, Effect, Gradient, drive
from p2pqg.errors import ConfigError
from p2pqg.schedules import constant
from p2pqg.tasks.supervised import SupervisedTask
from p2pqg_simulator import Simulation, memory
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
    vectors = memory.vectors_of(algorithm, in_blocks=True)
    # The iterate before the round stays until the one after it is whole.
    assert vectors < max(state + message + 1, 2 * state) + 0.3
    assert vectors < memory.vectors_of(algorithm, in_blocks=False)


@pytest.mark.parametrize("name", ["dsgd", "dsgdm-n", "qg-dsgdm-n", "dmsgd-option-1", "dsgd-gt", "sgdm-n"])
def test_methods_with_a_buffer_need_not_even_keep_a_message(name: str) -> None:
    algorithm = algorithms.build(name)
    state, message = kept_and_sent(algorithm)
    assert memory.vectors_of(algorithm, in_blocks=True) < state + message + 1 + 0.3


def test_a_footprint_adds_up() -> None:
    tasks = supervised([8, 9, 10, 11], module=normalised)
    algorithm = algorithms.build("dsgd")
    one, three = memory.footprint(tasks, algorithm, 1), memory.footprint(tasks, algorithm, 3)
    assert three.activations == 3 * one.activations
    assert memory.footprint(tasks, algorithm, 9).activations == 4 * one.activations
    assert one.data == (8 + 9 + 10 + 11 + 30) * 8 * (6 + 1)
    buffers = 8 * 5 * 2 + 8  # running mean and variance, number of batches
    assert one.models == 8 * tasks[0].spec.d + 4 * buffers
    assert one.vectors == 4 * (
        8 * tasks[0].spec.d * memory.vectors_of(algorithm, in_blocks=False) + 2 * buffers
    )
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


def wide_tasks(n: int = N) -> list[SupervisedTask]:
    def module() -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))

    tasks = supervised([BATCH] * n, module=module, batch_size=BATCH)
    for task in tasks:
        inputs, targets = task.train
        task.train = (inputs.float().repeat(1, 11)[:, :FEATURES].contiguous(), targets)
        task.test = (task.train[0][:8], task.train[1][:8])
    return tasks


def wide(engine: str, tasks: list[SupervisedTask]) -> Simulation:
    algorithm = algorithms.build("qg-dsgdm-n")
    return Simulation(tasks, topology.build("ring", len(tasks)), algorithm, constant(0.01), engine=engine)


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(engine: str) -> None:
    """In a process of its own: print what training `wide` was said to take and what it added to the peak."""
    torch.set_num_threads(1)
    allocator.pin(memory.KEPT_BLOCKS)  # as the commands do
    small = wide(engine, wide_tasks(4))
    small.advance(small.start(0))  # what libraries take, once
    small.footprint()
    del small
    tasks = wide_tasks()
    before = peak_bytes()
    simulation = wide(engine, tasks)  # which may compute gradients, to compare batched ones with
    stated = simulation.footprint()
    iterate = simulation.start(0)
    for _ in range(3):
        iterate = simulation.advance(iterate)
    limit = 4 * N * 4 * simulation.spec.d + stated.activations  # state, message and gradient of QG-DSGDm-N
    print(stated.vectors, stated.training, limit, peak_bytes() - before)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_the_statement_holds_for_a_real_process(engine: str) -> None:
    command = f"import test_memory; test_memory.measure({engine!r})"
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=folder, check=True, capture_output=True, text=True
    )
    vectors, training, limit, measured = map(int, done.stdout.split())
    assert vectors / 2 < measured < memory.KEPT * training
    assert measured < 1.05 * limit

"""Section of `benchmarks/gossip.py`: gossip in the training process, or in one of its own?

Lockstep: the agent waits for gradients and for neighbours in turn. Either torch computes them in the agent's
worker thread, or a second process does, on parameters and gradients in shared memory.

Overlapped: a trainer runs all the time while rounds of gossip go on beside it, in a thread of the trainer's
process or in another process. (Agents do not overlap rounds yet; this says where gossip should live then.)
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from claims import Claim
from tasks import make_dense, make_still
from torch import nn

from p2pqg import allocator
from p2pqg.agent import Agent
from p2pqg.config import AgentTable, NetworkFile, RunSettings, agent_names
from p2pqg.home import Home
from p2pqg.tasks import Buffers, Evaluation, LocalGradient, Task
from p2pqg.telemetry import read_metrics
from p2pqg.transport.grpc import GrpcTransport
from p2pqg_simulator.swarm import free_ports

ROUNDS, WARM_UP = 120, 20
SECONDS = 4.0
SIZES = {"51k": 0.051, "2.5 M": 2.5}
"""Millions of parameters by what they are called."""


class RemoteTask:
    """Gradients come from another process: x and g are in shared memory, a pipe says when."""

    def __init__(self, task: Task, x: torch.Tensor, g: torch.Tensor, pipe: Connection) -> None:
        self.task, self.x, self.g, self.pipe = task, x, g, pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def gradient(self, x: torch.Tensor, buffers: Buffers, step: int) -> LocalGradient:
        self.x.copy_(x)
        self.pipe.send(step)
        return LocalGradient(self.g.clone(), torch.tensor(self.pipe.recv()), buffers)

    def evaluate(self, x: torch.Tensor, buffers: Buffers) -> Evaluation:
        return self.task.evaluate(x, buffers)


def compute_gradients(make: Callable[[], Task], x: torch.Tensor, g: torch.Tensor, pipe: Connection) -> None:
    """The training process of a `RemoteTask`."""
    torch.set_num_threads(1)
    task = make()
    while (step := pipe.recv()) is not None:
        local = task.gradient(x, {}, step)
        g.copy_(local.g)
        pipe.send(float(local.loss))


class Maker:
    """A task factory for two agents that can cross into another process."""

    def __init__(self, factory: Callable[[Any], Task], name: str, rounds: int, options: dict[str, Any]):
        self.factory, self.name = factory, name
        self.settings = RunSettings.model_validate(
            {
                "rounds": rounds,
                "task": {"options": options},
                "schedule": {"lr": 1e-3},
                "algorithm": {"name": "dsgd"},
                "finish": {"max_rounds": 0},
            }
        )

    def __call__(self) -> Task:
        return self.factory(self.settings.context(self.name, agent_names(2)))


def run_agent(maker: Maker, addresses: list[str], task: Task | None = None, home: Path | None = None) -> None:
    """One of two agents, to its end."""
    torch.set_num_threads(1)
    allocator.pin()
    names = agent_names(2)
    agents = [{"name": name, "address": address} for name, address in zip(names, addresses, strict=True)]
    network = NetworkFile.model_validate({"name": "placement", "agents": agents})
    address = network.addresses[maker.name]
    agent = Agent(
        AgentTable(name=maker.name, listen=address, checkpoint_every=0),
        network,
        maker.settings,
        task or maker(),
        GrpcTransport(address),
        home=Home(home) if home else None,
    )
    asyncio.run(agent.run())


def run_remote(maker: Maker, addresses: list[str], x: Any, g: Any, pipe: Connection, home: Path) -> None:
    """An agent whose gradients come from another process."""
    run_agent(maker, addresses, RemoteTask(maker(), x, g, pipe), home)
    pipe.send(None)


def lockstep_round_s(millions: float, apart: bool) -> float:
    """Median seconds of a round of two agents."""
    context: Any = multiprocessing.get_context("spawn")
    options = {"millions": millions}
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    makers = [Maker(make_dense, name, ROUNDS, options) for name in agent_names(2)]
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        homes = [Path(folder) / maker.name for maker in makers]
        for maker, home in zip(makers, homes, strict=True):
            if apart:
                x = maker().init(0).share_memory_()
                g = torch.zeros_like(x).share_memory_()
                ours, theirs = context.Pipe()
                processes.append(context.Process(target=compute_gradients, args=(maker, x, g, ours)))
                processes.append(
                    context.Process(target=run_remote, args=(maker, addresses, x, g, theirs, home))
                )
            else:
                processes.append(context.Process(target=run_agent, args=(maker, addresses, None, home)))
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        lines = [line for home in homes for line in read_metrics(home / "metrics.jsonl")[WARM_UP:]]
    return statistics.median(line["round_s"] for line in lines)


def trainer_steps_per_s(stop: Callable[[], bool]) -> float:
    """A 20-layer network of width 64, whose small operations suffer most from a busy interpreter."""
    torch.set_num_threads(1)
    model = nn.Sequential(*(layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.ReLU())))
    inputs, steps, start = torch.randn(32, 64), 0, time.perf_counter()
    while not stop():
        model.zero_grad()
        model(inputs).square().mean().backward()
        steps += 1
    return steps / (time.perf_counter() - start)


def overlapped_steps_per_s(d: int, where: str) -> float:
    """The trainer's speed while two agents exchange d parameters without pause: nowhere, in a thread of its
    process, or in another process."""
    context: Any = multiprocessing.get_context("spawn")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    own, other = (Maker(make_still, name, 1_000_000, {"d": d}) for name in agent_names(2))
    processes = []
    if where != "nowhere":
        processes.append(context.Process(target=run_agent, args=(other, addresses), daemon=True))
        if where == "process":
            processes.append(context.Process(target=run_agent, args=(own, addresses), daemon=True))
        else:
            threading.Thread(target=run_agent, args=(own, addresses), daemon=True).start()
        for process in processes:
            process.start()
        time.sleep(8)  # until both have imported torch and met
    end = time.perf_counter() + SECONDS
    speed = trainer_steps_per_s(lambda: time.perf_counter() > end)
    for process in processes:
        process.kill()
        process.join()
    return speed


def in_fresh_process(function: Callable[..., float], *arguments: Any) -> float:
    """Threads that gossip cannot be stopped from outside, so each measurement has a process to itself."""
    with multiprocessing.get_context("spawn").Pool(1, _not_daemonic) as pool:
        return float(pool.apply(function, arguments))


def _not_daemonic() -> None:
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]


def placement() -> list[Claim]:
    """Ratios of the training process's speed: gossip inside it over gossip in a process of its own."""
    claims = []
    for name, millions in SIZES.items():
        inside, apart = lockstep_round_s(millions, False), lockstep_round_s(millions, True)
        claims.append(
            Claim(f"lockstep, {name}: round apart / inside",
                  f"{1e3 * apart:.1f} / {1e3 * inside:.1f} ms", apart / inside)
        )  # fmt: skip
    alone = in_fresh_process(overlapped_steps_per_s, 0, "nowhere")
    for name, millions in SIZES.items():
        d = int(millions * 1e6)
        inside, apart = (in_fresh_process(overlapped_steps_per_s, d, w) for w in ("thread", "process"))
        claims.append(
            Claim(f"overlapped, {name}: trainer's speed apart / inside",
                  f"{apart:.0f} / {inside:.0f}, alone {alone:.0f} steps/s", apart / inside)
        )  # fmt: skip
    return claims

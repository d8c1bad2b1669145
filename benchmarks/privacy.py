"""What privacy costs, each claim as a ratio to a baseline measured in the same run.

    python benchmarks/privacy.py

CPU time of one thread, which other processes disturb least; the sides alternate and figures are medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from claims import Claim
from torch import nn

from p2pqg import seeds
from p2pqg.config import agent_names
from p2pqg.privacy import Ledger, Mechanism, PrivateTask, Secret
from p2pqg.privacy.clipping import ClippedSum, Hooked, Vmapped
from p2pqg.privacy.task import Account, Allowance
from p2pqg.tasks.models.resnet import resnet20
from p2pqg.tasks.supervised import SupervisedTask
from p2pqg_simulator.masks import round_of_sums
from p2pqg_simulator.private import PrivateLoop, PrivateVmap

BATCH, SAMPLES = 32, 640
AGENTS = 32


def task(module: Callable[[], nn.Module], shape: tuple[int, ...], agent: str = "agent-000") -> SupervisedTask:
    """Random inputs of ten classes."""
    chance = seeds.generator(0, "benchmark", agent)
    data = torch.randn(SAMPLES, *shape, generator=chance), torch.randint(10, (SAMPLES,), generator=chance)
    return SupervisedTask(module, data, data, agent=agent, seed=0, batch_size=BATCH)


def residual() -> SupervisedTask:
    return task(lambda: resnet20(10, norm="gn"), (3, 32, 32))


def dense(agent: str) -> SupervisedTask:
    return task(
        lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        (64,),
        agent,
    )


def mechanism() -> Mechanism:
    return Mechanism(
        max_grad_norm=1.0, noise_multiplier=1.0, sample_rate=BATCH / SAMPLES, delta=1e-5, planned=1000
    )


def private(own: SupervisedTask, account: Account | None = None) -> PrivateTask:
    return PrivateTask(own, mechanism(), Secret(bytes(32)), account or Allowance(1 << 62))


def alternating(repetitions: int, *sides: Callable[[int], object]) -> list[float]:
    """Median CPU seconds of each side, called with the number of the repetition."""
    times: list[list[float]] = [[] for _ in sides]
    for repetition in range(-2, repetitions):
        for side, own in zip(sides, times, strict=True):
            before = time.process_time()
            side(max(repetition, 0))
            if repetition >= 0:
                own.append(time.process_time() - before)
    return [statistics.median(own) for own in times]


def step() -> Claim:
    """A whole private step (draw, clipped sum, noise) over a plain one, 32 samples (on average) each."""
    own = residual()
    secret, x = private(own), own.init(0)
    plain_s, private_s = alternating(
        21, lambda k: own.gradient(x, {}, k % own.steps_per_epoch), lambda k: secret.gradient(x, {}, k)
    )
    ratio = private_s / plain_s
    return Claim(
        "private over plain step, ResNet-20 with GroupNorm",
        f"{ratio:.2f} x {1e3 * plain_s:.0f} ms (at most 3)",
        3 / ratio,
        1.0,
    )


def ways() -> Claim:
    """The same clipped sum by Opacus's hooks and by vmap."""
    own = residual()
    x, (inputs, targets) = own.init(0), own.samples_at(torch.arange(BATCH), None)
    by_vmap: ClippedSum = Vmapped(own.module, own.spec, own.loss)
    hooked: ClippedSum = Hooked(own.make_module(), own.spec, own.loss)
    vmap_s, hooks_s = alternating(
        9, lambda k: by_vmap(x, inputs, targets, 1.0), lambda k: hooked(x, inputs, targets, 1.0)
    )
    return Claim("Opacus's hooks over vmap, the same", f"{1e3 * vmap_s:.0f} ms by vmap", hooks_s / vmap_s)


def agents() -> Claim:
    """32 simulated agents with small dense models: one after the other over batched."""
    tasks = [private(dense(name)) for name in agent_names(AGENTS)]
    loop, batched = PrivateLoop(tasks), PrivateVmap(tasks)
    x = tasks[0].init(0).expand(AGENTS, -1).contiguous()
    loop_s, batched_s = alternating(9, lambda k: loop(x, [], k), lambda k: batched(x, [], k))
    return Claim(
        f"{AGENTS} dense models: looped over batched", f"{1e3 * batched_s:.0f} ms batched", loop_s / batched_s
    )


def sums() -> Claim:
    """What secure sums compute in a round on a ring, beside the step of the round."""
    own = residual()
    x, d = own.init(0), own.spec.d
    mixing = round_of_sums(x)
    step_s, sums_s = alternating(
        21, lambda k: own.gradient(x, {}, k % own.steps_per_epoch), lambda _: mixing()
    )
    share = sums_s / (step_s + sums_s)
    return Claim(
        f"masks in a round, {d // 1000}k parameters on a ring",
        f"{share:.1%} of {1e3 * (step_s + sums_s):.0f} ms (at most 10 %)",
        0.1 / share,
        1.0,
    )


def ledger() -> Claim:
    """Elapsed time of paying a step on disk, beside that of the step."""
    own = residual()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        book = Ledger(Path(folder), Secret.fresh(), mechanism(), "benchmark", 0)
        times = []
        for k in range(50):
            before = time.perf_counter()
            book.pay(k)
            times.append(time.perf_counter() - before)
    secret, x, steps = private(own), own.init(0), []
    for k in range(5):
        before = time.perf_counter()
        secret.gradient(x, {}, k)
        steps.append(time.perf_counter() - before)
    pay_s = statistics.median(times)
    ratio = statistics.median(steps) / pay_s
    return Claim("a private step over its line in the ledger", f"{1e3 * pay_s:.1f} ms on disk", ratio)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for claim in (step, sums, ways, agents, ledger):
        print(claim(), flush=True)

"""What simulating costs, each claim as a ratio to a baseline measured in the same run.

    python benchmarks/simulator.py

Repetitions of the two sides alternate, so that a busy machine hits both, and ratios are medians of pairs.
Where both sides have one thread CPU time is measured, which other processes disturb least; else elapsed time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from p2pqg import allocator, seeds, topology
from p2pqg.algorithms import QGDSGDm
from p2pqg.config import agent_names
from p2pqg.flat import trainable
from p2pqg.schedules import constant
from p2pqg.tasks.base import TaskContext
from p2pqg.tasks.digits import make_task
from p2pqg.tasks.supervised import SupervisedTask
from p2pqg_simulator import Iterate, Simulation
from p2pqg_simulator.gradients import Engine
from p2pqg_simulator.memory import KEPT_BLOCKS

AGENTS, EPOCHS, WIDTH = 16, 5, 76  # width 76: 129,210 parameters
BETA, MU, LR = 0.9, 0.9, 0.05


def digits() -> list[SupervisedTask]:
    """One share of the digits, Dirichlet 0.1, for each agent."""
    names = agent_names(AGENTS)
    return [
        make_task(TaskContext(agent=name, agents=names, seed=0, alpha=0.1, options={"width": WIDTH}))
        for name in names
    ]


def plain_loop(tasks: list[SupervisedTask], rounds: int) -> list[nn.Module]:
    """QG-DSGDm-N on a ring as one writes it without a simulator: a list of torch modules, in place."""
    n, start = len(tasks), tasks[0].init(0)
    models = [task.make_module() for task in tasks]
    for model in models:
        model.load_state_dict(tasks[0].spec.views(start))
    parameters = [list(trainable(model).values()) for model in models]
    buffers = [[torch.zeros_like(p) for p in own] for own in parameters]
    loss = nn.functional.cross_entropy
    for step in range(rounds):
        before = [[p.detach().clone() for p in own] for own in parameters]
        for i, model in enumerate(models):
            inputs, targets = tasks[i].batch(step)
            model.zero_grad()
            loss(model(inputs.contiguous()), targets).backward()
            with torch.no_grad():
                for p, m_hat in zip(parameters[i], buffers[i], strict=True):
                    m = m_hat.mul(BETA).add_(p.grad)
                    p.sub_(p.grad.add(m, alpha=BETA), alpha=LR)
        with torch.no_grad():
            sent = [[p.detach().clone() for p in own] for own in parameters]
            for i in range(n):
                left, right = sent[(i - 1) % n], sent[(i + 1) % n]
                for k, p in enumerate(parameters[i]):
                    p.copy_((left[k] + sent[i][k] + right[k]) / 3)
                    buffers[i][k].mul_(MU).add_(before[i][k] - p, alpha=(1 - MU) / LR)
    return models


def simulation(tasks: list[SupervisedTask], engine: Engine = "auto") -> Simulation:
    """The same training."""
    ring = topology.build("ring", len(tasks))
    return Simulation(tasks, ring, QGDSGDm(beta=BETA, mu=MU, nesterov=True), constant(LR), engine=engine)


def simulate(run: Simulation, rounds: int, threads: int = 1) -> Iterate:
    """Training only, without evaluation."""
    torch.set_num_threads(threads)
    iterate = run.start(0)
    for _ in range(rounds):
        iterate = run.advance(iterate)
    return iterate


Clock = Callable[[], float]


def seconds(action: Callable[[], object], clock: Clock) -> float:
    began = clock()
    action()
    return clock() - began


def paired(
    ours: Callable[[], object], theirs: Callable[[], object], pairs: int, clock: Clock
) -> tuple[float, float, float]:
    """Median seconds of both and the median of the pairs' ratios theirs / ours, after one warm-up each."""
    ours(), theirs()
    times = [(seconds(ours, clock), seconds(theirs, clock)) for _ in range(pairs)]
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return first, second, statistics.median(b / a for a, b in times)


def report(claim: str, measured: str, holds: bool) -> None:
    print(f"{'ok  ' if holds else 'MISS'}  {claim}: {measured}", flush=True)


def convolutional() -> None:
    """Training cost over a plain loop, and the cost of the whole process."""
    tasks = digits()
    rounds = EPOCHS * tasks[0].steps_per_epoch
    run = simulation(tasks)
    simulated, models = simulate(run, rounds), plain_loop(tasks, rounds)
    x = torch.stack([nn.utils.parameters_to_vector(model.parameters()).detach() for model in models])
    difference = float((simulated.x - x).abs().max())
    assert difference < 1e-3, f"the two trainings differ by {difference}"
    ours, plain, ratio = paired(
        lambda: simulate(run, rounds), lambda: plain_loop(tasks, rounds), 7, time.process_time
    )
    report(
        "training at most 1.1 x a plain loop over torch modules",
        f"{1 / ratio:.3f} x ({ours:.3f} s, {plain:.3f} s; {AGENTS} agents, {rounds} rounds, "
        f"{run.spec.d} parameters, engine {run.gradients.name})",
        1 / ratio <= 1.1,
    )
    costs = [whole_process() for _ in range(3)]
    cpu_s = statistics.median(cost["cpu_s"] for cost in costs)
    peak = max(cost["peak_rss_bytes"] for cost in costs) / 2**30
    imports = statistics.median(cost["import_cpu_s"] for cost in costs)
    report(
        "whole `p2pqg simulate` process at most 6 CPU-seconds and 1 GiB",
        f"{cpu_s:.2f} CPU-s (of which imports {imports:.2f}), peak {peak:.2f} GiB",
        cpu_s <= 6 and peak <= 1,
    )


CHILD = """
import resource, sys
def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
from p2pqg_simulator.commands import simulate
import sklearn.datasets
imported = cpu()
simulate.main(sys.argv[1:], standalone_mode=False)
import json
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"cpu_s": cpu(), "import_cpu_s": imported, "peak_rss_bytes": peak}))
"""


def whole_process() -> dict[str, float]:
    """CPU seconds and peak memory of a fresh process that simulates, evaluates and writes its results."""
    rounds = EPOCHS * digits()[0].steps_per_epoch
    with tempfile.TemporaryDirectory() as folder:
        options = {"-n": AGENTS, "--alpha": 0.1, "--lr": LR, "--rounds": rounds,
                   "--task-option": f"width={WIDTH}", "--out": Path(folder) / "run"}  # fmt: skip
        arguments = [str(part) for option in options.items() for part in option]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *arguments], check=True, capture_output=True, text=True
        )
    costs: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return costs


def small_dense(n: int, samples: int = 512) -> list[SupervisedTask]:
    """64-64-64-10 networks on random data, batch 32."""

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    random = seeds.generator(0, "benchmark")

    def data() -> tuple[Tensor, Tensor]:
        return torch.randn(samples, 64, generator=random), torch.randint(0, 10, (samples,), generator=random)

    return [SupervisedTask(network, data(), data(), agent=name, seed=0) for name in agent_names(n)]


def dense() -> None:
    """Full rounds of small dense models, all agents at once over one agent after the other.

    The baseline is the plain loop over torch modules: gradient, step and mixing of one agent after the other.
    The simulator's own loop engine, which takes step and mixing at once, stands beside it. Each side has the
    threads that suit it: all cores for the batched pass, one for a loop, whose small operations would only
    wait for each other on more.
    """
    cores = os.cpu_count() or 1
    for n, claim in ((16, 1), (64, 4), (256, 8)):
        tasks = small_dense(n)
        batched, looped = simulation(tasks, "vmap"), simulation(tasks, "loop")
        rounds = max(10, 192 // n)

        def vectorised(run: Simulation = batched, rounds: int = rounds) -> None:
            simulate(run, rounds, threads=cores)

        def plain(tasks: list[SupervisedTask] = tasks, rounds: int = rounds) -> None:
            torch.set_num_threads(1)
            plain_loop(tasks, rounds)

        def engine(run: Simulation = looped, rounds: int = rounds) -> None:
            simulate(run, rounds, threads=1)

        ours, loop, ratio = paired(vectorised, plain, 7, time.perf_counter)
        _, own, own_ratio = paired(vectorised, engine, 5, time.perf_counter)
        report(
            f"{n} small dense models, a full round: vectorised at least {claim} x as fast as a plain loop",
            f"{ratio:.1f} x ({1e3 * ours / rounds:.2f}, {1e3 * loop / rounds:.2f} ms a round); "
            f"{own_ratio:.1f} x the loop engine ({1e3 * own / rounds:.2f} ms)",
            ratio >= claim,
        )


def main() -> None:
    allocator.pin(KEPT_BLOCKS)  # as the command does; both sides profit
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores")
    convolutional()
    dense()


if __name__ == "__main__":
    main()

"""Whether an agent costs more where there are many: CPU time per agent of 16, 64, 256 and 1,000 on a ring.

    python benchmarks/scale.py

Small dense models (64-64-64-10, 8,970 parameters), QG-DSGDm-N, one thread. The sizes take turns within each
repetition and a figure is the median of the repetitions. A repetition of training takes about as many
agent-steps at every size, and whole epochs, so that each size pays for its shuffles.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from claims import Claim

from p2pqg import allocator
from p2pqg_simulator import Simulation
from simulator import simulation, small_dense

SIZES = (16, 64, 256, 1000)
SAMPLES, EPOCH = 64, 2  # mini-batches of 32
REPETITIONS = 5
TARGET = 1 / 1.2


def set_up(n: int) -> Simulation:
    """Graph, mixing matrix, tasks, and when to ask whether the agents agree."""
    run = simulation(small_dense(n, SAMPLES), "loop")
    _ = run.topology.diameter
    return run


def train(run: Simulation) -> int:
    """Whole epochs, about 2,000 agent-steps; how many these were."""
    rounds = EPOCH * max(1, round(SIZES[-1] / run.n))
    iterate = run.start(0)
    for _ in range(rounds):
        iterate = run.advance(iterate)
    return rounds * run.n


def evaluate(run: Simulation) -> int:
    """All local models and their average."""
    run.scored(run.start(0))
    return run.n


def agree(run: Simulation) -> int:
    """Five rounds of gossip only, from models that are apart."""
    start = run.start(0)
    apart = replace(start, x=start.x * torch.linspace(1, 2, run.n)[:, None])
    rounds = sum(1 for _ in run.agree(apart, tolerance=1e-9, max_rounds=5))
    return rounds * run.n


def costs(action: Callable[[int], int]) -> dict[int, float]:
    """Median CPU seconds of `action(n)` over what it returns, for each number of agents."""
    times: dict[int, list[float]] = {n: [] for n in SIZES}
    for repetition in range(REPETITIONS + 1):
        for n in SIZES:
            began_s = time.process_time()
            agents = action(n)
            if repetition:  # the first one warms up
                times[n].append((time.process_time() - began_s) / agents)
    return {n: statistics.median(of_one) for n, of_one in times.items()}


def report(name: str, action: Callable[[int], int], target: float | None = TARGET) -> None:
    found = costs(action)
    measured = " ".join(f"{1e6 * found[n]:.0f}" for n in SIZES) + " µs"
    print(Claim(name, measured, found[SIZES[0]] / found[SIZES[-1]], target), flush=True)


def main() -> None:
    allocator.pin()  # as the command does
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}; CPU time per agent of {SIZES}, and that of the fewest over the most")
    report("setting up", lambda n: set_up(n).n, target=None)  # once in a run
    looped = {n: simulation(small_dense(n, SAMPLES), "loop") for n in SIZES}
    batched = {n: simulation(small_dense(n, SAMPLES), "vmap") for n in SIZES}
    report("a step of training, one agent after the other", lambda n: train(looped[n]))
    report("a step of training, batched", lambda n: train(batched[n]))
    report("an evaluation", lambda n: evaluate(looped[n]))
    report("a round of gossip only, with an evaluation in five", lambda n: agree(looped[n]))


if __name__ == "__main__":
    main()

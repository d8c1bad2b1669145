"""Accuracy against epsilon on chest X-rays: hospitals that gossip, each alone, and all data in one place.

    python benchmarks/privacy_accuracy.py --data pneumoniamnist.npz --out records [--seeds 3] [--figure FILE]

Every run appends one JSON line to `records/privacy-accuracy.jsonl`; runs that have a line are not repeated,
so it can be stopped and started at any time. PneumoniaMNIST (4,708 training images of 28x28 pixels, pneumonia
or not; 624 test images, of which 62.5 % show one) is shared out over 4 or 8 hospitals, unevenly and with
different shares of pneumonia (Dirichlet, 5). A CNN of 1,362 parameters (tanh, which suits clipping: Papernot
et al. 2021) is trained with QG-DSGDm-N on a ring for 100 rounds, each record drawn with probability 0.08 in a
round, everywhere. So a record is protected equally in all settings, and what differs is how much noise lands
on the model: n hospitals average n noises, one place with all data needs only one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from p2pqg.config import SimulationSettings
from p2pqg.tasks.augmentation import ImageTransform
from p2pqg.tasks.base import TaskContext
from p2pqg.tasks.common_data import CommonData, own_share
from p2pqg.tasks.image_files import read_npz
from p2pqg.tasks.supervised import SupervisedTask
from p2pqg_simulator.engine import Simulation
from p2pqg_simulator.private import protected

ROUNDS, RATE, DELTA, NORM = 100, 0.08, 1e-4, 1.0
EPSILONS = (1.0, 3.0, 8.0, None)
HOSPITALS = (4, 8)
LR, PRIVATE_LR = 0.1, 1.0
"""Without and with privacy, which wants longer steps (gradients are clipped to norm 1): a few were tried on
one seed of 8 and 4 hospitals that gossip, and what trying costs is in no epsilon."""
TOPOLOGY = {"gossip": "ring", "alone": "isolated", "central": "complete"}


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 8, stride=4, padding=2),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(128, 2),
    )


def shares(data: CommonData, n: int, seed: int) -> list[SupervisedTask]:
    """What each of n hospitals holds; its expected mini-batch is the same part of it everywhere."""
    transform = ImageTransform((0.5,), (0.5,))
    tasks = []
    names = tuple(f"hospital-{i}" for i in range(n))
    for name in names:
        context = TaskContext(agent=name, agents=names, seed=seed, partition="dirichlet-plain", alpha=5.0)
        task = own_share(
            context, data, cnn, train_samples=0, test_samples=0, transform=transform, test_batch_size=1000
        )
        task.batch_size = round(RATE * task.samples)
        tasks.append(task)
    return tasks


def run(data: CommonData, mode: str, hospitals: int, epsilon: float | None, seed: int) -> dict[str, Any]:
    """Train in one setting; accuracies are those of every hospital's own model in the end."""
    began_s = time.process_time()
    lr = LR if epsilon is None else PRIVATE_LR
    privacy = {
        "dp": epsilon is not None,
        "target_epsilon": epsilon,
        "target_delta": DELTA,
        "max_grad_norm": NORM,
        "accountant": "rdp",
    }
    settings = SimulationSettings.model_validate(
        {
            "agents": hospitals,
            "topology": TOPOLOGY[mode],
            "rounds": ROUNDS,
            "schedule": {"lr": lr, "cosine_steps": ROUNDS},
            "privacy": privacy,
        }
    )
    tasks = shares(data, hospitals, seed)
    simulation = Simulation(
        protected(tasks, settings, settings.names),
        settings.graph,
        settings.algorithm.build(),
        settings.schedule.build(),
        weighting="samples" if mode == "gossip" else "uniform",
    )
    *_, last = simulation.train(simulation.start(seed), ROUNDS)
    if mode == "gossip":
        *_, last = simulation.agree(last, 1e-3, 50)
    assert last.scores is not None
    found = [own.accuracy for own in last.scores.local if own.accuracy is not None]
    return {
        "mode": mode,
        "hospitals": hospitals,
        "epsilon": epsilon,
        "seed": seed,
        "accuracy": statistics.mean(found),
        "worst": min(found),
        "best": max(found),
        "records": [task.samples for task in tasks],
        "delta": DELTA,
        "rounds": ROUNDS,
        "rate": RATE,
        "lr": lr,
        "torch": torch.__version__,
        "cpu_s": time.process_time() - began_s,
    }


def grid(count: int) -> Iterator[tuple[str, int, float | None, int]]:
    for seed in range(count):
        for epsilon in EPSILONS:
            yield "central", 1, epsilon, seed
            for hospitals in HOSPITALS:
                for mode in ("gossip", "alone"):
                    yield mode, hospitals, epsilon, seed


def key(record: dict[str, Any]) -> tuple[str, int, float | None, int]:
    return record["mode"], record["hospitals"], record["epsilon"], record["seed"]


def table(records: list[dict[str, Any]]) -> Iterator[str]:
    """Mean ± standard deviation over seeds, as Markdown."""
    heads = ["no privacy" if epsilon is None else f"epsilon {epsilon:g}" for epsilon in EPSILONS]
    yield "| | " + " | ".join(heads) + " |"
    yield "|---|" + "---|" * len(EPSILONS)
    rows = [("central", 1), *((mode, n) for n in HOSPITALS for mode in ("gossip", "alone"))]
    for mode, hospitals in rows:
        cells = []
        for epsilon in EPSILONS:
            found = [
                100 * record["accuracy"]
                for record in records
                if key(record)[:3] == (mode, hospitals, epsilon)
            ]
            spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.1f}{spread}" if found else "-")
        name = "all data in one place" if mode == "central" else f"{hospitals} hospitals, {mode}"
        yield f"| {name} | " + " | ".join(cells) + " |"


def figure(records: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over epsilon, a panel for each number of hospitals, bars of one standard deviation."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 3.8), layout="constrained")
    axes = drawing.subplots(1, len(HOSPITALS), sharey=True)
    places = range(len(EPSILONS))
    for panel, hospitals in zip(axes, HOSPITALS, strict=True):
        for mode, marker in zip(TOPOLOGY, "osD", strict=True):
            n = 1 if mode == "central" else hospitals
            found = [
                [100 * r["accuracy"] for r in records if key(r)[:3] == (mode, n, epsilon)]
                for epsilon in EPSILONS
            ]
            panel.errorbar(
                places,
                [statistics.mean(own) if own else float("nan") for own in found],
                [statistics.stdev(own) if len(own) > 1 else 0.0 for own in found],
                marker=marker,
                capsize=3,
                label={"gossip": "gossip", "alone": "each alone (mean)", "central": "all data in one place"}[
                    mode
                ],
            )
        panel.set_xticks(places, [r"$\infty$" if e is None else f"{e:g}" for e in EPSILONS])
        panel.set_xlabel(rf"$\varepsilon$ of each record ($\delta$ = {DELTA:g})")
        panel.set_title(f"{hospitals} hospitals")
        panel.axhline(62.5, color="gray", linewidth=0.8, linestyle=":", label="always the same answer")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, %")
    axes[0].legend(loc="lower right", fontsize=8)
    drawing.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "privacy-accuracy.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    done = {key(record) for record in records}
    data = read_npz(options.data, (1, 28, 28))
    for case in grid(options.seeds):
        if case in done:
            continue
        records.append(run(data, *case))
        with path.open("a") as file:
            file.write(json.dumps(records[-1]) + "\n")
        print(*case, f"{records[-1]['accuracy']:.3f}", f"{records[-1]['cpu_s']:.0f} CPU-s", flush=True)
    print(*table(records), sep="\n")
    if options.figure:
        figure(records, options.figure)


if __name__ == "__main__":
    main()

"""`p2pqg demo`: eight real agents on this machine, and what they would have reached otherwise.

The learning rates are each method's best on {0.0125, 0.025, ..., 0.8} by mean local accuracy over seeds 0, 1
and 2; `docs/demo.md` has the whole grid, and `benchmarks/demo_grid.py` computes it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from p2pqg.config import SimulationSettings
from p2pqg.errors import P2PQGError

from .live import live
from .simulate import make_tasks, settings_from, simulate
from .swarm import Swarm, run

AGENTS, ALPHA, ROUNDS, EVAL_EVERY = 8, 0.1, 100, 5


@dataclass(frozen=True)
class Method:
    """One row of the table and one line of the plot."""

    label: str
    algorithm: str
    topology: str
    lr: float
    style: str = "-"


NETWORK = Method("QG-DSGDm-N, this network", "qg-dsgdm-n", "ring", 0.2)
REFERENCES = (
    Method("every agent alone", "dsgdm-n", "isolated", 0.1, ":"),
    Method("DSGDm-N", "dsgdm-n", "ring", 0.4, "--"),
    Method("centralised SGDm-N", "sgdm-n", "complete", 0.1, "-."),
)

Curve = list[dict[str, Any]]
"""Scores by round: lines of a run's metrics that have them."""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [runs/demo-TIME]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@click.option("--rounds", type=click.IntRange(min=EVAL_EVERY), default=ROUNDS, show_default=True,
              help="Rounds of training.")  # fmt: skip
def demo(out: Path | None, seed: int, rounds: int) -> None:
    """Eight agents, real handwritten digits, no server.

    Each agent is a process that holds only its own share of the images, in which few digits dominate. They
    talk to two neighbours each, over gRPC on loopback. Then the same training is simulated alone, with local
    momentum, and with all data in one place.
    """
    torch.set_num_threads(1)  # more threads only wait for each other on a model this small
    console = Console()
    out = out or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    settings = settings_for(NETWORK, seed, rounds)
    tasks = make_tasks(settings)
    console.print(
        f"{AGENTS} agents on a ring share {tasks[0].total_samples} images of handwritten digits, "
        f"Dirichlet({ALPHA}): {_digits(tasks)}."
    )
    swarm = Swarm(settings, out)
    with live(swarm) as observe:
        summary = run(swarm, tasks, observe)
    if summary is None:
        raise P2PQGError(f"not every agent finished; their logs are in {out}")
    curves = {NETWORK: swarm.curve()}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for method in REFERENCES:
            bar = progress.add_task(f"simulating {method.label}", total=rounds)
            curves[method] = []
            for iterate in simulate(settings_for(method, seed, rounds), finish_rounds=0):
                progress.advance(bar)
                if iterate.scores:
                    curves[method].append({"round": iterate.round, **iterate.scores.numbers()})
    order = (REFERENCES[0], REFERENCES[1], NETWORK, REFERENCES[2])
    console.print(_table({method: curves[method] for method in order}))
    console.print(
        f"After {summary['gossip_rounds']} rounds of gossip without training every agent takes home the same "
        f"model, accuracy {summary['final']['worst_accuracy']:.1%} or better: {out / 'model.safetensors'}"
    )
    console.print(f"Plot: {plot(curves, out / 'curves.png')}")


def settings_for(method: Method, seed: int, rounds: int, lr: float | None = None) -> SimulationSettings:
    """The run of one method; `lr` in place of its own learning rate."""
    return settings_from(
        {
            "agents": AGENTS,
            "topology": method.topology,
            "algorithm": method.algorithm,
            "task": "digits",
            "alpha": ALPHA,
            "lr": lr or method.lr,
            "rounds": rounds,
            "seed": seed,
            "eval_every": EVAL_EVERY,
        }
    )


def _digits(tasks: Sequence[Any]) -> str:
    """How unlike the shares are, in words."""
    most = [int(task.train[1].bincount().max()) / len(task.train[1]) for task in tasks]
    return f"an agent's most frequent digit is {min(most):.0%} to {max(most):.0%} of what it has"


def _table(curves: dict[Method, Curve]) -> Table:
    rounds = curves[NETWORK][-1]["round"]
    table = Table(title=f"Accuracy on 360 held-out images after {rounds} rounds, one gradient step each")
    table.add_column("", no_wrap=True)
    for heading in ("lr", "mean local", "worst local", "averaged model"):
        table.add_column(heading, justify="right")
    for method, curve in curves.items():
        last = curve[-1]
        scores = (last[key] for key in ("mean_accuracy", "worst_accuracy", "averaged_accuracy"))
        style = "bold" if method == NETWORK else None
        table.add_row(method.label, f"{method.lr:g}", *(f"{score:.1%}" for score in scores), style=style)
    return table


def plot(curves: dict[Method, Curve], path: Path) -> Path:
    """Mean local accuracy over rounds, down to the worst agent's, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for method, curve in curves.items():
        rounds = [line["round"] for line in curve]
        mean, worst = ([100 * line[key] for line in curve] for key in ("mean_accuracy", "worst_accuracy"))
        (line,) = axes.plot(rounds, mean, method.style, label=method.label, linewidth=2)
        axes.fill_between(rounds, worst, mean, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set(
        xlabel="round (one mini-batch of 32 an agent)",
        ylabel="test accuracy of local models, %",
        title=f"{AGENTS} agents, digits, Dirichlet({ALPHA}): mean, shaded down to the worst agent",
        ylim=(0, 100),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path

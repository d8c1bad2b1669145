"""`p2pqg reproduce` and `p2pqg report`: the paper's tables and figures, run and rendered."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from p2pqg import allocator
from p2pqg.errors import ConfigError
from p2pqg.tasks.precision import PRECISIONS

from . import experiments
from .experiments.base import SCALES, Experiment, Observe, Plan
from .experiments.program import SWARM
from .experiments.records import SHIPPED, Case, Record, Records, provenance
from .gradients import ENGINES
from .live import bar
from .memory import KEPT_BLOCKS
from .options import pair
from .placement import device_named
from .report import render

LIST = "list"


def run(experiment: Experiment, plan: Plan, records: Records, observe: Observe) -> Iterator[Record]:
    """Run what is pending until nothing is; each record is on the disk before it is yielded."""
    while cases := experiment.pending(plan, tuple(records)):
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        for case, result in experiment.run(plan, cases, observe):
            now_s, now_cpu_s = time.monotonic(), time.process_time()
            made = provenance(wall_s=now_s - began_s, cpu_s=now_cpu_s - began_cpu_s)
            began_s, began_cpu_s = now_s, now_cpu_s
            record = Record(experiment.records, plan.scale, dict(case), dict(result), made)
            records.append(record)
            yield record


@click.command()
@click.argument("name", metavar=f"{LIST}|NAME")
@click.option("--scale", type=click.Choice(SCALES), default="full", show_default=True,
              help="The paper's own; an hour or two on a CPU; or two rounds, to see.")  # fmt: skip
@click.option(
    "--cell", metavar="KEY=VALUE,...", default="", help="Only these, such as method=dsgd,alpha=0.1."
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of the best rate."
)
@click.option("--lr-grid", default="auto", show_default=True, metavar="auto|LR,...",
              help="Learning rates; auto goes on by factors of 2 until the best is interior.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), help="Folder with the data sets.  [datasets]")
@click.option("--download", is_flag=True, help="Let torchvision fetch CIFAR into --data.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default=Plan.dtype, show_default=True,
              help="float64 shows that engines agree.")  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), default=Plan.precision, show_default=True,
              help="Arithmetic of gradients and scores; tf32 needs a GPU.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--engine", type=click.Choice([*ENGINES, SWARM]), default="auto",
              show_default=True, help="How agents are simulated; swarm runs real ones.")  # fmt: skip
@click.option(
    "--together", type=click.IntRange(min=1), help="Most runs that train as one program.  [cpu: 1, else 8]"
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of torch.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("records"), show_default=True,
              help="Folder of the records; what stands there is not run again.")  # fmt: skip
def reproduce(
    name: str, cell: str, lr_grid: str, device: str, threads: int, out: Path, **options: Any
) -> None:
    """Run a table or a figure of the paper; `list` shows them all."""
    if name == LIST:
        _list()
        return
    experiment = experiments.load(name)
    plan = Plan(
        cell=dict(pair(part, "cell") for part in cell.split(",") if part),
        lr_grid=_rates(lr_grid),
        device=str(device_named(device)),
        work=out / "work",
        **options,
    )
    allocator.pin(KEPT_BLOCKS)
    torch.set_num_threads(threads)
    records = Records(out, experiment.records)
    console = Console()
    with _progress() as observe:
        for record in run(experiment, plan, records, observe):
            console.print(_line(record), highlight=False)
    console.print(f"nothing is left to run; the records are in {records.path}")


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--records", "folder", type=click.Path(path_type=Path), help="Folder of records.  [the shipped ones]"
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("report"), show_default=True,
              help="Folder for report.md and its pictures.")  # fmt: skip
def report(names: Sequence[str], folder: Path | None, out: Path) -> None:
    """Render records: ours beside the published numbers, as Markdown and pictures."""
    page = render(names or tuple(experiments.EXPERIMENTS), SHIPPED if folder is None else folder, out)
    click.echo(f"the report is {page}")


def _list() -> None:
    console = Console()
    for name in experiments.EXPERIMENTS:
        experiment = experiments.load(name)
        console.print(f"[bold]{name}[/bold]  {experiment.title}", highlight=False)
        for cell in getattr(experiment, "cells", ()):
            text = ",".join(f"{key}={'' if value is None else value}" for key, value in cell.items())
            console.print(f"    p2pqg reproduce {name} --cell {text}", soft_wrap=True, highlight=False)
        if not getattr(experiment, "cells", ()):
            console.print(f"    p2pqg reproduce {name}", highlight=False)


def _line(record: Record) -> str:
    case = " ".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                    for key, value in record.case.items() if value is not None)  # fmt: skip
    best = record.result.get("best", {}).get("mean_accuracy")
    if record.result.get("diverged"):
        outcome = f"diverged in round {record.result['diverged']['round']}"
    else:
        outcome = "" if best is None else f"{100 * best:.2f} %"
    return f"{case}  {outcome}  ({record.made['wall_s']:.0f} s)"


@contextmanager
def _progress() -> Iterator[Observe]:
    """Shows what runs on a bar."""
    with bar() as update:

        def observe(cases: Sequence[Case], done: int, total: int) -> None:
            first = cases[0]
            label = " ".join(
                str(first[key]) for key in ("method", "alpha", "lr", "seed") if first.get(key) is not None
            )
            more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
            update(description=label + more, completed=done, total=total)

        yield observe


def _rates(text: str) -> tuple[float, ...] | None:
    if text == "auto":
        return None
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise ConfigError(
            f"expected auto or positive numbers with commas between, found {text!r}",
            where="command line",
            key="lr-grid",
        )
    return tuple(sorted(set(rates)))

"""`p2pqg simulate` and `p2pqg compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from p2pqg import allocator
from p2pqg.config import SimulationSettings, validate
from p2pqg.errors import ConfigError

from .engine import Iterate
from .folder import RunFolder
from .gradients import ENGINES
from .live import bar, live
from .memory import KEPT_BLOCKS
from .options import read_settings, settings_options
from .ranks import TIMEOUT_S, joined, started_by_torchrun
from .record import record
from .simulate import make_tasks
from .swarm import Swarm, run, settings_of
from .world import Group

DISTRIBUTED = "distributed"


@click.command()
@settings_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out, with its settings.")
@click.option("--stop-after", type=int, metavar="ROUND", help="Checkpoint after this round and stop.")
@click.option("--engine", type=click.Choice([*ENGINES, DISTRIBUTED]), default="auto", show_default=True,
              help="How gradients of all agents are computed: one after the other (loop), likewise with the "
              "model compiled for a long run (compile), in one batch (vmap), in one that is compiled "
              "(vmap-compile), or by the processes that torchrun started, each for its share of the agents "
              "(distributed).")  # fmt: skip
@click.option("--rank-timeout", type=click.FloatRange(min=0, min_open=True), default=TIMEOUT_S,
              metavar="SECONDS", show_default=True,
              help="How long one of these processes waits for another.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="Where: cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(min=1),
              help="Threads of torch.  [all cores with vmap; else 1, which suits small models]")  # fmt: skip
def simulate(
    out: Path,
    resume: bool,
    stop_after: int | None,
    engine: Any,
    rank_timeout: float,
    device: str,
    threads: int | None,
    **options: Any,
) -> None:
    """Train all agents of a network on this host."""
    allocator.pin(KEPT_BLOCKS)
    with _group(engine, rank_timeout) as group:
        before = _settings_of(RunFolder(out), group) if resume else None
        with group.together():
            settings = read_settings(options, before)
        if group.differs(settings.model_dump(mode="json")):
            raise ConfigError("expected the same settings on every rank, found different ones")
        with _progress(settings, shown=group.first) as observe:
            summary = record(
                settings,
                out,
                engine="auto" if engine == DISTRIBUTED else engine,
                device=device,
                threads=threads,
                resume=resume,
                stop_after=stop_after,
                observe=observe,
                group=group,
            )
    if not group.first:
        return
    if summary is None:
        click.echo(f"stopped after round {stop_after}; go on with --resume --out {out}")
    else:
        Console().print(_result(summary), f"Results are in {out}", sep="\n")


@contextmanager
def _group(engine: str, timeout_s: float) -> Iterator[Group]:
    """This process alone, or with those that torchrun started."""
    if engine == DISTRIBUTED:
        with joined(timeout_s) as ranks:
            yield ranks
    elif started_by_torchrun():
        raise ConfigError(
            f"expected {DISTRIBUTED} under torchrun, found {engine}", where="command line", key="engine"
        )
    else:
        yield Group()


@click.command()
@settings_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
@click.option("--resume", is_flag=True, help="Go on from the agents' checkpoints in --out.")
@click.option("--stop-after", type=int, metavar="ROUND", help="Checkpoint after this round and stop.")
def swarm(out: Path, resume: bool, stop_after: int | None, **options: Any) -> None:
    """Train the same network with real agents: one process each on this host, over gRPC."""
    settings = read_settings(options, settings_of(out) if resume else None)
    tasks = make_tasks(settings)
    agents = Swarm(settings, out, resume=resume, stop_after=stop_after)
    with live(agents) as observe:
        summary = run(agents, tasks, observe)
    if summary is None:
        click.echo(f"stopped; go on with --resume --out {out}")
    else:
        Console().print(_result(summary), f"Results are in {out}", sep="\n")


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
def compare(a: Path, b: Path) -> None:
    """Compare the results of two runs: folders that `simulate` or `swarm` wrote."""
    folders = RunFolder(a), RunFolder(b)
    first, second = (folder.load_summary() for folder in folders)
    table = Table("", str(a), str(b))
    settings = _flat(first["settings"]), _flat(second["settings"])
    for key in sorted(settings[0] | settings[1]):
        values = [own.get(key) for own in settings]
        if values[0] != values[1]:
            table.add_row(key, *map(str, values))
    table.add_section()
    for key in first["final"] | second["final"]:
        table.add_row(_label(key), *(_number(own["final"].get(key)) for own in (first, second)))
    difference = parameter_difference(*folders)
    console = Console()
    console.print(table)
    console.print(f"largest difference of a parameter of the final local models: {difference}")


def parameter_difference(a: RunFolder, b: RunFolder) -> str:
    """max |x_a - x_b| over all agents and parameters, or why there is no such number."""
    (x, names), (y, other_names) = a.load_local_models(), b.load_local_models()
    if names != other_names or x.shape != y.shape:
        return f"none: {len(x)} agents of {x.shape[1]} parameters and {len(y)} of {y.shape[1]}"
    return f"{float((x.double() - y.double()).abs().max()):.3g}"


def _settings_of(folder: RunFolder, group: Group) -> SimulationSettings:
    """The settings of the run in a folder that only the first process needs to see."""
    meta: dict[str, Any] = {}
    with group.together():
        if group.first and not folder.checkpoint.exists():
            raise ConfigError("expected a run to resume, found no checkpoint", where=str(folder.path))
        if group.first:
            _, meta = folder.load_iterate(torch.device("cpu"))
    saved = group.said_by(0, meta.get("settings"))
    return validate(SimulationSettings, saved, where=str(folder.checkpoint))


@contextmanager
def _progress(settings: SimulationSettings, *, shown: bool = True) -> Iterator[Callable[[Iterate], None]]:
    """Shows each iterate on a bar."""
    with bar(shown=shown) as update:
        update(description="training", total=settings.rounds)

        def observe(iterate: Iterate) -> None:
            if iterate.agreement is not None:
                update(description="agreeing", total=iterate.round, completed=iterate.round)
                return
            update(completed=iterate.round)
            if iterate.scores and iterate.scores.mean_accuracy is not None:
                update(note=f"accuracy {iterate.scores.mean_accuracy:.1%}")

        yield observe


def _result(summary: Mapping[str, Any]) -> Table:
    table = Table("", "best", "last", "after gossip")
    for key in summary["final"]:
        row = [_number(summary[moment].get(key)) for moment in ("best", "last", "final")]
        if row != ["-"] * 3:
            table.add_row(_label(key), *row)
    table.caption = (
        f"{len(summary['agents'])} agents, {summary['parameters']} parameters, {summary['rounds']} rounds "
        f"and {summary['gossip_rounds']} of gossip only; {summary['wall_s']:.1f} s"
    )
    if summary.get("epsilon") is not None:
        table.caption += f"; private with epsilon {summary['epsilon']:.3g} at delta {summary['delta']:g}"
    return table


def _label(key: str) -> str:
    return key.replace("_", " ")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat

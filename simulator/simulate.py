"""From settings to a simulation, and the generator for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from p2pqg.config import SimulationSettings, validate
from p2pqg.errors import ConfigError
from p2pqg.privacy import Secret
from p2pqg.tasks import precision
from p2pqg.tasks.base import Task
from p2pqg.tasks.registry import TaskFactory, load_task_factory

from .engine import Iterate, Simulation
from .gradients import Engine
from .memory import require
from .placement import device_named
from .private import protected
from .world import World

OPTIONS = {
    "agents": "agents",
    "topology": "topology",
    "rounds": "rounds",
    "seed": "seed",
    "eval_every": "eval_every",
    "task": "task.name",
    "partition": "task.partition",
    "alpha": "task.alpha",
    "batch_size": "task.batch_size",
    "data": "task.data",
    "dtype": "task.dtype",
    "precision": "task.precision",
    "weighting": "task.weighting",
    "task_options": "task.options",
    "algorithm": "algorithm.name",
    "beta": "algorithm.beta",
    "mu": "algorithm.mu",
    "weight_decay": "algorithm.weight_decay",
    "local_steps": "algorithm.local_steps",
    "algorithm_options": "algorithm.options",
    "lr": "schedule.lr",
    "warmup_steps": "schedule.warmup_steps",
    "warmup_from": "schedule.warmup_from",
    "milestones": "schedule.milestones",
    "decay": "schedule.decay",
    "cosine_steps": "schedule.cosine_steps",
    "finish_tolerance": "finish.tolerance",
    "finish_rounds": "finish.max_rounds",
    "dp": "privacy.dp",
    "max_grad_norm": "privacy.max_grad_norm",
    "noise_multiplier": "privacy.noise_multiplier",
    "target_epsilon": "privacy.target_epsilon",
    "target_delta": "privacy.target_delta",
    "privacy_rounds": "privacy.rounds",
    "accountant": "privacy.accountant",
    "secure_sums": "privacy.secure_sums",
    "min_senders": "privacy.min_senders",
}
"""Flat names of settings, as keyword arguments and (with dashes) as command-line options, and the dotted
keys they stand for."""


def settings_from(
    options: Mapping[str, Any], base: SimulationSettings | None = None, *, where: str = ""
) -> SimulationSettings:
    """Settings from flat options laid over `base`; an option that is None is left alone.

    Raises `ConfigError` for an unknown option or a wrong value.
    """
    table: dict[str, Any] = {} if base is None else base.model_dump(exclude_unset=True)
    for option, value in options.items():
        if option not in OPTIONS:
            raise ConfigError(
                f"unknown option; expected one of {', '.join(OPTIONS)}", where=where, key=option
            )
        if value is None:
            continue
        inner = table
        *path, last = OPTIONS[option].split(".")
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return validate(SimulationSettings, table, where=where)


def build(
    settings: SimulationSettings,
    *,
    engine: Engine = "auto",
    make_task: TaskFactory | None = None,
    base: Path = Path(),
    world: World | None = None,
    device: torch.device | str = "cpu",
    secret: Secret | None = None,
    overwrite: bool = False,
) -> Simulation:
    """The simulation that settings describe, or in a `world` of several processes this one's share of it.
    `make_task` takes the place of the task they name, whose file is looked up from `base`.
    Private noise comes from `secret`, else from a fresh one. `overwrite` as of `Simulation`.

    Raises `ConfigError` for settings that make no sense, and if there is too little memory to train.
    """
    world = World(settings.agents) if world is None else world
    with world.group.together():
        tasks = make_tasks(settings, make_task, base, world.agents)
        tasks = protected(tasks, settings, [settings.names[i] for i in world.agents], secret)
    simulation = assemble(settings, tasks, engine=engine, world=world, device=device, overwrite=overwrite)
    require(simulation.footprint().training, simulation.device)
    return simulation


def assemble(
    settings: SimulationSettings,
    tasks: Sequence[Task],
    *,
    engine: Engine = "auto",
    world: World | None = None,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
) -> Simulation:
    """The simulation that settings describe, of tasks that are made already."""
    graph = settings.graph
    settings.require_secure_sums(graph)
    precision.require(settings.task.precision, device_named(device))
    return Simulation(
        tasks,
        graph,
        settings.algorithm.build(),
        settings.schedule.build(),
        names=settings.names,
        weighting=settings.task.weighting,
        engine=engine,
        world=world,
        device=device,
        rounds=settings.rounds,
        secure_sums=bool(settings.secure_sums),
        overwrite=overwrite,
    )


def make_tasks(
    settings: SimulationSettings,
    make_task: TaskFactory | None = None,
    base: Path = Path(),
    agents: Sequence[int] | None = None,
) -> list[Task]:
    """The learning problems of all agents, or of those of the given numbers, in order of their names."""
    settings = effective(settings)
    names = settings.names
    factory = load_task_factory(settings.task.name, base) if make_task is None else make_task
    chosen = names if agents is None else [names[i] for i in agents]
    return [settings.make_task(factory, name, names) for name in chosen]


def effective(settings: SimulationSettings) -> SimulationSettings:
    """The settings with what follows from others made explicit: a centralised method trains on a random
    equal split, as in the paper, unless a partition is asked for."""
    if settings.algorithm.build().centralised and "partition" not in settings.task.model_fields_set:
        return settings.model_copy(update={"task": settings.task.model_copy(update={"partition": "iid"})})
    return settings


def simulate(
    settings: SimulationSettings | None = None,
    *,
    task: str | TaskFactory | None = None,
    engine: Engine = "auto",
    secret: Secret | None = None,
    **options: Any,
) -> Iterator[Iterate]:
    """Train and yield the iterate after every round, then those of the gossip-only rounds at the end.

    Options are those of ``p2pqg simulate`` with underscores (`OPTIONS`), laid over `settings`; `task` is a
    task's name or a factory; private noise comes from `secret`, else from a fresh one. Nothing is written.

        for iterate in simulate(agents=16, topology="ring", alpha=0.1, lr=0.1, rounds=100, eval_every=20):
            if iterate.scores:
                print(iterate.round, iterate.scores.mean_accuracy)

    Raises `ConfigError` at once for settings that make no sense.
    """
    named = {"task": task} if isinstance(task, str) else {}
    settings = settings_from({**options, **named}, settings)
    simulation = build(settings, engine=engine, make_task=task if callable(task) else None, secret=secret)
    return _iterates(simulation, settings, simulation.start(settings.seed))


def _iterates(simulation: Simulation, settings: SimulationSettings, last: Iterate) -> Iterator[Iterate]:
    for iterate in simulation.train(last, settings.rounds, eval_every=settings.eval_every):
        yield iterate
        last = iterate
    finish = settings.finish
    yield from simulation.agree(last, finish.tolerance, finish.max_rounds)

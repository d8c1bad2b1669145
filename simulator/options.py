"""Command-line options for the settings that `simulate` and `swarm` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from p2pqg import config
from p2pqg.algorithms import ALGORITHMS
from p2pqg.config import SimulationSettings
from p2pqg.errors import ConfigError
from p2pqg.tasks import TASKS
from p2pqg.tasks.partition import PARTITIONS
from p2pqg.topology import TOPOLOGIES

from .simulate import OPTIONS, settings_from

F = TypeVar("F", bound=Callable[..., Any])

_SETTINGS = (
    click.option("-n", "--agents", type=int, help="Number of agents.  [8]"),
    click.option("--topology", help=f"{', '.join(TOPOLOGIES)}, or edges:FILE.  [ring]"),
    click.option("--algorithm", help=f"{', '.join(ALGORITHMS)}.  [qg-dsgdm-n]"),
    click.option("--task", help=f"{', '.join(TASKS)}, my_module:make_task or file.py:make_task.  [digits]"),
    click.option(
        "--task-option",
        "task_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="An option of the task; repeatable.",
    ),
    click.option("--data", type=click.Path(path_type=Path), help="Folder or file of the task's data."),
    click.option("--partition", help=f"{', '.join(PARTITIONS)}.  [dirichlet; centralised methods: iid]"),
    click.option("--alpha", type=float, help="Dirichlet parameter: small is heterogeneous.  [1.0]"),
    click.option("--batch-size", type=int, help="Samples in an agent's mini-batch.  [32]"),
    click.option("--weighting", help="uniform, or samples: larger shares count for more.  [uniform]"),
    click.option("--dtype", help="float32 or float64.  [float32]"),
    click.option(
        "--precision",
        help="Arithmetic of gradients and scores: float32, tf32 (on a GPU) or bfloat16.  [float32]",
    ),
    click.option("--lr", type=float, help="Peak learning rate.  [0.1]"),
    click.option("--warmup-steps", type=int, help="Steps of linear warm-up.  [0]"),
    click.option("--warmup-from", type=float, help="Learning rate that the warm-up starts at.  [0.1]"),
    click.option("--milestones", metavar="STEP,...", help="Steps at which the learning rate decays.  [none]"),
    click.option("--decay", type=float, help="Factor of each milestone.  [0.1]"),
    click.option("--cosine-steps", type=int, help="Steps of a cosine schedule.  [none]"),
    click.option("--beta", type=float, help="Momentum factor.  [0.9]"),
    click.option("--mu", type=float, help="Factor of the quasi-global buffer.  [beta]"),
    click.option("--weight-decay", type=float, help="Coupled weight decay.  [0]"),
    click.option("--local-steps", type=int, help="Gradient steps in a round.  [1]"),
    click.option(
        "--algorithm-option",
        "algorithm_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="Another hyper-parameter of the algorithm (docs/algorithms.md); repeatable.",
    ),
    click.option("--rounds", type=int, help="Rounds of training.  [100]"),
    click.option("--eval-every", type=int, help="Rounds between evaluations; 0: at the end.  [0]"),
    click.option(
        "--finish-tolerance",
        type=float,
        help="Relative difference of neighbours at which gossip-only rounds end.  [0.001]",
    ),
    click.option("--finish-rounds", type=int, help="Most gossip-only rounds at the end.  [200]"),
    click.option("--dp/--no-dp", default=None, help="Differential privacy of every agent's records.  [no]"),
    click.option("--max-grad-norm", type=float, help="Norm that gradients of a sample are clipped to.  [1]"),
    click.option(
        "--noise-multiplier", type=float, help="Noise over that norm.  [what the budget can afford]"
    ),
    click.option("--target-epsilon", type=float, help="Epsilon at which an agent stops training.  [none]"),
    click.option("--target-delta", type=float, help="Delta that goes with epsilon.  [1e-05]"),
    click.option("--privacy-rounds", type=int, help="Rounds that the budget lasts.  [--rounds]"),
    click.option("--accountant", help="prv, or rdp: faster and looser.  [prv]"),
    click.option(
        "--secure-sums/--no-secure-sums",
        default=None,
        help="Agents learn only the sum of what their neighbours send.  [no]",
    ),
    click.option("--min-senders", type=int, help="Neighbours that such a sum takes at least.  [2]"),
    click.option("--seed", type=int, help="Seed of everything random.  [0]"),
    click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        help="TOML file with these settings; options given here win.",
    ),
)


def settings_options(command: F) -> F:
    """Give a command the options of `SimulationSettings`; hand what they pass to `read_settings`."""
    for option in reversed(_SETTINGS):
        command = option(command)
    return command


def read_settings(options: dict[str, Any], base: SimulationSettings | None = None) -> SimulationSettings:
    """Take the options of `settings_options` out of `options`, lay them over the config file (over `base`
    where none is given) and validate. A task's file becomes an absolute path, so that a resume finds it
    from anywhere."""
    given = {name: options.pop(name) for name in OPTIONS}
    file: Path | None = options.pop("config_file")
    if file is not None:
        base = config.load(SimulationSettings, file)
        task = _absolute(base.task.name, file.parent)
        base = base.model_copy(update={"task": base.task.model_copy(update={"name": task})})
    if given["task"] is not None:
        given["task"] = _absolute(given["task"], Path())
    if given["milestones"] is not None:
        given["milestones"] = [_number(part, "milestones") for part in given["milestones"].split(",")]
    for table in ("task", "algorithm"):
        pairs = given[f"{table}_options"]
        parts = [pair(text, f"{table}-option") for text in pairs]
        given[f"{table}_options"] = {key: _number(value) for key, value in parts} or None
    return settings_from(given, base, where="command line")


def _absolute(task: str, folder: Path) -> str:
    source, colon, attribute = task.rpartition(":")
    return f"{(folder / source).resolve()}:{attribute}" if colon and source.endswith(".py") else task


def pair(text: str, option: str) -> tuple[str, str]:
    """Both sides of KEY=VALUE. Raises `ConfigError` naming the option for anything else."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"expected KEY=VALUE, found {text!r}", where="command line", key=option)
    return key.strip(), value.strip()


def _number(text: str, key: str | None = None) -> Any:
    """A whole number, else a number, else (where no `key` insists) true, false or the text itself."""
    for kind in (int,) if key else (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if key:
        raise ConfigError(f"expected a whole number, found {text!r}", where="command line", key=key)
    return {"true": True, "false": False}.get(text, text)

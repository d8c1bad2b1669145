"""`p2pqg join`: one agent of a network, until it is done or told to stop."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import structlog
import torch

from p2pqg import config
from p2pqg.agent import Agent, Outcome
from p2pqg.allocator import pin
from p2pqg.config import AgentSettings, NetworkFile
from p2pqg.errors import ConfigError
from p2pqg.home import Home
from p2pqg.security import TlsFiles
from p2pqg.tasks import load_task_factory
from p2pqg.transport.grpc import GrpcTransport

LOOPBACK = ("127.", "localhost", "[::1]", "::1", "unix:")


@click.command()
@click.option("--config", "file", type=click.Path(path_type=Path), default=Path("agent.toml"),
              show_default=True, help="The agent's settings.")  # fmt: skip
@click.option("--stop-after", type=click.IntRange(min=1), metavar="ROUND",
              help="Checkpoint after this round and stop.")  # fmt: skip
@click.option("--log", type=click.Choice(["console", "json"]), default="console", show_default=True,
              help="Form of the log on stderr.")  # fmt: skip
def join(file: Path, stop_after: int | None, log: str) -> None:
    """Run one agent of a network.

    It goes on from the checkpoint in its home if there is one. SIGTERM and Ctrl-C end it at the next round
    boundary: a round past the point of no return is finished, then checkpoint and goodbye.
    """
    _configure_log(log)
    agent = build(file, stop_after)
    outcome = asyncio.run(_run(agent))
    if outcome.finished and outcome.final is not None:
        score = outcome.final.accuracy
        click.echo(
            f"finished {outcome.round} rounds" + (f", accuracy {score:.1%}" if score is not None else "")
        )
    else:
        click.echo(f"stopped after round {outcome.round}; run the same command to go on")


def build(file: Path, stop_after: int | None = None) -> Agent:
    """The agent that a settings file describes. Raises `ConfigError` before anything is started."""
    settings = config.load(AgentSettings, file)
    network = config.load(NetworkFile, settings.network.file)
    name = settings.agent.name
    if name not in network.names:
        raise ConfigError(
            f"expected one of {', '.join(network.names)} (from {settings.network.file}), found {name!r}",
            where=str(file),
            key="agent.name",
        )
    identity = TlsFiles(**settings.tls.model_dump()).read() if settings.tls else None
    if identity is not None and identity.name != name:
        raise ConfigError(
            f"expected a certificate for {name}, found one for {identity.name}",
            where=str(settings.tls.certificate) if settings.tls else "",
        )
    if identity is None and not settings.agent.listen.startswith(LOOPBACK):
        raise ConfigError(
            f"expected a loopback address, because without [tls] connections are not encrypted; "
            f"found {settings.agent.listen!r}",
            where=str(file),
            key="agent.listen",
        )
    pin()
    torch.set_num_threads(settings.agent.threads)
    try:
        task = load_task_factory(settings.task.name, file.parent)(settings.context(name, network.names))
        return Agent(
            settings.agent,
            network,
            settings,
            task,
            GrpcTransport(settings.agent.listen, identity),
            home=Home(settings.agent.home),
            stop_after=stop_after,
            observe=_observe(name),
        )
    except ConfigError as error:
        if error.where:
            raise
        raise ConfigError(error.message, where=str(file), key=error.key) from None


async def _run(agent: Agent) -> Outcome:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    return await agent.run()


def _observe(name: str) -> Any:
    log = structlog.get_logger(agent=name)
    warnings = {"missed", "disconnected", "refused", "dropped", "stranger", "privacy", "budget_spent"}

    def observe(event: str, details: Mapping[str, Any]) -> None:
        (log.warning if event in warnings else log.info)(event, **details)

    return observe


def _configure_log(form: str) -> None:
    renderer = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )

"""An agent as a program: its settings read, its home locked, its commands and observers attached.

Everything that watches listens to the agent's events; everything that commands it comes over the control
socket. The agent knows of neither.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from p2pqg import config
from p2pqg.addresses import is_local
from p2pqg.agent import Agent, Outcome
from p2pqg.allocator import pin
from p2pqg.config import AgentSettings, NetworkFile
from p2pqg.control.server import Command, ControlServer
from p2pqg.discovery import Discovery
from p2pqg.errors import ConfigError, P2PQGError, StorageError
from p2pqg.home import Home
from p2pqg.privacy import Protection
from p2pqg.security import Identity, TlsFiles
from p2pqg.service import keep_notified, notify
from p2pqg.supervision import Background
from p2pqg.tasks import SupervisedTask, load_task_factory, precision
from p2pqg.tasks.base import Task
from p2pqg.telemetry import JsonLines, log
from p2pqg.telemetry.audit import Audit
from p2pqg.telemetry.journal import Journal, Privacy, View
from p2pqg.telemetry.status import Status
from p2pqg.transport.grpc import GrpcTransport

WATCH_S = 5.0
"""How often certificates and the revocation list are looked at."""
INSECURE = "INSECURE: connections are neither encrypted nor authenticated"


class Daemon:
    """The agent that `file` describes, ready to run.

    `insecure` allows an address other than loopback without certificates. Raises `ConfigError` before
    anything is started.
    """

    def __init__(
        self, file: Path, *, stop_after: int | None = None, insecure: bool = False, form: log.Form = "auto"
    ) -> None:
        settings, network = config.load_agent(file)
        self.settings, self.network = settings, network
        self._opened = ExitStack()
        self._observers: list[Callable[[str, Mapping[str, Any]], None]] = []
        self._observing = threading.Lock()
        self._last_problems: list[str] = []
        name = settings.agent.name
        try:
            identity = read_identity(settings, network, file, insecure=insecure)
            pin()
            torch.set_num_threads(settings.agent.threads)
            task = build_task(settings, network, file)
            self.home = Home(settings.agent.home)
            self._opened.enter_context(self.home.lock())
            self.transport = GrpcTransport(
                settings.agent.listen, identity, lambda reason: self.observe("stranger", {"reason": reason})
            )
            lines = self._lines("log.jsonl", max_bytes=log.MAX_BYTES)
            self.status = Status(self._about, self.problems)
            self.journal = Journal()
            self._observers += [
                self.status.observe,  # first: the others may fail when the disk is full
                Audit(self._lines("audit.jsonl"), name).observe,
                self.journal.observe,
                log.Log(log.logger(form, sys.stderr, lines), name, settings.rounds).observe,
            ]
            self.agent = Agent(
                settings.agent,
                network,
                settings,
                task,
                self.transport,
                home=self.home,
                stop_after=stop_after,
                discovery=_discovery(settings),
                observe=self.observe,
                identity=lambda: self.transport.identity,
            )
            if resumed := self.agent.training.round:
                self.journal.resume(line for line in self.home.measured() if line["round"] <= resumed)
        except ConfigError as error:
            self._opened.close()
            if error.where:
                raise
            raise ConfigError(error.message, where=str(file), key=error.key) from None
        except BaseException:
            self._opened.close()
            raise

    def observe(self, event: str, details: Mapping[str, Any]) -> None:
        """Tell everyone who listens; from any thread."""
        with self._observing:
            for observer in self._observers:
                observer(event, details)

    def problems(self) -> list[str]:
        """What an operator should do something about."""
        identity = self.transport.identity
        if identity is None:
            return [] if is_local(self.settings.agent.listen) else [INSECURE]
        return [problem] if (problem := identity.problem()) else []

    async def run(self) -> Outcome:
        """Run the agent to its end; SIGTERM and SIGINT ask it to leave."""
        with self._opened:
            if self.settings.telemetry.prometheus:
                from p2pqg.telemetry import prometheus  # whoever does without it does not load its library

                stop = prometheus.serve(self.settings.telemetry.prometheus, self.status.as_json)
                self._opened.callback(stop)
            self.home.write_json("status.json", self.snapshot())  # of a start without an end
            async with ControlServer(self.home.folder, self.commands()):
                for number in (signal.SIGTERM, signal.SIGINT):
                    asyncio.get_running_loop().add_signal_handler(number, self._stop)
                try:
                    outcome = await self._supervised()
                except Exception as error:
                    with suppress(StorageError):  # what ended it may be the disk
                        known = isinstance(error, P2PQGError)
                        reason = str(error) if known else f"{type(error).__name__}: {error}"
                        self.observe("failed", {"reason": reason})
                    raise
                else:
                    if not outcome.finished:
                        self.observe("stopped", {"round": outcome.round})
                    return outcome
                finally:
                    with suppress(StorageError):
                        self.home.write_json("status.json", self.snapshot())

    # ---- commands

    def commands(self) -> dict[str, Command]:
        """What can be asked for over the control socket."""
        return {
            "status": self._status,
            "leave": self._leave,
            "evaluate": self._evaluate,
            "export": self._export,
        }

    def snapshot(self) -> dict[str, Any]:
        """All there is to see of the agent now, for the control socket and the page alike; call it in the
        event loop."""
        return {
            **self.status.as_json(),
            **self._view().as_json(),
            "participation": self.agent.participation.as_json(),
        }

    async def _status(self) -> dict[str, Any]:
        return self.snapshot()

    async def _leave(self) -> dict[str, Any]:
        self.observe("command", {"command": "leave"})
        self._stop()
        return {"leaving": True}

    async def _evaluate(self) -> dict[str, Any]:
        evaluation = await self.agent.evaluate()
        return {"round": self.agent.training.round, **dataclasses.asdict(evaluation)}

    async def _export(self) -> dict[str, Any]:
        path, round = await self.agent.export()
        self.observe("command", {"command": "export", "round": round})
        return {"path": str(path.resolve()), "round": round}

    # ---- inside

    def _stop(self) -> None:
        notify(STOPPING=1)
        self.agent.stop()

    @asynccontextmanager
    async def _page(self, background: Background) -> AsyncIterator[None]:
        """The page, if there is to be one: an agent without it does without its libraries."""
        if self.settings.telemetry.web is None:
            yield
            return
        from p2pqg.web.server import serve

        token = self.home.folder / "web.token"
        tls = TlsFiles(**self.settings.tls.model_dump()) if self.settings.tls else None
        start = partial(background.start, "page")
        async with serve(
            self, self.settings.telemetry.web, token_file=token, tls=tls, start=start
        ) as address:
            self.observe("page", {"address": address})
            yield

    def _view(self) -> View:
        agent = self.agent
        sent, received = agent.neighbourhood.traffic
        return View(
            incarnation=agent.incarnation,
            parameters=agent.training.task.spec.d,
            samples=agent.training.task.samples,
            agents=agent.names,
            edges=agent.edges,
            links=agent.links(self.journal.quality),
            latest=self.journal.latest,
            bytes_sent=sent,
            bytes_received=received,
            privacy=_privacy(agent.protection),
            events=self.journal.events,
        )

    async def _supervised(self) -> Outcome:
        """The agent's run; if what watches beside it dies, so does the agent."""
        try:
            async with Background(self.settings.agent.name) as background, self._page(background):
                background.start("watch certificates", self._watch(), lasting=True)
                background.start("signs of life", keep_notified(self.snapshot), lasting=True)
                return await self.agent.run()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    def _about(self) -> dict[str, Any]:
        settings, network = self.settings, self.network
        return {
            "agent": settings.agent.name,
            "network": network.name,
            "run": network.run,
            "rounds": settings.rounds,
            "task": settings.task.name,
            "algorithm": settings.algorithm.name,
            "topology": network.topology,
            "home": str(settings.agent.home.absolute()),
            "security": self._security(),
        }

    def _security(self) -> dict[str, Any]:
        identity = self.transport.identity
        if identity is None:
            return {"mode": "loopback" if is_local(self.settings.agent.listen) else "insecure"}
        return {
            "mode": "mutual TLS",
            "key": identity.fingerprint,
            "days_left": identity.days_left,
            "revocation_list": identity.admission.number,
            "allow": identity.allow,
        }

    async def _watch(self) -> None:
        """Say once what needs an operator: a certificate may expire during a run. Cut off who was revoked."""
        while True:
            problems = self.problems()
            for problem in problems:
                if problem.split(":")[0] not in {seen.split(":")[0] for seen in self._last_problems}:
                    self.observe("problem", {"problem": problem})
            self._last_problems = problems
            await self.transport.enforce()
            await asyncio.sleep(WATCH_S)

    def _lines(self, name: str, max_bytes: int | None = None) -> JsonLines:
        return self._opened.enter_context(JsonLines(self.home.folder / name, max_bytes=max_bytes))


def read_identity(
    settings: AgentSettings, network: NetworkFile, file: Path, *, insecure: bool = False
) -> Identity | None:
    """The agent's identity, or None if it needs none. Raises `ConfigError` if it is another agent's, if the
    agent is not of the network, or if it would talk to others without one."""
    name = settings.agent.name
    if name not in network.names and network.membership == "fixed":
        raise ConfigError(
            f"expected one of {', '.join(network.names)} (from {settings.network.file}), found {name!r}",
            where=str(file),
            key="agent.name",
        )
    if settings.tls is None:
        if not (insecure or is_local(settings.agent.listen)):
            raise ConfigError(
                "expected a loopback address, because without [tls] connections are neither encrypted nor "
                f"authenticated (--insecure allows it); found {settings.agent.listen!r}",
                where=str(file),
                key="agent.listen",
            )
        return None
    if insecure:
        raise ConfigError("expected no --insecure, because the settings have certificates", where=str(file))
    identity = TlsFiles(**settings.tls.model_dump()).read()
    if identity.name != name:
        raise ConfigError(
            f"expected a certificate for {name}, found one for {identity.name}",
            where=str(settings.tls.certificate),
        )
    return identity


def _discovery(settings: AgentSettings) -> Discovery | None:
    if not settings.network.mdns:
        return None
    from p2pqg.discovery.mdns import MdnsDiscovery  # whoever does without it does not load its library

    return MdnsDiscovery(settings.network.interfaces)


def _privacy(protection: Protection | None) -> Privacy | None:
    """What it has cost, as quickly as can be told: the page asks every second."""
    if protection is None or "epsilon" not in (measured := protection.measurements()):
        return None
    mechanism = protection.task.mechanism
    return Privacy(measured["epsilon"], mechanism.delta, mechanism.budget)


def build_task(settings: AgentSettings, network: NetworkFile, file: Path) -> Task:
    """The task with this agent's data."""
    factory = load_task_factory(settings.task.name, file.parent)
    names = tuple(sorted({*network.names, settings.agent.name}))
    task = settings.make_task(factory, settings.agent.name, names)
    if isinstance(task, SupervisedTask):
        precision.require(task.precision, task.train[0].device)
    return task

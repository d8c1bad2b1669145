"""Agents as processes that are killed, stopped, slowed, parted and started again, with mutual TLS.

Each runs on a host of its own (`Lan`) where network namespaces can be made. Elsewhere all run on loopback,
and there is no partition: what comes nearest is `freeze` (SIGSTOP), which is another fault.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from p2pqg.config import agent_names
from p2pqg.control.client import ask
from p2pqg.errors import P2PQGError
from p2pqg.security import issue

from .faults import Fault, Kind, Ledger
from .lan import Lan
from .swarm import free_ports

POLL_S = 0.1
SLOWNESS = 20
"""A slow device has a SLOWNESS-th of the processor: it is stopped for the rest of every `PERIOD_S`."""
PERIOD_S = 0.2
END_S = 60.0
"""How long an agent that was told to stop may take."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one process at one moment: resident memory that it does not share with files, in MiB; open file
    descriptors; threads."""

    memory_mib: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Resources:
        """Read from /proc. Raises `OSError` if the process is gone."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        values = {line.split(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
        return cls(int(values["RssAnon"]) / 1024, len(os.listdir(f"/proc/{pid}/fd")), int(values["Threads"]))


@dataclass
class Site:
    """One agent: its home, how it is started, its process, and how far its metrics have been read."""

    name: str
    home: Path
    prefix: list[str]
    process: subprocess.Popen[bytes] | None = None
    leaving: bool = False
    starts: int = 0
    _read: int = 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, *, afresh: bool = False) -> None:
        """Start the agent from its home, or `afresh` as a new device of that name."""
        if afresh:
            for path in self.home.iterdir():
                if path.name not in ("agent.toml", "log.txt"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        metrics = self.home / "metrics.jsonl"
        if metrics.exists():  # the agent would drop the lines of rounds that it does again
            metrics.rename(self.home / f"metrics-{self.starts}.jsonl")
        self.starts, self._read, self.leaving = self.starts + 1, 0, False
        command = [*self.prefix, sys.executable, "-m", "p2pqg.cli.main", "join", "--log", "json", "--config"]
        with (self.home / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, str(self.home / "agent.toml")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def new_rounds(self) -> list[dict[str, Any]]:
        """The lines of metrics since the last call."""
        path = self.home / "metrics.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def last_words(self) -> str:
        """The end of the agent's log: why it failed."""
        lines = (self.home / "log.txt").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"


@dataclass
class Hosts:
    """`n` agents with `settings`, on a `lan` or on loopback; enter `hosts` for them."""

    sites: list[Site]
    lan: Lan | None
    ledger: Ledger
    round_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _slow: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Faults that can be made here."""
        return ("kill", "leave", "freeze", "slow", *(("part",) if self.lan else ()))

    @property
    def running(self) -> list[Site]:
        return [site for site in self.sites if site.running]

    def site(self, name: str) -> Site:
        return next(site for site in self.sites if site.name == name)

    async def carry_out(self, fault: Fault) -> None:
        """Make it happen, and write it down."""
        self.look()
        self.ledger.happened(fault, time.monotonic())
        site = self.site(fault.agents[0])
        match fault.kind:
            case "kill":
                site.leaving = True
                site.signal(signal.SIGKILL)
            case "leave":
                await self.leave(site)
            case "restart" | "join":
                site.start(afresh=fault.kind == "join")
            case "part" if self.lan:
                self.lan.part(i for i, each in enumerate(self.sites) if each.name in fault.agents)
            case "heal" if self.lan:
                self.lan.heal()
            case "slow":
                self._slow[site.name] = asyncio.create_task(_slow_down(site))
            case "quick":
                self._slow.pop(site.name).cancel()
                site.signal(signal.SIGCONT)
            case "freeze":
                site.signal(signal.SIGSTOP)
            case "thaw":
                site.signal(signal.SIGCONT)

    async def leave(self, site: Site) -> None:
        """Ask an agent to leave, and wait until it has."""
        site.leaving = True
        site.signal(signal.SIGTERM)
        code = await self._ended(site)
        early = code == -signal.SIGTERM and not (site.home / "metrics.jsonl").exists()
        if code != 0 and not early:  # a program that is still loading just ends
            self.problems.append(f"{site.name} left with exit code {code}: {site.last_words()}")

    async def _ended(self, site: Site) -> int | None:
        assert site.process is not None
        end_s = time.monotonic() + END_S
        while site.process.poll() is None and time.monotonic() < end_s:
            await asyncio.sleep(POLL_S)
            self.look()
        if site.process.poll() is None:
            site.signal(signal.SIGKILL)
            site.process.wait()
            return None
        return site.process.returncode

    def look(self) -> None:
        """Read what the agents have measured since the last look, and see whether one has died."""
        now = time.monotonic()
        for site in self.sites:
            for line in site.new_rounds():
                if "round_s" in line:
                    self.round_s.append(line["round_s"])
                    missed = len(line["missed"])
                    self.ledger.round(site.name, now, line["round_s"], line["neighbours"], missed)
            if site.process is not None and not site.leaving and site.process.poll() is not None:
                site.leaving = True
                self.problems.append(
                    f"{site.name} ended by itself, exit code {site.process.returncode}: {site.last_words()}"
                )

    async def watch(self, seconds: float) -> None:
        """Look, for so long."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self.look()
            await asyncio.sleep(min(POLL_S, left_s))

    async def ask(self, site: Site, command: str) -> dict[str, Any] | None:
        """What a running agent answers; None if it does not."""
        with suppress(P2PQGError):
            return dict(await asyncio.to_thread(ask, site.home, command, 30.0))
        return None

    def end(self) -> None:
        """Whatever still runs is killed."""
        for site in self.running:
            site.signal(signal.SIGKILL)
        for site in self.sites:
            if site.process is not None:
                site.process.wait()


async def _slow_down(site: Site) -> None:
    while True:
        site.signal(signal.SIGSTOP)
        await asyncio.sleep(PERIOD_S * (1 - 1 / SLOWNESS))
        site.signal(signal.SIGCONT)
        await asyncio.sleep(PERIOD_S / SLOWNESS)


@contextmanager
def hosts(folder: Path, n: int, network: dict[str, Any], run: dict[str, Any]) -> Iterator[Hosts]:
    """`n` agents, not started yet, in `folder`, with the tables of their network's file and of their own."""
    opened, lan = ExitStack(), None
    with suppress(OSError, subprocess.CalledProcessError):
        lan = opened.enter_context(Lan(n))
    names = agent_names(n)
    ports = free_ports(n)
    addresses = [f"{lan.address(i)}:7000" if lan else f"127.0.0.1:{ports[i]}" for i in range(n)]
    _write(folder / "network.toml", network | {"agents": _members(names, addresses)})
    certificates = issue(folder / "certificates", names)
    sites = []
    for i, name in enumerate(names):
        files = certificates[name]
        tls = {key: str(getattr(files, key)) for key in ("certificate", "private_key", "authority")}
        own = run | {
            "agent": {"name": name, "listen": addresses[i], "home": "."} | run.get("agent", {}),
            "network": {"file": "../network.toml"},
            "tls": tls,
        }
        _write(folder / name / "agent.toml", own)
        sites.append(Site(name, folder / name, lan.command(i) if lan else []))
    running = Hosts(sites, lan, Ledger(1.0))
    with opened:
        opened.callback(running.end)
        yield running


def _members(names: Sequence[str], addresses: Sequence[str]) -> list[dict[str, str]]:
    return [{"name": name, "address": address} for name, address in zip(names, addresses, strict=True)]


def _write(path: Path, table: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(table))

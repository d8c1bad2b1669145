"""Agents as separate hosts: network namespaces on one bridge, real mDNS, kill -9, a link that goes down."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from p2pqg.security import issue
from p2pqg_simulator.lan import Lan

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(280)]


@pytest.fixture
def lan(request: pytest.FixtureRequest) -> Iterator[Lan]:
    try:
        with Lan(3, version=getattr(request, "param", 4)) as network:
            yield network
    except (OSError, subprocess.CalledProcessError) as error:
        if "netns" in str(error) or "ip" in str(error):
            pytest.skip(f"network namespaces cannot be made here: {error}")
        raise


class Site:
    """One agent's home on one host, and the process that runs there."""

    def __init__(self, lan: Lan, folder: Path, i: int, certificates: Any, **agent: Any) -> None:
        self.name, self.prefix, self.home = f"agent-{i:03d}", lan.command(i), folder / f"agent-{i:03d}"
        self.home.mkdir()
        files = certificates[self.name]
        settings = {
            "rounds": 100_000,
            "task": {"name": "quadratic", "options": {"noise": 0.1}},
            "schedule": {"lr": 0.01},
            "agent": {"name": self.name, "listen": lan.any_address, "home": ".", "round_timeout_s": 5.0,
                      "checkpoint_every": 20, **agent},
            "network": {"file": "../network.toml", "mdns": True, "interfaces": ["eth0"]},
            "tls": {"certificate": str(files.certificate), "private_key": str(files.private_key),
                    "authority": str(files.authority)},
        }  # fmt: skip
        (self.home / "agent.toml").write_text(tomli_w.dumps(settings))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [*self.prefix, sys.executable, "-m", "p2pqg.cli.main", "join",
                   "--log", "json", "--config", str(self.home / "agent.toml")]  # fmt: skip
        with (self.home / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    @property
    def lines(self) -> list[dict[str, Any]]:
        path = self.home / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def events(self, name: str) -> list[dict[str, Any]]:
        log = [
            json.loads(line) for line in (self.home / "log.txt").read_text().splitlines() if line[:1] == "{"
        ]
        return [event for event in log if event["event"] == name]


@pytest.fixture
def sites(lan: Lan, tmp_path: Path) -> Iterator[list[Site]]:
    certificates = issue(tmp_path / "certificates", [f"agent-{i:03d}" for i in range(3)])
    network = {"name": "ward", "topology": "complete", "membership": "alive", "at_least": 3}
    (tmp_path / "network.toml").write_text(tomli_w.dumps(network))
    sites = [Site(lan, tmp_path, i, certificates) for i in range(3)]
    try:
        yield sites
    finally:
        for site in sites:
            if site.process is not None and site.process.poll() is None:
                site.end(signal.SIGKILL)


def until(condition: Callable[[], Any], sites: list[Site], timeout_s: float = 120.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        for site in sites:
            if site.process is not None and site.process.poll() not in (None, -signal.SIGKILL):
                pytest.fail(f"{site.name}: {(site.home / 'log.txt').read_text()[-3000:]}")
        if time.monotonic() > end_s:
            pytest.fail("\n".join((site.home / "log.txt").read_text()[-1500:] for site in sites))
        time.sleep(0.1)


def mixes(site: Site, neighbours: int, rounds: int = 5) -> Callable[[], bool]:
    """Whether the rounds it does from now on are done with so many neighbours."""
    start = len(site.lines)

    def look() -> bool:
        recent = site.lines[start:][-rounds:]
        return len(recent) == rounds and all(line["neighbours"] == neighbours for line in recent)

    return look


def test_agents_find_each_other_survive_and_meet_again(lan: Lan, sites: list[Site]) -> None:
    """Nobody is told an address. One is killed and restarted; then its cable is pulled and put back."""
    for site in sites:
        site.start()
    for site in sites:
        until(mixes(site, 2), sites)

    victim = sites[1]
    victim.end(signal.SIGKILL)
    for site in (sites[0], sites[2]):
        until(mixes(site, 1), sites)
        assert max(line["round_s"] for line in site.lines) < 10, "at most one deadline"
    victim.start()
    for site in sites:
        until(mixes(site, 2), sites)

    lan.plug(1, "down")
    for site in (sites[0], sites[2]):
        until(mixes(site, 1), sites)
    until(mixes(victim, 0), sites)
    lan.plug(1, "up")
    for site in sites:
        until(mixes(site, 2), sites)
    assert [site.end(signal.SIGTERM) for site in sites] == [0, 0, 0]


@pytest.mark.parametrize("lan", [6], indirect=True)
def test_agents_find_each_other_where_there_is_no_ipv4(lan: Lan, sites: list[Site]) -> None:
    """mDNS and gRPC over IPv6 alone, on the interface that the settings name."""
    for site in sites:
        site.start()
    for site in sites:
        until(mixes(site, 2), sites)
    assert [site.end(signal.SIGTERM) for site in sites] == [0, 0, 0]

"""Agents for tests of the command line: as processes, and in this one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from p2pqg.daemon import Daemon
from p2pqg_simulator.swarm import free_ports

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def write(path: Path, table: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(table))
    return path


def network(folder: Path, n: int = 2, **changes: Any) -> list[str]:
    """A topology file and the settings of n agents; their names."""
    names = [f"agent-{i:03d}" for i in range(n)]
    addresses = [f"127.0.0.1:{port}" for port in free_ports(n)]
    agents = [{"name": a, "address": b} for a, b in zip(names, addresses, strict=True)]
    write(folder / "network.toml", {"name": "test", "agents": agents})
    for name, address in zip(names, addresses, strict=True):
        run: dict[str, Any] = {
            "rounds": 20,
            "task": {"name": "quadratic"},
            "agent": {"name": name, "listen": address, "home": "home"},
            "network": {"file": "../network.toml"},
        }
        for table, values in changes.items():
            run[table] = run[table] | values if isinstance(values, dict) and table in run else values
        write(folder / name / "agent.toml", run)
    return names


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory at `folder`; the test is skipped where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def start(folder: Path, name: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "p2pqg.cli.main", "join", "--config", str(folder / name / "agent.toml")]
    return subprocess.Popen(
        [*command, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start`, and nothing left running after the test."""
    processes = []

    def begin(*arguments: Any) -> subprocess.Popen[str]:
        processes.append(start(*arguments))
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_round(folder: Path, name: str, round: int, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    path = folder / name / "home" / "metrics.jsonl"
    while not (path.exists() and path.read_text().count("\n") >= round):
        assert time.monotonic() < deadline, f"{name} did not reach round {round}"
        time.sleep(0.05)


def running(folder: Path, names: list[str], client: Callable[[], None], **options: Any) -> list[Any]:
    """Run `client` beside the agents; they are asked to leave when it is done. Returns what each agent's run
    came to, an error perhaps."""
    daemons = [Daemon(folder / name / "agent.toml", **options) for name in names]

    async def main() -> list[Any]:
        agents = [asyncio.create_task(daemon.run()) for daemon in daemons]
        try:
            await asyncio.to_thread(client)
        finally:
            for daemon in daemons:
                daemon.agent.stop()
            outcomes = await asyncio.gather(*agents, return_exceptions=True)
        return list(outcomes)

    return asyncio.run(main())


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found

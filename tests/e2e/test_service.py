"""What the agent tells systemd: over a real socket, from a real agent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import ENVIRONMENT, network

from p2pqg.service import notify, watchdog_s

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The end that systemd listens at."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(60)
        yield channel


def test_an_agent_says_ready_alive_and_stopping(tmp_path: Path, manager: socket.socket) -> None:
    (name, _) = network(tmp_path)
    command = [
        sys.executable,
        "-m",
        "p2pqg.cli.main",
        "join",
        "--config",
        str(tmp_path / name / "agent.toml"),
    ]
    told = ENVIRONMENT | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    process = subprocess.Popen(
        command, env=told, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        heard: list[str] = []
        while not ("READY=1" in heard and "WATCHDOG=1" in heard[-1] and heard[-2] != "READY=1"):
            heard.append(manager.recv(4096).decode())
        assert any("STATUS=waiting, round 0 of 20, 0 of 1 neighbours" in message for message in heard)
        process.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in heard:
            heard.append(manager.recv(4096).decode())
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_nobody_listening_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for address in ("", "relative", str(tmp_path / "nobody"), "@nobody"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify(READY=1)


def test_an_abstract_address_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"\0p2pqg-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@p2pqg-test-{os.getpid()}")
        notify(READY=1, STATUS="up")
        assert channel.recv(100) == b"READY=1\nSTATUS=up"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_patience_is_read(environment: dict[str, str], expected: float | None) -> None:
    assert watchdog_s(environment) == expected

"""The control socket: private, versioned, unshaken by nonsense; and commands that start without torch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from p2pqg.control import MAX_LINE_BYTES, SOCKET, VERSION
from p2pqg.control.client import NotRunning, ask, home_of
from p2pqg.control.server import ControlServer
from p2pqg.errors import ConfigError, P2PQGError, StorageError


async def echo(text: str = "nothing") -> dict[str, Any]:
    return {"said": text, "loss": float("nan")}


async def fail() -> None:
    raise StorageError("the disk is full")


async def break_down() -> None:
    raise ZeroDivisionError("division by zero")


def served(home: Path, client: Callable[[], Any]) -> Any:
    """Run `client` in a thread while commands are served."""

    async def main() -> Any:
        with ThreadPoolExecutor(1) as pool:
            async with ControlServer(home, {"echo": echo, "fail": fail, "break": break_down}):
                return await asyncio.get_running_loop().run_in_executor(pool, client)

    return asyncio.run(main())


def raw(home: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(home / SOCKET))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_ask_and_answer(tmp_path: Path) -> None:
    answer = served(tmp_path, lambda: ask(tmp_path, "echo", text="grüezi"))
    assert answer == {"said": "grüezi", "loss": None}


def test_only_the_owner_can_open_it_and_it_is_gone_after(tmp_path: Path) -> None:
    mode = served(tmp_path, lambda: stat.S_IMODE((tmp_path / SOCKET).stat().st_mode))
    assert mode == 0o600
    assert not (tmp_path / SOCKET).exists()
    with pytest.raises(NotRunning, match="no agent is running in"):
        ask(tmp_path, "echo")


def test_a_socket_that_a_crash_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / SOCKET))
    with pytest.raises(NotRunning):
        ask(tmp_path, "echo")
    assert served(tmp_path, lambda: ask(tmp_path, "echo"))["said"] == "nothing"


def test_a_home_deeper_than_a_socket_address_may_be(tmp_path: Path) -> None:
    home = tmp_path / ("deep" * 30)
    home.mkdir()
    assert served(home, lambda: ask(home, "echo"))["said"] == "nothing"


def test_errors_come_back_in_words(tmp_path: Path) -> None:
    def client() -> None:
        with pytest.raises(P2PQGError, match="the disk is full"):
            ask(tmp_path, "fail")
        with pytest.raises(P2PQGError, match="expected one of break, echo, fail, found dance"):
            ask(tmp_path, "dance")
        with pytest.raises(P2PQGError, match="break failed: ZeroDivisionError"):
            ask(tmp_path, "break")
        with pytest.raises(P2PQGError, match="unexpected keyword argument"):
            ask(tmp_path, "echo", volume=11)

    served(tmp_path, client)


@pytest.mark.parametrize(
    "data", [b"\n", b"[]\n", b"nonsense\n", b'{"version": 1}\n', b'"version command"\n', b"\xff\x00\n",
             b'{"version": 1, "command": "echo", "arguments": 3}\n'],
)  # fmt: skip
def test_nonsense_is_answered_as_such(tmp_path: Path, data: bytes) -> None:
    def client() -> Any:
        return raw(tmp_path, data), ask(tmp_path, "echo")

    answer, after = served(tmp_path, client)
    assert json.loads(answer)["error"].startswith("expected a JSON object")
    assert after["said"] == "nothing"


def test_another_version_and_an_endless_line(tmp_path: Path) -> None:
    def client() -> Any:
        newer = raw(tmp_path, json.dumps({"version": VERSION + 1, "command": "echo"}).encode() + b"\n")
        endless = b""
        with contextlib.suppress(ConnectionError):  # it may be cut while we send
            endless = raw(tmp_path, b"x" * (4 * MAX_LINE_BYTES))
        return newer, endless, ask(tmp_path, "echo")

    newer, endless, after = served(tmp_path, client)
    assert "restart the agent" in json.loads(newer)["error"]
    assert endless == b""
    assert after["said"] == "nothing"


def test_the_home_is_found_without_validating_the_settings(tmp_path: Path) -> None:
    settings = tmp_path / "agent.toml"
    for text, home in (
        ('[agent]\nname = "a"\nhome = "."', tmp_path),
        ('[agent]\nname = "a"', tmp_path / "home"),
        ('[agent]\nhome = "/elsewhere"', Path("/elsewhere")),
    ):
        settings.write_text(text)
        assert home_of(settings) == home
    for text in ("", "[agent", "agent = 3", "[agent]\nhome = 3"):
        settings.write_text(text)
        with pytest.raises(ConfigError, match=r"agent\.toml: expected an agent's settings"):
            home_of(settings)
    with pytest.raises(ConfigError, match="cannot be read"):
        home_of(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["version"], ["status"], ["peers"], ["leave"], ["logs"], ["evaluate"],
     ["export"], ["init", "bern"], ["join", "--help"], ["preflight", "--help"], ["network", "--help"]],
    ids=" ".join,
)  # fmt: skip
def test_commands_start_without_torch(arguments: list[str], tmp_path: Path) -> None:
    """What makes them fast, whatever the machine: neither torch nor what it brings is imported."""
    (tmp_path / "agent.toml").write_text('[agent]\nname = "a"\nhome = "."\n')
    program = (
        "import sys; sys.argv = ['p2pqg', *sys.argv[1:]]\n"
        "from p2pqg.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('IMPORTED', *({'torch', 'numpy', 'grpc', 'pydantic', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "IMPORTED"

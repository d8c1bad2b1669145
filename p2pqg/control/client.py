"""The command line's end of the control socket; it imports next to nothing, so that commands start fast."""

from __future__ import annotations

import json
import os
import socket
import tomllib
from pathlib import Path
from typing import Any

from p2pqg.control import SOCKET, VERSION, socket_address
from p2pqg.errors import ConfigError, P2PQGError


class NotRunning(P2PQGError):
    """No agent answers in this home."""


def home_of(settings: Path) -> Path:
    """The home of the agent with these settings, without validating the rest of them."""
    try:
        agent = tomllib.loads(settings.read_text(encoding="utf-8"))["agent"]
        home = Path(agent.get("home", "home"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(settings)) from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise ConfigError(f"expected an agent's settings: {error}", where=str(settings)) from None
    return settings.parent / home


def ask(home: Path, command: str, timeout_s: float = 10.0, **arguments: Any) -> Any:
    """The running agent's answer. Raises `NotRunning`, or `P2PQGError` with what the agent says."""
    request = {"version": VERSION, "command": command, "arguments": arguments}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            with socket_address(home) as address:
                connection.connect(address)
        except PermissionError:
            raise P2PQGError(f"{home / SOCKET}: the agent runs as another user; use that one") from None
        except OSError:
            raise NotRunning(f"no agent is running in {home}") from None
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
        except TimeoutError:
            raise P2PQGError(f"the agent did not answer within {timeout_s:g} s") from None
        except OSError as error:
            raise NotRunning(f"the agent in {home} is ending: {os.strerror(error.errno or 0)}") from None
    if not line:
        raise NotRunning(f"the agent in {home} is ending")
    answer = json.loads(line)
    if "error" in answer:
        raise P2PQGError(answer["error"])
    return answer["result"]

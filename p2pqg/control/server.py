"""The running agent's end of the control socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from p2pqg.control import MAX_LINE_BYTES, SOCKET, VERSION, socket_address
from p2pqg.errors import P2PQGError
from p2pqg.storage import unwritable
from p2pqg.telemetry import clean

IDLE_S = 60.0
"""A client that asks nothing for so long is hung up."""
MAX_CLIENTS = 16

Command = Callable[..., Awaitable[Any]]
"""Called with the request's arguments; what it returns goes back as JSON."""


class ControlServer:
    """Serves `commands` at the control socket in `home` for as long as it is entered.

    A stale socket is replaced: the caller holds the home's lock. A command that raises one of our errors
    answers with it. Raises `StorageError` if the socket cannot be made.
    """

    def __init__(self, home: Path, commands: Mapping[str, Command]) -> None:
        self._home, self._commands = home, commands
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        path = self._home / SOCKET
        try:
            path.unlink(missing_ok=True)
            bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            mask = os.umask(0o177)  # private from its first moment on
            try:
                with socket_address(self._home) as address:
                    bound.bind(address)
            except OSError:
                bound.close()
                raise
            finally:
                os.umask(mask)
        except OSError as error:
            raise unwritable(path, error) from error
        self._server = await asyncio.start_unix_server(self._accept, sock=bound, limit=MAX_LINE_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        (self._home / SOCKET).unlink(missing_ok=True)
        for client in self._clients:
            client.cancel()
        if self._clients:
            await asyncio.wait(self._clients)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    line = await reader.readline()
                if not line:
                    return
                answer = {"version": VERSION, **await self._answer(line)}
                writer.write(json.dumps(clean(answer), allow_nan=False).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError, asyncio.CancelledError):
            return  # the client is gone, asks too much or too slowly, or we are closing
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            version, name = request["version"], request["command"]
            arguments = dict(request.get("arguments", {}))
        except (ValueError, LookupError, TypeError, AttributeError):
            return {"error": "expected a JSON object with version, command and arguments"}
        if version != VERSION:
            return {"error": f"expected control version {VERSION}, found {version}: the program was updated "
                             "while the agent was running; restart the agent"}  # fmt: skip
        if name not in self._commands:
            return {"error": f"expected one of {', '.join(sorted(self._commands))}, found {name}"}
        try:
            return {"result": await self._commands[name](**arguments)}
        except (P2PQGError, TypeError) as error:
            return {"error": str(error)}
        except Exception as error:  # ours, but no reason to end the agent
            return {"error": f"{name} failed: {type(error).__name__}: {error}"}

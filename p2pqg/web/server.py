"""The agent's own web page: read-only, in the agent's event loop, nothing loaded from elsewhere.

    GET /              the page, with /style.css and /page.js
    GET /status.json   the snapshot, as the control socket serves it
    GET /curves.json   {name: {"round": [...], "value": [...]}}
    GET /stream        server-sent events: the snapshot, once a second

On a loopback address whoever is on this machine may look, but a browser that was sent here under another
host's name is refused, so that no foreign page can read along. On any other address a token is needed, and
the agent's certificate, so that the token does not cross the network in the clear.

starlette and uvicorn rather than aiohttp: imported, they cost 8.6 MiB and 0.06 s of CPU against 16.8 MiB and
0.14 s, and they and their dependencies are plain Python, which installs on any architecture.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2pqg.addresses import host_and_port, is_loopback
from p2pqg.errors import ConfigError
from p2pqg.security import TlsFiles
from p2pqg.security.files import write_secret
from p2pqg.storage import unwritable
from p2pqg.telemetry import clean
from p2pqg.telemetry.journal import Journal

PERIOD_S = 1.0
"""Between two snapshots of the stream."""
MAX_CONNECTIONS = 32
GRACE_S = 2
COOKIE = "p2pqg"
ASSETS = {"/": ("page.html", "text/html"), "/style.css": ("style.css", "text/css"),
          "/page.js": ("page.js", "text/javascript")}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Watched(Protocol):
    """An agent, as far as the page is concerned."""

    journal: Journal

    def snapshot(self) -> Mapping[str, Any]: ...


@contextlib.asynccontextmanager
async def serve(
    watched: Watched,
    listen: str,
    *,
    token_file: Path,
    tls: TlsFiles | None = None,
    start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]] = asyncio.create_task,
) -> AsyncIterator[str]:
    """Serve the page of `watched` at `listen` (``host:port``) for as long as the block lasts; yields its URL.
    `start` makes the task that does.

    Where a token is needed the page is opened with ``?token=`` and it. It is read from `token_file`, which is
    made if it is not there. Raises `ConfigError` for an address that cannot be used, or that others reach
    while there is no `tls`; `StorageError` for the token's file.
    """
    host, port = host_and_port(listen, "telemetry.web")
    loopback = is_loopback(host)
    if not loopback and tls is None:
        raise ConfigError(
            f"expected a loopback address, because without [tls] the page is not encrypted; found {listen!r}",
            key="telemetry.web",
        )
    token = None if loopback else _token(token_file)
    closing = asyncio.Event()
    app = Guard(_application(watched, closing), token)
    options: dict[str, Any] = {} if loopback or tls is None else {
        "ssl_certfile": tls.certificate, "ssl_keyfile": tls.private_key,
    }  # fmt: skip
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        http="h11",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_S,
        **options,
    )
    with _listening(host, port) as listener:
        server = _Server(config)
        task = start(server.serve(sockets=[listener]))
        scheme, shown = ("http" if token is None else "https"), listener.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        try:
            yield f"{scheme}://{name}:{shown}/"
        finally:
            closing.set()
            server.should_exit = True
            await task


class _Server(uvicorn.Server):
    """Leaves signals to the agent."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Guard:
    """Lets in who may look, and tells browsers to trust nothing but this page itself."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (self._refusal(Request(scope)) or self._app)(scope, receive, guarded)

    def _refusal(self, request: Request) -> Response | None:
        if self._token is None:
            if is_loopback(_without_port(request.headers.get("host", ""))):
                return None
            return PlainTextResponse("This page answers to localhost only.\n", 421)
        if _is(self._token, request.query_params.get("token")):
            answer = RedirectResponse(request.url.path, 303)  # the token leaves the address bar
            answer.set_cookie(COOKIE, self._token, httponly=True, secure=True, samesite="strict")
            return answer
        if _is(self._token, request.cookies.get(COOKIE)) or _is(self._token, _bearer(request.headers)):
            return None
        return PlainTextResponse(
            "A token is needed: open this page with ?token= and what the agent's file web.token says.\n",
            401,
            {"WWW-Authenticate": "Bearer"},
        )


def _application(watched: Watched, closing: asyncio.Event) -> Starlette:
    async def status(_: Request) -> Response:
        return JSONResponse(clean(watched.snapshot()))

    async def curves(_: Request) -> Response:
        return JSONResponse(watched.journal.curves())

    async def stream(_: Request) -> Response:
        return StreamingResponse(snapshots(), media_type="text/event-stream")

    async def snapshots() -> AsyncIterator[str]:
        while not closing.is_set():
            yield f"data: {json.dumps(clean(watched.snapshot()), allow_nan=False)}\n\n"
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(closing.wait(), PERIOD_S)

    routes = [Route(path, _asset(*asset), methods=["GET"]) for path, asset in ASSETS.items()]
    for path, answer in (("/status.json", status), ("/curves.json", curves), ("/stream", stream)):
        routes.append(Route(path, answer, methods=["GET"]))
    return Starlette(routes=routes)


def _asset(name: str, media_type: str) -> Callable[[Request], Any]:
    content = resources.files("p2pqg.web").joinpath("assets", name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=media_type)

    return answer


def _is(token: str, given: str | None) -> bool:
    return given is not None and hmac.compare_digest(token.encode(), given.encode())


def _bearer(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else None


def _token(path: Path) -> str:
    """The token in `path`, which only its owner may read; made on first use."""
    if not path.exists():
        write_secret(path, f"{secrets.token_urlsafe(24)}\n".encode())
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise unwritable(path, error) from error
    except UnicodeDecodeError:
        token = ""
    if len(token) < 16:
        raise ConfigError("expected a token of at least 16 characters", where=str(path))
    return token


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = "port taken: another process listens" if error.errno == errno.EADDRINUSE else "cannot listen"
        detail = "" if error.errno == errno.EADDRINUSE else f": {error.strerror or error}"
        raise ConfigError(f"{reason} at {host}:{port}{detail}", key="telemetry.web") from error
    with listener:
        yield listener

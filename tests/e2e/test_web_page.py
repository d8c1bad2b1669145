"""The agent's page over HTTP: what it serves, to whom, and what it refuses."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import ssl
import stat
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from p2pqg.errors import ConfigError
from p2pqg.security import TlsFiles, issue
from p2pqg.telemetry.journal import Journal, Link, Privacy, View
from p2pqg.web.server import MAX_CONNECTIONS, serve

T = TypeVar("T")
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\x00"


class Watched:
    """An agent whose neighbour gives reasons that no page should run."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.journal.observe("round", {"round": 1, "loss": float("nan"), "disagreement": 0.5})
        self.journal.observe("round", {"round": 2, "loss": 1.5})
        self.journal.observe("refused", {"peer": "chur", "reason": HOSTILE})

    def snapshot(self) -> dict[str, Any]:
        link = Link("chur", "refused", HOSTILE, None, None, 0, 2, 0.0, 0, 10, 20)
        view = View(
            1, 10, 5, ("bern", "chur"), (("bern", "chur"),), (link,), self.journal.latest, 10, 20,
            Privacy(1.0, 1e-5, None), self.journal.events,
        )  # fmt: skip
        about = {
            "version": "0", "network": "clinics", "run": "1", "agent": "bern", "state": "training",
            "security": {"mode": "mutual TLS"}, "algorithm": "qg-dsgdm-n", "topology": "ring", "round": 2,
            "rounds": 10, "uptime_s": 4.0, "remaining_s": 8.0,
        }  # fmt: skip
        return about | view.as_json()


def get(
    url: str, path: str = "/", *, method: str = "GET", host: str | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request to wherever `url` says; nothing but the certificate's name is left unchecked."""
    where = urlsplit(url)
    if where.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", where.port, timeout=10, context=context
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", where.port, timeout=10)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=given | ({"Host": host} if host else {}))
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def served(
    folder: Path, look: Callable[[str], T], listen: str = "127.0.0.1:0", tls: TlsFiles | None = None
) -> T:
    """What `look` returns, in a thread, while the page is there."""

    async def main() -> T:
        async with serve(Watched(), listen, token_file=folder / "web.token", tls=tls) as url:
            return await asyncio.to_thread(look, url)

    return asyncio.run(main())


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Every address in page, style and script is one of the page's own, and it answers."""
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: Any) -> None:
            found.extend(value for name, value in attributes if name in ("src", "href"))

    def look(url: str) -> None:
        response, page = get(url)
        assert response.headers.get_content_type() == "text/html"
        Reader().feed(page.decode())
        own = [path for path in found if not path.startswith("data:")]
        assert sorted(own) == ["page.js", "style.css"]
        for path, kind in (("page.js", "text/javascript"), ("style.css", "text/css")):
            answer, content = get(url, f"/{path}")
            assert answer.headers.get_content_type() == kind
            elsewhere = set(re.findall(rb"https?://[^\s\"']+", content)) - {b"http://www.w3.org/2000/svg"}
            assert not elsewhere
            assert b"innerHTML" not in content

    served(tmp_path, look)


def test_numbers_and_texts_arrive_as_json(tmp_path: Path) -> None:
    def look(url: str) -> tuple[Any, Any]:
        return json.loads(get(url, "/status.json")[1]), json.loads(get(url, "/curves.json")[1])

    status, curves = served(tmp_path, look)
    assert status["links"][0]["reason"] == HOSTILE
    assert status["privacy"] == {"epsilon": 1.0, "delta": 1e-5, "budget": None}
    assert status["events"][0]["details"] == {"peer": "chur", "reason": HOSTILE}
    assert curves == {
        "loss": {"round": [2], "value": [1.5]},
        "disagreement": {"round": [1], "value": [0.5]},
    }


def test_a_stream_sends_snapshots_and_ends_with_the_agent(tmp_path: Path) -> None:
    async def main() -> tuple[dict[str, Any], str]:
        async with serve(Watched(), "127.0.0.1:0", token_file=tmp_path / "web.token") as url:
            reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
            writer.write(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"data: ")
            data = await reader.readuntil(b"\n\n")
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()
        return json.loads(data), head.decode().lower()

    status, head = asyncio.run(main())
    assert status["agent"] == "bern"
    assert "content-type: text/event-stream" in head


@pytest.mark.parametrize("path", ["/", "/page.js", "/status.json", "/curves.json"])
def test_it_can_only_be_read(path: str, tmp_path: Path) -> None:
    def look(url: str) -> list[int]:
        return [get(url, path, method=method)[0].status for method in ("POST", "PUT", "DELETE", "PATCH")]

    assert served(tmp_path, look) == [405] * 4


@pytest.mark.parametrize("path", ["/../web.token", "/web.token", "/assets/page.js", "/%2e%2e/agent.toml"])
def test_other_files_are_not_there(path: str, tmp_path: Path) -> None:
    assert served(tmp_path, lambda url: get(url, path)[0].status) == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("[evil", 421),
    ],
)
def test_a_foreign_page_cannot_read_along(host: str, status: int, tmp_path: Path) -> None:
    """A name that an attacker points at 127.0.0.1 is not this page's name."""
    response, _ = served(tmp_path, lambda url: get(url, "/status.json", host=host))
    assert response.status == status
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in response.headers


def test_beyond_loopback_a_token_is_needed(tmp_path: Path) -> None:
    tls = issue(tmp_path / "tls", ["bern"])["bern"]
    token_file = tmp_path / "web.token"

    def look(url: str) -> None:
        token = token_file.read_text().strip()
        assert url.startswith("https://")
        assert token not in url
        for path in ("/", "/page.js", "/status.json", "/curves.json", "/stream"):
            response, body = get(url, path)
            assert response.status == 401
            assert token.encode() not in body
        for wrong in ("", "x", token[:-1], token + "x", "ü"):
            assert get(url, "/status.json", Cookie=f"p2pqg={wrong}")[0].status == 401
            assert get(url, "/status.json", Authorization=f"Bearer {wrong}")[0].status == 401
        assert get(url, "/status.json", Authorization=f"Bearer {token}")[0].status == 200
        response, _ = get(url, f"/?token={token}")
        assert (response.status, response.headers["Location"]) == (303, "/")
        cookie = response.headers["Set-Cookie"]
        assert all(word in cookie for word in ("HttpOnly", "Secure", "SameSite=strict"))
        assert get(url, "/status.json", Cookie=cookie.partition(";")[0])[0].status == 200

    served(tmp_path, look, "0.0.0.0:0", tls)
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    before = token_file.read_text()
    served(tmp_path, lambda url: None, "0.0.0.0:0", tls)
    assert token_file.read_text() == before, "a bookmark outlives a restart"


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ("0.0.0.0:0", "expected a loopback address, because without .tls. the page is not encrypted"),
        ("[::]:0", "expected a loopback address"),
        ("8080", "expected host:port"),
        ("127.0.0.1:http", "expected host:port"),
        ("127.0.0.1:65536", "expected host:port"),
    ],
)
def test_an_address_that_cannot_be_used_is_the_operators_error(
    listen: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        served(tmp_path, lambda url: None, listen)
    assert error.value.key == "telemetry.web"
    assert not (tmp_path / "web.token").exists()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    def again(url: str) -> None:
        where = f"127.0.0.1:{urlsplit(url).port}"
        with pytest.raises(ConfigError, match=f"port taken: another process listens at {where}"):
            served(tmp_path, lambda url: None, where)

    served(tmp_path, again)


def test_a_short_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "web.token").write_text("1234\n")
    tls = issue(tmp_path / "tls", ["bern"])["bern"]
    with pytest.raises(ConfigError, match="at least 16 characters"):
        served(tmp_path, lambda url: None, "0.0.0.0:0", tls)


def test_more_visitors_than_it_takes_are_turned_away(tmp_path: Path) -> None:
    def look(url: str) -> int:
        streams = []
        try:
            for _ in range(MAX_CONNECTIONS):
                streams.append(http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=10))
                streams[-1].request("GET", "/stream")
            return get(url, "/status.json")[0].status
        finally:
            for stream in streams:
                stream.close()

    assert served(tmp_path, look) == 503

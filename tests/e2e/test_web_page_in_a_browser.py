"""The page in a real browser, fed by a real network of agents."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from test_web_page import HOSTILE, Watched

from p2pqg.web.server import serve
from p2pqg_simulator.swarm import free_ports

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = ("basel", "bern", "chur", "genf")
SCREENS: dict[str, Any] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Any]]]:
    """Four agents on a ring that train until the test ends; the page of the second, and all processes."""
    folder = tmp_path_factory.mktemp("network")
    port, *ports = free_ports(len(NAMES) + 1)
    addresses = dict(zip(NAMES, (f"127.0.0.1:{port}" for port in ports), strict=True))
    agents = [{"name": name, "address": address} for name, address in addresses.items()]
    (folder / "network.toml").write_text(tomli_w.dumps({"name": "clinics", "agents": agents}))
    processes = {}
    for name, address in addresses.items():
        settings: dict[str, Any] = {
            "rounds": 100_000,
            "eval_every": 10,
            "schedule": {"lr": 0.05},
            "agent": {"name": name, "listen": address, "home": name, "round_timeout_s": 5.0},
            "network": {"file": "network.toml"},
        }
        if name == "bern":
            settings["telemetry"] = {"web": f"127.0.0.1:{port}"}
        (folder / f"{name}.toml").write_text(tomli_w.dumps(settings))
        command = [sys.executable, "-m", "p2pqg.cli.main", "join", "--config", str(folder / f"{name}.toml")]
        with (folder / f"{name}.log").open("wb") as log:
            processes[name] = subprocess.Popen(command, stdout=log, stderr=log)
    metrics = folder / "bern" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    try:
        while not (metrics.exists() and "test_loss" in metrics.read_text()):
            assert time.monotonic() < deadline, (folder / "bern.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/", processes
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


@pytest.mark.parametrize("screen", SCREENS)
def test_a_running_network_is_shown(
    screen: str, browser: Any, network: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    context = browser.new_context(**SCREENS[screen])
    page, complaints, asked = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(network[0])
    page.wait_for_selector("#chart-loss polyline")
    assert page.text_content("#agent") == "bern"
    assert page.text_content("#phase") == "training"
    assert page.locator("#graph circle").count() == len(NAMES)
    assert page.locator("#graph line").count() == len(NAMES)
    assert page.locator("#links tr").count() >= 2
    for chart in ("loss", "accuracy", "distance", "bytes"):
        assert page.locator(f"#chart-{chart} polyline").count() >= 1
    before = page.text_content("#rounds")
    page.wait_for_timeout(2500)
    assert page.text_content("#rounds") != before, "it is live"
    page.locator("#chart-loss svg").first.hover()
    assert "training" in page.text_content("#chart-loss .tip")
    width = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1], "nothing sticks out to the side"
    for card in page.locator(".card").all():
        box = card.bounding_box()
        assert 60 < box["height"] < 1.2 * SCREENS[screen]["viewport"]["height"]
    ground, ink = page.evaluate(
        "() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]; }"
    )
    assert _contrast(ground, ink) > 7
    assert _luminance(ground) < 0.1 if screen == "dark" else _luminance(ground) > 0.8
    page.screenshot(path=str(tmp_path / f"{screen}.png"), full_page=True)
    assert not complaints
    assert all(url.startswith((network[0], "data:")) for url in asked), "works offline"
    context.close()


def test_what_peers_write_stays_text(browser: Any, tmp_path: Path) -> None:
    ready, done, where = threading.Event(), threading.Event(), []

    async def main() -> None:
        async with serve(Watched(), "127.0.0.1:0", token_file=tmp_path / "web.token") as url:
            where.append(url)
            ready.set()
            await asyncio.to_thread(done.wait)

    server = threading.Thread(target=lambda: asyncio.run(main()))
    server.start()
    try:
        assert ready.wait(10)
        page = browser.new_page()
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(where[0])
        page.wait_for_selector("#links tr")
        page.wait_for_timeout(500)
        assert not dialogs
        assert page.locator("img").count() == 0
        assert HOSTILE.replace("\0", "") in page.text_content("#links").replace("\0", "")
        assert "privacy spent" in page.text_content("#tiles")
    finally:
        done.set()
        server.join()


def test_an_agent_that_is_gone_is_shown_as_gone(browser: Any, network: tuple[str, dict[str, Any]]) -> None:
    """First a neighbour, then the agent itself. The last test of this network."""
    url, processes = network
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#links .state.good")
    processes["basel"].kill()
    page.wait_for_selector("#links .state.gone", timeout=20_000)
    assert page.locator("#graph .link.gone").count() == 1
    processes["bern"].send_signal(signal.SIGKILL)
    page.wait_for_selector("#offline", state="visible", timeout=20_000)
    assert page.text_content("#phase") == "not reachable"


def _luminance(colour: str) -> float:
    """WCAG 2 relative luminance of ``rgb(r, g, b)``."""
    channels = [int(part) / 255 for part in colour[4:-1].split(",")]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)

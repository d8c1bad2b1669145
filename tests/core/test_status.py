"""Status, audit log, log and metrics endpoint: what they make of an agent's events."""

from __future__ import annotations

import io
import json
import math
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from p2pqg.cli.views import status_view
from p2pqg.errors import ConfigError, StorageError
from p2pqg.telemetry import JsonLines, log, prometheus, read_metrics
from p2pqg.telemetry.audit import REPEAT_S, Audit
from p2pqg.telemetry.status import Status

ABOUT = {"agent": "bern", "network": "clinics", "run": "1", "rounds": 100, "security": {"days_left": 12.5}}


class Clock:
    """A clock that stands still unless told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def a_round(done: int, exchanged: Mapping[str, tuple[int, int]], **more: Any) -> tuple[str, dict[str, Any]]:
    measured = {"loss": 0.5, "round_s": 2.0, "bytes_sent": 10 * done, "bytes_received": 20 * done}
    return "round", {"round": done, **measured, "exchanged": exchanged, **more}


EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("listening", {"address": "10.0.0.1:7000"}),
    ("connected", {"peer": "basel", "proven": True}),
    ("started", {"round": 0, "neighbours": ["basel", "zug"]}),
    a_round(1, {"basel": (4, 5), "zug": (4, 5)}),
    ("missed", {"peer": "zug", "round": 1, "reason": "leaving"}),
    ("disconnected", {"peer": "zug", "reason": "the peer closed the connection"}),
    a_round(2, {"basel": (4, 5)}, test_loss=0.25, test_accuracy=0.75),
]


def status_after(*events: tuple[str, dict[str, Any]], clock: Clock | None = None) -> dict[str, Any]:
    status = Status(lambda: ABOUT, now=clock or Clock())
    for event in events:
        status.observe(*event)
    return status.as_json()


def test_people_see_what_privacy_has_cost_and_rounds_of_gossip_only() -> None:
    status = status_after(*EVENTS, a_round(103, {})) | {
        "running": True,
        "security": {"mode": "loopback"},
        "privacy": {"epsilon": 1.234, "delta": 1e-4, "budget": 3.0},
    }
    console = Console(file=io.StringIO(), width=100)
    console.print(status_view(status))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "epsilon 1.23 of 3 spent, at delta 0.0001" in text
    assert "100 of 100 and 3 of gossip only" in text


def test_status_says_what_is_going_on_and_with_whom() -> None:
    status = status_after(*EVENTS)
    assert status["state"] == "training"
    assert (status["round"], status["rounds"], status["remaining_s"]) == (2, 100, 98 * 2.0)
    assert status["scores"] == {"round": 2, "test_loss": 0.25, "test_accuracy": 0.75}
    assert status["neighbours"] == 1
    basel, zug = status["peers"]["basel"], status["peers"]["zug"]
    assert (basel["connected"], basel["rounds"], basel["model_bytes_sent"]) == (True, 2, 8)
    assert (zug["connected"], zug["rounds"], zug["missed"]) == (False, 1, 1)
    assert zug["problem"] == "the peer closed the connection"
    assert zug["last_missed"] == {"round": 1, "reason": "leaving"}


def test_a_round_that_was_mixed_before_the_connection_was_lost_does_not_bring_it_back() -> None:
    status = status_after(*EVENTS, a_round(3, {"zug": (4, 5)}))
    assert not status["peers"]["zug"]["connected"]


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (("agreeing", {"round": 101, "disagreement": 0.1}), "agreeing"),
        (("finished", {"model": "model.safetensors"}), "finished"),
        (("stopped", {"round": 2}), "stopped"),
        (("failed", {"reason": "the disk is full"}), "failed"),
    ],
)
def test_states(event: tuple[str, dict[str, Any]], state: str) -> None:
    assert status_after()["state"] == "starting"
    assert status_after(EVENTS[0])["state"] == "waiting"
    after = status_after(*EVENTS, event)
    assert after["state"] == state
    assert after["remaining_s"] is None
    assert after["reason"] == ("the disk is full" if state == "failed" else None)


# ---- audit


def audit(tmp_path: Path, *events: tuple[str, dict[str, Any]], clock: Clock | None = None) -> list[Any]:
    with JsonLines(tmp_path / "audit.jsonl") as lines:
        listener = Audit(lines, "bern", date=lambda: "2026-03-01T08:00:00Z", now=clock or Clock())
        for event in events:
            listener.observe(*event)
    return read_metrics(tmp_path / "audit.jsonl")


def test_the_audit_log_tells_who_came_and_what_was_exchanged(tmp_path: Path) -> None:
    found = audit(tmp_path, *EVENTS, ("stopped", {"round": 2}))
    assert all(line["time"] == "2026-03-01T08:00:00Z" and line["agent"] == "bern" for line in found)
    stripped = [{k: v for k, v in line.items() if k not in ("time", "agent")} for line in found]
    assert stripped == [
        {"event": "connected", "peer": "basel", "proven": True},
        {"event": "started", "round": 0, "neighbours": ["basel", "zug"]},
        {"event": "exchanged", "peer": "zug", "rounds": [0, 0], "exchanges": 1, "bytes_sent": 4,
         "bytes_received": 5},
        {"event": "disconnected", "peer": "zug", "reason": "the peer closed the connection"},
        {"event": "exchanged", "peer": "basel", "rounds": [0, 1], "exchanges": 2, "bytes_sent": 8,
         "bytes_received": 10},
        {"event": "stopped", "round": 2},
    ]  # fmt: skip


def test_a_peer_that_knocks_for_ever_does_not_fill_the_disk(tmp_path: Path) -> None:
    clock = Clock()
    knock = ("stranger", {"reason": "mallory's certificate is revoked"})
    with JsonLines(tmp_path / "audit.jsonl") as lines:
        listener = Audit(lines, "bern", now=clock)
        for _ in range(500):
            listener.observe(*knock)
        for name in range(5000):
            listener.observe("stranger", {"reason": f"unknown agent {name}"})
        clock.now += REPEAT_S + 1
        listener.observe(*knock)
    found = read_metrics(tmp_path / "audit.jsonl")
    assert len(found) < 1100
    (again,) = [line for line in found if line["event"] == "refused again"]
    assert again["times"] + len(found) - 2 == 5500
    assert found[-1]["reason"] == "mallory's certificate is revoked"


def test_what_a_crash_tore_is_left_and_the_next_line_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"event": "a"}\n{"event": "b')
    with JsonLines(path) as lines:
        lines.append({"event": "c"})
    assert path.read_text().splitlines() == ['{"event": "a"}', '{"event": "b', '{"event": "c"}']


def test_a_bounded_file_keeps_the_latest(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with JsonLines(path, max_bytes=1000) as lines:
        for number in range(1000):
            lines.append({"number": number})
    older = read_metrics(tmp_path / "log.jsonl.1")
    kept = [line["number"] for line in older + read_metrics(path)]
    assert kept == list(range(kept[0], 1000))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2100


def test_an_unwritable_audit_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        JsonLines(tmp_path / "none" / "audit.jsonl")


# ---- log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logged(tmp_path: Path) -> Callable[..., str]:
    """What the log writes to a stream for some events."""

    def run(stream: io.StringIO, form: log.Form, *events: tuple[str, dict[str, Any]]) -> str:
        with JsonLines(tmp_path / "log.jsonl") as lines:
            listener = log.Log(log.logger(form, stream, lines), "bern", 100, now=Clock())
            for event in events:
                listener.observe(*event)
        return stream.getvalue()

    return run


def test_the_log_is_for_people_on_a_terminal_and_json_elsewhere(
    logged: Callable[..., str], tmp_path: Path
) -> None:
    line = json.loads(logged(io.StringIO(), "auto", EVENTS[0]))
    assert (line["event"], line["address"], line["agent"], line["level"]) == (
        "listening", "10.0.0.1:7000", "bern", "info",
    )  # fmt: skip
    people = logged(Terminal(), "auto", EVENTS[0])
    assert "listening" in people
    assert not people.startswith("{")
    assert [line["event"] for line in read_metrics(tmp_path / "log.jsonl")] == ["listening"] * 2


def test_a_peer_that_stays_away_is_logged_once(logged: Callable[..., str]) -> None:
    away = [("missed", {"peer": "zug", "round": r, "reason": "not connected"}) for r in (5, 6, 7, 9)]
    lines = [json.loads(line) for line in logged(io.StringIO(), "json", *away).splitlines()]
    assert [line["round"] for line in lines] == [5, 9]


def test_progress_comes_with_an_estimate(logged: Callable[..., str]) -> None:
    lines = logged(io.StringIO(), "json", *EVENTS).splitlines()
    (progress,) = [line for line in map(json.loads, lines) if line["event"] == "progress"]
    assert progress["round"] == "2/100"
    assert progress["test_accuracy"] == 0.75
    assert "remaining_s" in progress


def test_a_loss_that_is_kept_private_is_left_out(logged: Callable[..., str]) -> None:
    (line,) = logged(io.StringIO(), "json", a_round(9, {}, loss=math.nan, test_accuracy=0.5)).splitlines()
    assert "NaN" not in line
    assert "loss" not in json.loads(line)


# ---- prometheus


def test_metrics_are_served_in_prometheus_form(free_port: int) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    stop = prometheus.serve(f"127.0.0.1:{free_port}", lambda: status_after(*EVENTS))
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/metrics") as answer:
            text = answer.read().decode()
    finally:
        stop()
    found = {
        (sample.name, sample.labels.get("peer")): sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["p2pqg_agent_info", None].labels["state"] == "training"
    values = {key: sample.value for key, sample in found.items()}
    assert values["p2pqg_round", None] == 2
    assert values["p2pqg_loss", None] == 0.5
    assert values["p2pqg_round_seconds", None] == 2.0
    assert values["p2pqg_test_accuracy", None] == 0.75
    assert values["p2pqg_bytes_sent_total", None] == 20
    assert values["p2pqg_certificate_days_left", None] == 12.5
    assert values["p2pqg_peer_connected", "zug"] == 0
    assert values["p2pqg_peer_rounds_total", "basel"] == 2
    assert values["process_resident_memory_bytes", None] > 1e6


@pytest.mark.parametrize("address", ["nine", "127.0.0.1:99999", "192.0.2.1:9464", ":80"])
def test_an_impossible_metrics_address_is_named(address: str) -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.prometheus"):
        prometheus.serve(address, dict)


def test_a_taken_metrics_port_is_named(free_port: int) -> None:
    import socket

    with (
        socket.create_server(("127.0.0.1", free_port)),
        pytest.raises(ConfigError, match="cannot listen at"),
    ):
        prometheus.serve(f"127.0.0.1:{free_port}", dict)


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])

"""Speaking to a running agent: what it answers, what it keeps, how it leaves.

The agents run in this process, each as `p2pqg join` would run it; the commands run in a thread beside them.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner, Result
from processes import mounted, network, running, started, until, wait_for_round
from safetensors.numpy import load_file

from p2pqg.addresses import is_local
from p2pqg.cli.main import cli
from p2pqg.control.client import NotRunning, ask
from p2pqg.daemon import Daemon
from p2pqg.errors import ConfigError, StorageError, TaskDied, TransportError
from p2pqg.security import issue
from p2pqg.security.authority import Authority
from p2pqg.telemetry import read_metrics
from p2pqg_simulator.swarm import free_ports

__all__ = ["started"]

FOREVER = 10_000_000


def p2pqg(command: str, folder: Path, name: str, *options: str) -> Result:
    arguments = [command, "--config", str(folder / name / "agent.toml"), *options]
    return CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=True)


def as_json(command: str, folder: Path, name: str, *options: str) -> Any:
    return json.loads(p2pqg(command, folder, name, "--json", *options).output)


def test_status_and_peers(tmp_path: Path) -> None:
    own, other = names = network(tmp_path, rounds=FOREVER)

    def client() -> None:
        wait_for_round(tmp_path, own, 30)
        status = as_json("status", tmp_path, own)
        assert status["running"]
        assert (status["agent"], status["state"], status["rounds"]) == (own, "training", FOREVER)
        assert status["round"] >= 30
        assert status["remaining_s"] > 0
        assert status["security"] == {"mode": "loopback"}
        assert status["problems"] == []
        people = p2pqg("status", tmp_path, own)
        assert people.exit_code == 0
        assert "training" in people.output
        peers = as_json("peers", tmp_path, own)
        assert peers[other]["connected"]
        assert peers[other]["rounds"] >= 30
        assert other in p2pqg("peers", tmp_path, own).output

    running(tmp_path, names, client)


def test_evaluate_and_export_a_model_that_is_being_trained(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (name,) = network(tmp_path, 1, rounds=FOREVER)

    def client() -> None:
        wait_for_round(tmp_path, name, 5)
        score = as_json("evaluate", tmp_path, name)
        assert score["round"] >= 5
        assert score["loss"] >= 0
        exported = as_json("export", tmp_path, name, "--output", "model.npz")
        assert exported["round"] >= score["round"]
        assert p2pqg("export", tmp_path, name).exit_code == 0

    running(tmp_path, [name], client)
    arrays, tensors = np.load("model.npz"), load_file("model.safetensors")
    assert set(arrays.files) == set(tensors)
    assert all(np.isfinite(arrays[key]).all() and arrays[key].shape == tensors[key].shape for key in tensors)
    with pytest.raises(ConfigError, match="expected a name that ends in"):
        p2pqg("export", tmp_path, name, "--output", "model.pkl")
    with pytest.raises(NotRunning):
        p2pqg("export", tmp_path, name)


def test_leave_ends_one_agent_with_a_checkpoint_and_tells_the_other(tmp_path: Path) -> None:
    own, other = names = network(tmp_path, rounds=FOREVER)
    home = tmp_path / own / "home"

    def client() -> None:
        wait_for_round(tmp_path, own, 20)
        assert "the agent left" in p2pqg("leave", tmp_path, own).output
        until(lambda: not as_json("peers", tmp_path, other)[own]["connected"])

    (outcome, _) = running(tmp_path, names, client)
    assert not outcome.finished
    assert (home / "checkpoint.safetensors").exists()
    after = p2pqg("status", tmp_path, own, "--json")
    assert after.exit_code == 1
    status = json.loads(after.output)
    assert (status["running"], status["state"], status["round"]) == (False, "stopped", outcome.round)
    audit = read_metrics(home / "audit.jsonl")
    traded = [line for line in audit if line["event"] == "exchanged"]
    assert sum(line["exchanges"] for line in traded) == status["peers"][other]["rounds"]
    assert all(line["bytes_sent"] > 0 for line in traded)
    assert {"connected", "command", "stopped"} <= {line["event"] for line in audit}
    assert {"listening", "stopped"} <= {line["event"] for line in read_metrics(home / "log.jsonl")}
    assert "stopped" in p2pqg("logs", tmp_path, own, "-n", "1").output
    assert "command=leave" in p2pqg("logs", tmp_path, own, "--audit").output


def test_after_the_end_status_lists_who_took_part(tmp_path: Path) -> None:
    names = network(tmp_path, 3, rounds=150)

    def client() -> None:
        wait_for_round(tmp_path, names[0], 20)
        ask(tmp_path / names[1] / "home", "leave")
        until(lambda: (tmp_path / names[0] / "home" / "model.json").exists())
        until(lambda: (tmp_path / names[2] / "home" / "model.json").exists())

    running(tmp_path, names, client)
    shown = p2pqg("status", tmp_path, names[0])
    assert shown.exit_code == 0
    assert f"{names[2]} took part in 150 rounds" in shown.output
    assert f"{names[1]} was missing in round" in shown.output
    assert as_json("evaluate", tmp_path, names[0])["loss"] >= 0
    target = tmp_path / "final.npz"
    assert as_json("export", tmp_path, names[0], "--output", str(target))["round"] is None
    assert target.exists()


def test_two_agents_do_not_share_a_home(tmp_path: Path) -> None:
    (name,) = network(tmp_path, 1, rounds=FOREVER)

    def client() -> None:
        with pytest.raises(ConfigError, match="another agent is running in this home"):
            Daemon(tmp_path / name / "agent.toml")
        wait_for_round(tmp_path, name, 5)
        assert as_json("status", tmp_path, name)["state"] == "training"

    running(tmp_path, [name], client)


def test_metrics_are_served_where_the_settings_say(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    (name,) = network(tmp_path, 1, rounds=FOREVER, telemetry={"prometheus": f"127.0.0.1:{port}"})

    def client() -> None:
        wait_for_round(tmp_path, name, 20)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            lines = [line for line in answer.read().decode().splitlines() if line[0] != "#"]
        assert float(dict(line.rsplit(" ", 1) for line in lines)["p2pqg_round"]) >= 20

    running(tmp_path, [name], client)


def test_a_run_that_fails_says_why_afterwards(tmp_path: Path) -> None:
    (name, missing) = network(tmp_path, agent={"start_timeout_s": 0.2})
    left = tmp_path / name / "home" / "status.json"

    def client() -> None:
        until(lambda: left.exists() and json.loads(left.read_text())["state"] == "failed")

    (error,) = running(tmp_path, [name], client)
    assert isinstance(error, TransportError)
    status = as_json("status", tmp_path, name)
    assert status["state"] == "failed"
    assert missing in status["reason"]
    assert read_metrics(tmp_path / name / "home" / "audit.jsonl")[-1]["event"] == "failed"


def test_a_damaged_checkpoint_costs_the_rounds_since_the_one_before(tmp_path: Path) -> None:
    (name,) = network(tmp_path, 1, rounds=30, agent={"checkpoint_every": 5})
    home = tmp_path / name / "home"

    def finished(times: int) -> bool:
        return (home / "log.jsonl").read_text().count('"event": "finished"') == times

    running(tmp_path, [name], lambda: until(lambda: finished(1)))
    os.truncate(home / "checkpoint.safetensors", 100)
    (outcome,) = running(tmp_path, [name], lambda: until(lambda: finished(2)))
    assert outcome.finished
    (line,) = [line for line in read_metrics(home / "log.jsonl") if line["event"] == "fallback"]
    assert "checkpoint.safetensors: corrupted" in line["reason"]
    assert line["level"] == "warning"
    rounds = [line["round"] for line in read_metrics(home / "metrics.jsonl") if "loss" in line]
    assert rounds == list(range(1, 31)), "the lost rounds were trained again, and recorded once"


def test_a_certificate_that_expires_during_a_run_is_said_to_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pqg.daemon.WATCH_S", 0.1)
    (name,) = network(tmp_path, 1, rounds=FOREVER)
    files = issue(tmp_path / "authority", [name], days=3 / 86400)[name]
    settings = tmp_path / name / "agent.toml"
    tls = {"certificate": files.certificate, "private_key": files.private_key, "authority": files.authority}
    settings.write_text(settings.read_text() + tomli_w.dumps({"tls": {k: str(v) for k, v in tls.items()}}))

    def client() -> None:
        wait_for_round(tmp_path, name, 1)
        until(lambda: "expired on" in as_json("status", tmp_path, name)["problems"][0])
        until(lambda: "expired on" in (tmp_path / name / "home" / "log.jsonl").read_text())
        Authority.open(tmp_path / "authority").renew(name)
        until(lambda: not as_json("status", tmp_path, name)["problems"])

    running(tmp_path, [name], client)


@pytest.mark.slow
def test_a_revoked_agent_is_cut_off_and_the_others_train_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the moment the list is in the others' homes; the revoked one does not look at it."""
    monkeypatch.setattr("p2pqg.daemon.WATCH_S", 0.1)
    names = network(tmp_path, 3, rounds=FOREVER)
    *honest, stolen = names
    files = issue(tmp_path / "authority", names)
    for name in names:
        own = files[name]
        tls = {"certificate": own.certificate, "private_key": own.private_key, "authority": own.authority}
        if name in honest:
            tls["revoked"] = tmp_path / name / "revoked.pem"
            shutil.copy(tmp_path / "authority" / "revoked.pem", tls["revoked"])
        settings = tmp_path / name / "agent.toml"
        settings.write_text(
            settings.read_text() + tomli_w.dumps({"tls": {k: str(v) for k, v in tls.items()}})
        )

    def client() -> None:
        for name in names:
            wait_for_round(tmp_path, name, 20)
        Authority.open(tmp_path / "authority").revoke(stolen)
        for name in honest:
            shutil.copy(tmp_path / "authority" / "revoked.pem", tmp_path / name / "revoked.pem")
        for name in honest:
            until(lambda name=name: not as_json("peers", tmp_path, name)[stolen]["connected"])
            wait_for_round(tmp_path, name, as_json("status", tmp_path, name)["round"] + 20)
        until(lambda: any("stranger" in line["event"] for line in audit(honest[0])))

    def audit(name: str) -> list[dict[str, Any]]:
        return read_metrics(tmp_path / name / "home" / "audit.jsonl")

    running(tmp_path, names, client)
    for name in honest:
        reason = f"{stolen}'s certificate is revoked"
        cut = [line for line in audit(name) if line["event"] == "disconnected" and line["peer"] == stolen]
        assert [line["reason"] for line in cut] == [reason]
        again = [line for line in audit(name) if line["event"] == "connected" and line["peer"] == stolen]
        assert len(again) == 1, "it never came back"


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "read-only", "ro") as folder:
        yield folder


def test_a_read_only_home_is_said_to_be_one(tmp_path: Path, read_only_folder: Path) -> None:
    for home in (read_only_folder, read_only_folder / "home"):
        (name,) = network(tmp_path, 1, agent={"home": str(home)})
        with pytest.raises(StorageError, match="cannot write: the file system is read-only"):
            Daemon(tmp_path / name / "agent.toml")


def test_a_watch_that_dies_takes_the_agent_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No silent death of a part: the run ends and says why."""
    (name,) = network(tmp_path, 1, rounds=FOREVER)

    async def sink(daemon: Daemon) -> None:
        await asyncio.to_thread(wait_for_round, tmp_path, name, 5)
        raise RuntimeError("the watch is broken")

    monkeypatch.setattr(Daemon, "_watch", sink)
    left = tmp_path / name / "home" / "status.json"

    def client() -> None:
        until(lambda: left.exists() and json.loads(left.read_text())["state"] == "failed")

    (error,) = running(tmp_path, [name], client)
    assert isinstance(error, TaskDied)
    assert "the watch is broken" in json.loads(left.read_text())["reason"]


@pytest.mark.slow
def test_a_killed_agent_is_said_to_have_ended_without_a_word(
    tmp_path: Path, started: Callable[..., Any]
) -> None:
    (name,) = network(tmp_path, 1, rounds=FOREVER)
    process = started(tmp_path, name)
    wait_for_round(tmp_path, name, 5)
    process.kill()
    process.wait()
    status = as_json("status", tmp_path, name)
    assert not status["running"]
    assert status["state"] == "lost"
    assert "killed" in status["reason"]


# ---- security by default


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "127.example.org:7000", "192.0.2.7:7000"])
def test_without_certificates_an_agent_stays_on_this_machine(tmp_path: Path, listen: str) -> None:
    (name,) = network(tmp_path, 1, agent={"listen": listen})
    with pytest.raises(ConfigError, match=r"agent\.listen: expected a loopback address.*--insecure"):
        Daemon(tmp_path / name / "agent.toml")


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.1.2.3:7000", "[::1]:0", "localhost:1", "unix:/a"])
def test_what_loopback_is(address: str) -> None:
    assert is_local(address)


def test_insecure_is_spelled_out_and_said_in_every_status(tmp_path: Path) -> None:
    (name,) = network(tmp_path, 1, rounds=FOREVER, agent={"listen": "0.0.0.0:0"})

    def client() -> None:
        wait_for_round(tmp_path, name, 5)
        status = as_json("status", tmp_path, name)
        assert status["security"] == {"mode": "insecure"}
        assert status["problems"] == ["INSECURE: connections are neither encrypted nor authenticated"]
        assert "INSECURE" in p2pqg("status", tmp_path, name).output
        assert "INSECURE" in p2pqg("logs", tmp_path, name).output

    running(tmp_path, [name], client, insecure=True)

"""Commands as a person types them: what they print, what they leave behind, how they exit."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from processes import mounted, network, started, wait_for_round, write

from p2pqg.cli.main import COMMANDS, cli, main

__all__ = ["started"]


def p2pqg(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command in this process; its exit code and what it printed to stderr."""
    argv, sys.argv = sys.argv, ["p2pqg", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as exit:
        code = int(exit.code or 0)
    finally:
        sys.argv = argv
    return code, capsys.readouterr().err


# ---- settings


@pytest.mark.parametrize(
    ("changes", "key", "expectation"),
    [
        ({"raunds": 5}, "raunds", "unknown key; expected one of rounds, seed"),
        ({"rounds": "many"}, "rounds", "expected a valid integer"),
        ({"rounds": 0}, "rounds", "expected greater than or equal to 1, found 0"),
        ({"schedule": {"lr": 0.0}}, "schedule.lr", "expected a positive number, found 0.0"),
        ({"algorithm": {"beta": 1.0}}, "algorithm.beta", "expected a number in [0, 1), found 1.0"),
        ({"algorithm": {"name": "sgd+"}}, "algorithm.name", "expected one of dsgd, "),
        ({"task": {"name": "digit"}}, "task.name", "expected one of digits, quadratic"),
        ({"task": {"name": "none.py:make_task"}}, "task.name", "expected a Python file, found none at"),
        ({"agent": {"name": "agent-9"}}, "agent.name", "expected one of agent-000, agent-001"),
        ({"agent": {"listen": "0.0.0.0:7000"}}, "agent.listen", "expected a loopback address"),
        ({"network": {"file": "nowhere.toml"}}, "nowhere.toml", "cannot be read: No such file"),
        ({"algorithm": {"name": "sgdm-n"}, "network": {"file": "star.toml"}}, "algorithm.name", "complete"),
        (
            {"task": {"name": "digits", "partition": "thirds"}},
            "task.partition",
            "expected one of dirichlet, dirichlet-plain, iid",
        ),
        (
            {"tls": {"certificate": "a.pem", "private_key": "a.key", "authority": "b.pem"}},
            "certificate",
            "cannot be read: No such file",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(
    changes: dict[str, Any],
    key: str,
    expectation: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network(tmp_path, 2, **changes)
    agents = [{"name": f"agent-{i:03d}", "address": f"127.0.0.1:{i}"} for i in range(3)]
    write(tmp_path / "agent-000" / "star.toml", {"name": "x", "topology": "star", "agents": agents})
    file = tmp_path / "agent-000" / "agent.toml"
    code, error = p2pqg("join", "--config", file, capsys=capsys)
    assert code == 2
    assert key in error
    assert expectation in error
    assert str(tmp_path) in error, "the file is named"
    assert not (tmp_path / "agent-000" / "home" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "expectation"),
    [
        (["--topology", "torus", "-n", "7"], "torus expects a number of agents with two factors"),
        (["--topology", "social", "-n", "31"], "social expects exactly 32 agents, found 31"),
        (["-n", "1500"], "1437"),
        (["--lr", "-1"], "expected a positive number, found -1"),
        (["--lr", "fast"], "not a valid float"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
        (["--colour", "red"], "No such option"),
        (["--task", "digits", "--task-option", "widht=3"], "widht"),
        (["--topology", "edges:nowhere.txt"], "nowhere.txt: cannot be read"),
    ],
)
@pytest.mark.parametrize("command", ["simulate", "swarm"])
def test_a_wrong_option_exits_2_and_leaves_nothing(
    command: str, options: list[str], expectation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = p2pqg(command, "--out", tmp_path / "run", *options, capsys=capsys)
    assert code == 2
    assert expectation in error
    assert not (tmp_path / "run").exists()


def test_every_command_has_help() -> None:
    for name in COMMANDS:
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0
        assert result.output.startswith("Usage:")
    listing = CliRunner().invoke(cli, ["--help"])
    assert all(name in listing.output for name in COMMANDS)


# ---- running agents


def test_two_agents_take_home_the_same_model(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    names = network(tmp_path)
    processes = [started(tmp_path, name) for name in names]
    for process in processes:
        out, error = process.communicate(timeout=100)
        assert process.returncode == 0, error
        assert out.startswith("finished 2")
    cards = [json.loads((tmp_path / name / "home" / "model.json").read_text()) for name in names]
    assert all(card["finished"] and card["rounds"] == 20 for card in cards)
    assert cards[0]["participation"] == {"mixed": {"agent-001": 20}, "missing": []}
    assert cards[0]["disagreement"] <= 1e-3


def test_sigterm_ends_a_run_at_a_round_boundary(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    """The stopped agent leaves a checkpoint and can go on; the other one is told, and finishes alone."""
    names = network(tmp_path, rounds=400)
    stopped, other = (started(tmp_path, name) for name in names)
    wait_for_round(tmp_path, names[0], 30)
    stopped.send_signal(signal.SIGTERM)
    out, error = stopped.communicate(timeout=60)
    assert stopped.returncode == 0, error
    assert "stopped after round" in out
    assert (tmp_path / names[0] / "home" / "checkpoint.safetensors").exists()
    assert not (tmp_path / names[0] / "home" / "model.safetensors").exists()
    _, error = other.communicate(timeout=100)
    assert other.returncode == 0, error
    card = json.loads((tmp_path / names[1] / "home" / "model.json").read_text())
    (span,) = card["participation"]["missing"][-1:]
    assert span["peer"] == names[0]
    assert span["to"] == 399


@pytest.mark.slow
def test_a_killed_neighbour_is_reported_and_survived(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    """In virtual time, and at every message: `tests/agent/test_kills.py`."""
    names = network(tmp_path, 3, rounds=200)
    processes = {name: started(tmp_path, name) for name in names}
    wait_for_round(tmp_path, names[0], 30)
    processes[names[1]].kill()
    for name in (names[0], names[2]):
        _, error = processes[name].communicate(timeout=100)
        assert processes[name].returncode == 0, error
        lines = [json.loads(line) for line in error.splitlines()]
        assert [line["peer"] for line in lines if line["event"] == "disconnected"] == [names[1]]
        card = json.loads((tmp_path / name / "home" / "model.json").read_text())
        assert {span["peer"] for span in card["participation"]["missing"]} == {names[1]}
        assert card["participation"]["mixed"][names[2] if name == names[0] else names[0]] == 200


@pytest.mark.slow
def test_agents_with_different_beta_refuse_each_other(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    """In virtual time: `tests/agent/test_hostile_peers.py`."""
    names = network(tmp_path, agent={"start_timeout_s": 3.0})
    settings = tmp_path / names[1] / "agent.toml"
    settings.write_text(settings.read_text() + "[algorithm]\nbeta = 0.8\n")
    for process in [started(tmp_path, name) for name in names]:
        _, error = process.communicate(timeout=100)
        assert process.returncode == 1
        assert "algorithm.beta differs" in error
        assert "0.9" in error
        assert "0.8" in error


def test_an_occupied_port_is_named(tmp_path: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        address = f"127.0.0.1:{occupant.getsockname()[1]}"
        (name, _) = network(tmp_path, agent={"listen": address})
        process = started(tmp_path, name)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"port taken: another process listens at {address}" in error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 256 KiB."""
    with mounted(tmp_path / "small", "size=256k") as folder:
        yield folder


def test_a_full_disk_is_reported_as_one(
    tmp_path: Path, small_disk: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    """The agent whose disk is full fails and says why; its neighbour finishes alone."""
    full, other = network(tmp_path, rounds=400)
    settings = tmp_path / full / "agent.toml"
    settings.write_text(settings.read_text().replace('home = "home"', f'home = "{small_disk}"'))
    (small_disk / "ballast").write_bytes(bytes(200 << 10))
    processes = {name: started(tmp_path, name) for name in (full, other)}
    _, error = processes[full].communicate(timeout=100)
    assert processes[full].returncode == 1
    assert error.splitlines()[-1].endswith("cannot write: the disk is full")
    assert not list(small_disk.glob(".*.tmp")), "nothing half-written"
    _, error = processes[other].communicate(timeout=100)
    assert processes[other].returncode == 0, error


def test_a_missing_neighbour_is_named(tmp_path: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    (name, missing) = network(tmp_path, agent={"start_timeout_s": 0.5})
    process = started(tmp_path, name)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"neighbours missing after 0.5 s: {missing}" in error

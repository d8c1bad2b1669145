"""Secure sums as an operator meets them: a ring of four with certificates; one that drops out and returns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from processes import network, running, started, until, wait_for_round
from safetensors.torch import load_file

from p2pqg.cli.main import cli
from p2pqg.control.client import ask
from p2pqg.daemon import Daemon
from p2pqg.errors import ConfigError
from p2pqg.security import issue
from p2pqg.telemetry import read_metrics
from p2pqg_simulator import simulate
from p2pqg_simulator.simulate import settings_from

__all__ = ["started"]

SUMS = {"secure_sums": True}


def with_certificates(folder: Path, n: int, **changes: Any) -> list[str]:
    names = network(folder, n, privacy=SUMS, **changes)
    for name, files in issue(folder / "certificates", names).items():
        tls = {
            key: str(getattr(files, key).absolute()) for key in ("certificate", "private_key", "authority")
        }
        settings = folder / name / "agent.toml"
        settings.write_text(settings.read_text() + tomli_w.dumps({"tls": tls}))
    return names


@pytest.mark.slow
def test_a_ring_of_four_with_certificates(tmp_path: Path) -> None:
    """The same models as the simulator's bit for bit; masks that others vouch for; and all of it is told."""
    names = with_certificates(tmp_path, 4, finish={"max_rounds": 4})
    homes = [tmp_path / name / "home" for name in names]

    def client() -> None:
        until(lambda: all((home / "model.json").exists() for home in homes))

    outcomes = running(tmp_path, names, client)
    assert all(outcome.finished for outcome in outcomes)
    run = settings_from(
        {"agents": 4, "rounds": 20, "task": "quadratic", "secure_sums": True, "finish_rounds": 4}
    )
    *_, reference = simulate(run, engine="loop")
    for x, home in zip(reference.x, homes, strict=True):
        model = load_file(home / "model.safetensors")
        assert torch.equal(torch.cat([part.flatten() for part in model.values()]), x)
        card = json.loads((home / "model.json").read_text())
        assert card["secure_sums"]["sums_lost"] == card["secure_sums"]["sums_saturated"] == 0
        assert card["secure_sums"]["sums_masked"] == 20 + card["gossip_only_rounds"]
        exchanged = [line for line in read_metrics(home / "audit.jsonl") if line["event"] == "exchanged"]
        assert len({line["peer"] for line in exchanged}) == 2
        payload = 20 * 4 * x.numel()
        assert all(line["bytes_sent"] == line["bytes_received"] == payload for line in exchanged)
        status = json.loads((home / "status.json").read_text())
        assert status["metrics"]["sums_masked"] == 20


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_site_that_is_killed_and_returns_costs_mixes_that_are_told(
    tmp_path: Path, started: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names = with_certificates(
        tmp_path, 4, rounds=10**6, agent={"checkpoint_every": 10, "round_timeout_s": 5.0}
    )
    processes = {name: started(tmp_path, name) for name in names}
    wait_for_round(tmp_path, names[0], 20, timeout_s=200)
    processes[names[1]].kill()
    processes[names[1]].wait()
    status = until(
        lambda: (s := ask(tmp_path / names[0] / "home", "status"))["metrics"]["sums_lost"] >= 5 and s
    )
    masked = status["metrics"]["sums_masked"]
    opposite = ask(tmp_path / names[3] / "home", "status")["metrics"]
    assert opposite["sums_masked"] > masked, "with both its neighbours it goes on"
    processes[names[1]] = started(tmp_path, names[1])
    status = until(
        lambda: (
            (s := ask(tmp_path / names[0] / "home", "status"))["metrics"]["sums_masked"] > masked + 5 and s
        )
    )
    assert status["metrics"]["sums_drift"] > 0
    with pytest.raises(SystemExit):
        cli(["status", "--config", str(tmp_path / names[0] / "agent.toml")])
    assert "the sum of models moved by about" in capsys.readouterr().out.replace("\n", " ")


def test_what_cannot_work_is_said_before_anything_starts(tmp_path: Path) -> None:
    names = network(tmp_path, 2, privacy=SUMS)
    with pytest.raises(ConfigError, match=r"agent\.toml: topology: secure sums add up at least 2 neighbours"):
        Daemon(tmp_path / names[0] / "agent.toml")

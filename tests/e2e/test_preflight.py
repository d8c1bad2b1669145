"""`p2pqg preflight` finds what would go wrong, says what to do, and exits with 2."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner
from processes import network, running, wait_for_round

from p2pqg.cli.main import cli
from p2pqg.preflight import Finding, preflight
from p2pqg.security import issue
from p2pqg.security.authority import Authority

FOREVER = 10_000_000


def findings(folder: Path, name: str = "agent-000", **options: Any) -> dict[str, Finding]:
    """What was found, by check; the worst of each."""
    rank = ("ok", "warn", "fail")
    found: dict[str, Finding] = {}
    for finding in preflight(folder / name / "agent.toml", **options):
        if finding.check not in found or rank.index(finding.level) > rank.index(found[finding.check].level):
            found[finding.check] = finding
    return found


def with_certificates(folder: Path, names: list[str], days: float = 365, **table: Any) -> Authority:
    """Certificates for the agents of `network`, in their settings."""
    issue(folder / "authority", names, days=days)
    for name in names:
        settings = folder / name / "agent.toml"
        tls = {
            "certificate": f"../authority/certificates/{name}.pem",
            "private_key": f"../authority/{name}.key",
            "authority": "../authority/authority.pem",
            "revoked": "../authority/revoked.pem",
            **table,
        }
        settings.write_text(settings.read_text() + tomli_w.dumps({"tls": tls}))
    return Authority.open(folder / "authority")


def test_all_in_order_before_the_neighbour_is_there(tmp_path: Path) -> None:
    names = network(tmp_path)
    with_certificates(tmp_path, names)
    found = findings(tmp_path)
    levels = {check: finding.level for check, finding in found.items()}
    assert levels.pop("neighbour agent-001") == "warn"
    assert set(levels) == {
        "settings", "certificates", "clock", "port", "home", "data", "model", "disk", "gpu",
    }  # fmt: skip
    assert set(levels.values()) == {"ok"}
    assert "not running yet" in found["neighbour agent-001"].advice
    assert not (tmp_path / names[0] / "home").exists(), "nothing is left behind"


def test_on_the_command_line(tmp_path: Path) -> None:
    network(tmp_path, 1)
    settings = str(tmp_path / "agent-000" / "agent.toml")
    good = CliRunner().invoke(cli, ["preflight", "--config", settings])
    assert good.exit_code == 0, good.output
    assert good.output.endswith("ready to join\n")
    bad = CliRunner().invoke(cli, ["preflight", "--config", "nowhere.toml"])
    assert bad.exit_code == 2
    assert "-> correct the file" in bad.output
    record = json.loads(CliRunner().invoke(cli, ["preflight", "--json", "--config", settings]).output)
    assert record["ok"]
    assert {"check", "level", "text", "advice"} == set(record["findings"][0])


def test_a_neighbour_that_runs_is_seen_and_one_that_refuses_says_why(tmp_path: Path) -> None:
    names = network(tmp_path, 3, rounds=FOREVER, agent={"start_timeout_s": 100.0})
    authority = with_certificates(tmp_path, names)

    def client() -> None:
        wait_for_round(tmp_path, names[1], 2)
        found = findings(tmp_path)
        assert found["port"].text.startswith("the agent is running")
        assert found["neighbour agent-001"].level == "ok"
        assert "proved its name" in found["neighbour agent-001"].text
        authority.revoke(names[0])
        found = findings(tmp_path)
        assert (found["certificates"].level, found["neighbour agent-001"].level) == ("fail", "fail")
        assert "agent-000's certificate is revoked" in found["certificates"].text
        assert "agent-000's certificate is revoked" in found["neighbour agent-001"].text

    running(tmp_path, names, client)


def test_a_checkpoint_of_a_network_that_comes_and_goes_is_known_again(tmp_path: Path) -> None:
    network(tmp_path, 1, rounds=5, agent={"checkpoint_every": 1})
    (tmp_path / "network.toml").write_text('name = "test"\nmembership = "alive"\nat_least = 1\n')
    running(tmp_path, ["agent-000"], lambda: wait_for_round(tmp_path, "agent-000", 5))
    checkpoint = findings(tmp_path)["checkpoint"]
    assert (checkpoint.level, checkpoint.text) == ("ok", "join goes on from round 5")


def mistake(settings: Path, old: str, new: str) -> None:
    text = settings.read_text()
    assert old in text
    settings.write_text(text.replace(old, new))


def taken_port(folder: Path) -> Any:
    address = (folder / "agent-000" / "agent.toml").read_text().split('listen = "')[1].split('"')[0]
    return socket.create_server(("127.0.0.1", int(address.rpartition(":")[2])))


@pytest.mark.parametrize(
    ("break_it", "check", "level", "text"),
    [
        (lambda f: mistake(f / "agent-000" / "agent.toml", "rounds", "ruonds"), "settings", "fail", "ruonds"),
        (lambda f: mistake(f / "network.toml", 'name = "agent-000"', 'name = "zoe"'), "certificates", "fail",
         "expected one of agent-001, zoe"),
        (lambda f: mistake(f / "agent-000" / "agent.toml", "quadratic", "quadrature"), "data", "fail",
         "quadrature"),
        (lambda f: mistake(f / "agent-000" / "agent.toml", 'home = "home"', 'home = "agent.toml/home"'),
         "home", "fail", "cannot write"),
        (lambda f: mistake(f / "agent-000" / "agent.toml", 'listen = "127', 'listen = "192.0.2'), "port",
         "fail", "cannot listen at"),
        (lambda f: mistake(f / "network.toml", 'address = "127.0.0.1:', 'address = "nowhere.invalid:'),
         "neighbour agent-001", "fail", "nowhere.invalid"),
        (lambda f: (f / "authority" / "agent-000.key").unlink(), "certificates", "fail", "agent-000.key"),
        (lambda f: shutil.copy(f / "authority" / "agent-001.key", f / "authority" / "agent-000.key"),
         "certificates", "fail", "found another"),
        (lambda f: (f / "authority" / "agent-000.key").chmod(0o644), "certificates", "warn",
         "others can read"),
        (lambda f: (f / "authority" / "revoked.pem").write_text(""), "certificates", "fail", "revoked.pem"),
        (lambda f: mistake(f / "agent-000" / "agent.toml", 'listen = "127.0.0.1:', 'listen = "127.0.0.1:1'),
         "address", "warn", "others dial"),
    ],
    ids=["unknown key", "name", "task", "home", "address", "dns", "no key", "other key", "key mode",
         "revocation list", "port differs"],
)  # fmt: skip
def test_mistakes(tmp_path: Path, break_it: Callable[[Path], Any], check: str, level: str, text: str) -> None:
    with_certificates(tmp_path, network(tmp_path))
    break_it(tmp_path)
    finding = findings(tmp_path)[check]
    assert finding.level == level
    assert text in finding.text
    assert finding.advice


def test_a_taken_port(tmp_path: Path) -> None:
    network(tmp_path, 1)
    with taken_port(tmp_path):
        finding = findings(tmp_path)["port"]
    assert finding.level == "fail"
    assert "port taken" in finding.text


@pytest.mark.parametrize(("days", "level", "text"), [(-0.5, "fail", "expired on"), (3, "ok", "within")])
def test_certificates_and_the_clock(tmp_path: Path, days: float, level: str, text: str) -> None:
    with_certificates(tmp_path, network(tmp_path, 1), days=days)
    found = findings(tmp_path)
    assert found["clock"].level == level
    assert text in found["clock"].text
    assert found["certificates"].level == ("fail" if days < 0 else "warn")


def test_data_that_a_sites_own_code_cannot_read(tmp_path: Path) -> None:
    (name,) = network(tmp_path, 1)
    (tmp_path / name / "own.py").write_text("def make_task(context):\n    return open('nowhere.csv')\n")
    mistake(tmp_path / name / "agent.toml", "quadratic", "own.py:make_task")
    finding = findings(tmp_path)["data"]
    assert finding.level == "fail"
    assert "FileNotFoundError" in finding.text


def test_a_checkpoint_of_other_settings(tmp_path: Path) -> None:
    (name,) = network(tmp_path, 1, rounds=5)
    running(tmp_path, [name], lambda: wait_for_round(tmp_path, name, 5))
    assert findings(tmp_path)["checkpoint"].text == "join goes on from round 5"
    mistake(tmp_path / name / "agent.toml", "rounds = 5", "rounds = 6")
    finding = findings(tmp_path)["checkpoint"]
    assert finding.level == "fail"
    assert "rounds = 5" in finding.text


def test_without_certificates(tmp_path: Path) -> None:
    network(tmp_path, 1, agent={"listen": "0.0.0.0:0"})
    assert findings(tmp_path)["certificates"].level == "fail"
    assert findings(tmp_path, insecure=True)["certificates"].level == "warn"


def test_a_home_that_was_private_before(tmp_path: Path) -> None:
    (name,) = network(tmp_path, 1)
    (tmp_path / name / "home").mkdir()
    (tmp_path / name / "home" / "ledger.json").write_text("{}")
    finding = findings(tmp_path)["privacy"]
    assert finding.level == "fail"
    assert "undo what the ledger promises" in finding.text


@pytest.mark.parametrize(
    ("norm", "level", "text"),
    [("GroupNorm(1, 64)", "ok", "epsilon counted"), ("BatchNorm1d(64)", "fail", "BatchNorm")],
)
def test_whether_a_model_can_be_private(tmp_path: Path, norm: str, level: str, text: str) -> None:
    private = {"dp": True, "noise_multiplier": 1.0}
    (name,) = network(tmp_path, 1, task={"name": "own.py:make_task"}, privacy=private)
    (tmp_path / name / "own.py").write_text(
        "import torch\nfrom torch import nn\nfrom p2pqg.tasks import SupervisedTask\n"
        "def make_task(context):\n"
        "    batch = torch.zeros(40, 64), torch.zeros(40, dtype=torch.long)\n"
        f"    return SupervisedTask(lambda: nn.Sequential(nn.{norm}, nn.Linear(64, 2)), batch, batch,\n"
        "                          agent=context.agent, seed=0, batch_size=4)\n"
    )
    found = findings(tmp_path)
    assert found["privacy"].level == level
    assert text in found["privacy"].text
    assert "loss" not in found["model"].text, "which privacy keeps to itself"

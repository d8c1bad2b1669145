"""From `init` to a signed package and back, as the operator and the sites type it."""

from __future__ import annotations

import json
import re
import stat
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from p2pqg import config
from p2pqg.cli.main import cli
from p2pqg.cli.templates import agent_toml, member_toml, network_toml
from p2pqg.config import AgentSettings, NetworkFile, validate
from p2pqg.errors import ConfigError
from p2pqg.security.site import tls_files

P2PQG = Callable[..., Result]


@pytest.fixture
def p2pqg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> P2PQG:
    """Run a command in an empty folder; errors are raised."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, answer: str | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, input=answer, catch_exceptions=False, standalone_mode=False)

    return run


def enrol(p2pqg: P2PQG, *names: str) -> None:
    """A network, and homes with installed packages."""
    p2pqg("network", "create", "clinics", "--rounds", "7", "--lr", "0.25")
    for port, name in enumerate(names, 7001):
        p2pqg("init", name)
        address = f"127.0.0.1:{port}"
        p2pqg("network", "sign", f"{name}/agent.csr", "--folder", "clinics", "--address", address, "--yes")
    p2pqg("network", "package", "--folder", "clinics")
    for name in names:
        p2pqg("install", f"clinics/packages/{name}.zip", "--home", name, answer="y\n")


def fingerprint(result: Result) -> str:
    found = re.search(r"(?:key|authority) +((?:[0-9a-f]{4} ){15}[0-9a-f]{4})", result.output)
    assert found, result.output
    return found[1]


def test_a_site_ends_with_settings_and_files_that_an_agent_accepts(p2pqg: P2PQG, tmp_path: Path) -> None:
    enrol(p2pqg, "bern", "basel")
    settings, network = config.load_agent(tmp_path / "bern" / "agent.toml")
    assert settings.agent.name == "bern"
    assert settings.rounds == 7, "from the network's file"
    assert settings.schedule.lr == 0.25
    assert network.addresses == {"bern": "127.0.0.1:7001", "basel": "127.0.0.1:7002"}
    assert tls_files(tmp_path / "bern").read().name == "bern"


def test_keys_stay_where_they_were_made(p2pqg: P2PQG, tmp_path: Path) -> None:
    enrol(p2pqg, "bern")
    secrets = {path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE" in path.read_bytes()}
    assert secrets == {tmp_path / "bern" / "agent.key", tmp_path / "clinics" / "authority.key"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    with zipfile.ZipFile(tmp_path / "clinics" / "packages" / "bern.zip") as archive:
        assert not [name for name in archive.namelist() if b"PRIVATE" in archive.read(name)]


def test_both_sides_see_the_same_fingerprints_and_may_say_no(p2pqg: P2PQG, tmp_path: Path) -> None:
    created = p2pqg("network", "create", "clinics")
    made = p2pqg("init", "bern")
    sign = ("network", "sign", "bern/agent.csr", "--folder", "clinics", "--address", "10.0.0.1:7000")
    with pytest.raises(click.Abort):
        p2pqg(*sign, answer="n\n")
    assert not list((tmp_path / "clinics" / "certificates").iterdir())
    assert fingerprint(p2pqg(*sign, answer="y\n")) == fingerprint(made)
    p2pqg("network", "package", "bern", "--folder", "clinics")
    install = ("install", "clinics/packages/bern.zip", "--home", "bern")
    with pytest.raises(click.Abort):
        p2pqg(*install, answer="n\n")
    assert not (tmp_path / "bern" / "agent.pem").exists()
    with pytest.raises(ConfigError, match="expected the authority 0000"):
        p2pqg(*install, "--authority", "0000")
    asked = p2pqg(*install, answer="y\n")
    assert fingerprint(asked) == fingerprint(created)
    again = p2pqg(*install)
    assert "as before" in again.output, "a known authority is not asked about"


def test_a_package_for_another_home_is_refused(p2pqg: P2PQG, tmp_path: Path) -> None:
    enrol(p2pqg, "bern", "basel")
    with pytest.raises(ConfigError, match="certificate for this home's key"):
        p2pqg("install", "clinics/packages/basel.zip", "--home", "bern")
    (tmp_path / "junk.zip").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="expected a package"):
        p2pqg("install", "junk.zip", "--home", "bern")
    with zipfile.ZipFile(tmp_path / "junk.zip", "w") as archive:
        archive.writestr("../agent.key", "x")
    with pytest.raises(ConfigError, match=r"found \.\./agent\.key"):
        p2pqg("install", "junk.zip", "--home", "bern")


def test_another_authority_does_not_slip_in(p2pqg: P2PQG, tmp_path: Path) -> None:
    enrol(p2pqg, "bern")
    p2pqg("network", "create", "clinics", "--folder", "impostor")
    address = ("--address", "10.0.0.1:7000")
    p2pqg("network", "sign", "bern/agent.csr", "--folder", "impostor", "--yes", *address)
    p2pqg("network", "package", "bern", "--folder", "impostor")
    before = (tmp_path / "bern" / "agent.pem").read_bytes()
    with pytest.raises(ConfigError, match="to change the network"):
        p2pqg("install", "impostor/packages/bern.zip", "--home", "bern", answer="y\n")
    assert (tmp_path / "bern" / "agent.pem").read_bytes() == before


def test_a_name_belongs_to_one_key_until_it_is_replaced(p2pqg: P2PQG, tmp_path: Path) -> None:
    enrol(p2pqg, "bern")
    first = tls_files(tmp_path / "bern").read()
    p2pqg("init", "bern", "--new-key")
    assert tls_files(tmp_path / "bern").read() == first, "nothing changes before the certificate is here"
    sign = ("network", "sign", "bern/agent.csr", "--folder", "clinics", "--yes")
    with pytest.raises(ConfigError, match="expected the key that bern has"):
        p2pqg(*sign)
    p2pqg(*sign, "--replace")
    p2pqg("network", "package", "bern", "--folder", "clinics")
    p2pqg("install", "clinics/packages/bern.zip", "--home", "bern")
    second = tls_files(tmp_path / "bern").read()
    assert second.fingerprint != first.fingerprint
    assert not (tmp_path / "bern" / "agent.key.next").exists()
    with pytest.raises(Exception, match="bern's certificate is revoked"):
        second.admission.check(first.x509)
    assert second.admission.check(second.x509) == "bern"


def test_renewal_keeps_the_key_and_revocation_ends_it(p2pqg: P2PQG, tmp_path: Path) -> None:
    enrol(p2pqg, "bern")
    first = tls_files(tmp_path / "bern").read()
    p2pqg("network", "renew", "bern", "--folder", "clinics", "--days", "500")
    p2pqg("network", "package", "bern", "--folder", "clinics")
    p2pqg("install", "clinics/packages/bern.zip", "--home", "bern")
    second = tls_files(tmp_path / "bern").read()
    assert second.fingerprint == first.fingerprint
    assert second.days_left > first.days_left + 100
    p2pqg("network", "revoke", "bern", "--folder", "clinics")
    for command in ("renew", "package"):
        with pytest.raises(ConfigError, match="not revoked"):
            p2pqg("network", command, "bern", "--folder", "clinics")
    (tmp_path / "bern" / "revoked.pem").write_bytes((tmp_path / "clinics" / "revoked.pem").read_bytes())
    for identity in (first, second):
        with pytest.raises(Exception, match="revoked"):
            second.admission.check(identity.x509)
    shown = json.loads(p2pqg("network", "show", "--folder", "clinics", "--json").output)
    assert [(a["agent"], a["state"]) for a in shown["agents"]] == [("bern", "revoked")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "../bern"], "letters, digits"),
        (["init", "bern"], "expected no agent there yet"),
        (["init", "basel", "--folder", "bern", "--new-key"], "expected basel, found bern"),
        (["network", "create", "clinics"], "expected no network there yet"),
        (["network", "create", "x", "--lr", "-1"], "network.toml: schedule.lr"),
        (["network", "create", "x", "--topology", "moebius"], "--topology: expected one of ring, complete"),
        (
            ["network", "create", "x", "--topology", "moebius", "--membership", "alive"],
            "or 4-regular and the",
        ),
        (["network", "create", "x", "--topology", "social", "--membership", "alive"], "exactly 32 agents"),
        (["network", "package", "--folder", "empty"], "agents"),
        (["network", "sign", "bern/agent.pem", "--folder", "clinics"], "expected an unencrypted PEM file"),
        (["network", "sign", "bern/agent.csr", "--folder", "bern"], "authority.key"),
        (["network", "sign", "bern/agent.csr", "--folder", "clinics", "--address", "here"], "host:port"),
        (
            ["network", "sign", "bern/agent.csr", "--folder", "clinics", "--address", "10.0.0.9:1"],
            "as listed",
        ),
        (["network", "renew", "zug", "--folder", "clinics"], "expected one of bern, found 'zug'"),
        (["network", "revoke", "../bern", "--folder", "clinics"], "expected an agent's name"),
    ],
)
def test_mistakes_are_explained(p2pqg: P2PQG, arguments: list[str], message: str) -> None:
    enrol(p2pqg, "bern")
    p2pqg("network", "create", "empty")
    with pytest.raises(ConfigError, match=re.escape(message)):
        p2pqg(*arguments)


def uncommented(text: str) -> str:
    """A template with every setting that it only shows."""
    return re.sub(r"(?m)^# (?=\w+ = |\[)", "", text)


@pytest.mark.parametrize("rule", ["ring", "torus", "4-regular", "exponential", "complete", "star"])
@pytest.mark.parametrize("membership", ["fixed", "alive"])
def test_a_network_is_made_with_any_rule(p2pqg: P2PQG, tmp_path: Path, rule: str, membership: str) -> None:
    p2pqg("network", "create", "clinics", "--topology", rule, "--membership", membership)
    text = (tmp_path / "clinics" / "network.toml").read_text()
    agents = "".join(member_toml(f"agent-{i}", f"10.0.0.{i}:7000") for i in range(6))
    network = validate(NetworkFile, tomllib.loads(text + agents), where="network.toml")
    assert (network.topology, network.membership) == (rule, membership)


def test_every_setting_the_templates_show_exists() -> None:
    agent = uncommented(agent_toml("bern", "0.0.0.0:7000"))
    network = uncommented(
        network_toml(
            "clinics",
            topology="ring",
            membership="fixed",
            rounds=5,
            task="digits",
            algorithm="qg-dsgdm-n",
            lr=0.1,
        )
        + member_toml("bern", "10.0.0.1:7000")
    )
    assert "allow" in tomllib.loads(agent)["tls"]
    assert tomllib.loads(agent)["privacy"]["dp"]
    assert "dtype" in tomllib.loads(network)["task"]
    validate(AgentSettings, tomllib.loads(agent), where="agent.toml")
    validate(NetworkFile, tomllib.loads(network), where="network.toml")


def test_a_site_says_where_its_data_are(p2pqg: P2PQG, tmp_path: Path) -> None:
    p2pqg("init", "bern", "--data", "x rays/bern.npz")
    settings = tomllib.loads((tmp_path / "bern" / "agent.toml").read_text())
    assert settings["task"]["data"] == str(tmp_path / "x rays" / "bern.npz")

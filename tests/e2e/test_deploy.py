"""The files in deploy/: each is checked by what reads it, and what they say of the agent is so."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from p2pqg import config
from p2pqg.config import AgentSettings, NetworkFile

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "p2pqg@.service"
NAMES = [f"p2pqg-{i}" for i in range(5)]

systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: apt-get install systemd)"
)


# ---- systemd


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with the unit, the program it starts, and the units that it and every service name."""
    program = tmp_path / "opt" / "p2pqg" / "bin" / "p2pqg"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    shutil.copy(UNIT, units)
    for target in ("network-online", "multi-user", "sysinit", "basic", "shutdown", "initrd-switch-root"):
        (units / f"{target}.target").write_text("[Unit]\n")
    for slice_ in ("-", "system", "system-p2pqg"):
        (units / f"{slice_}.slice").write_text("[Slice]\n")
    return tmp_path


@systemd
def test_the_unit_is_one(root: Path) -> None:
    """No unknown key, no value that systemd would pass over."""
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={root}", "--man=no", "p2pqg@bern.service"],
        capture_output=True,
        text=True,
    )
    complaints = [line for line in done.stderr.splitlines() if "p2pqg" in line]
    assert (done.returncode, complaints) == (0, [])
    unit = root / "etc" / "systemd" / "system" / UNIT.name
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSistem=strict"))
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={root}", "--man=no", "p2pqg@bern.service"],
        capture_output=True,
        text=True,
    )
    assert "ProtectSistem" in done.stderr, "a mistake would be seen"


@systemd
def test_the_unit_is_locked_up(root: Path) -> None:
    """systemd's own measure of exposure, from 0 to 10: below 2, and nothing of weight left open but the
    network, which is what an agent is for."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--root={root}", "--json=short", "--threshold=20",
         "p2pqg@bern.service"],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    open_ = {
        entry["json_field"]: float(entry["exposure"])
        for entry in json.loads(done.stdout)
        if entry["exposure"]
    }
    assert max(open_, key=open_.__getitem__) == "PrivateNetwork"


def test_the_watchdog_outlasts_the_agents_silence() -> None:
    text = UNIT.read_text()
    expected = int(re.search(r"WatchdogSec=(\d+)s", text)[1])  # type: ignore[index]
    assert f"every {expected // 2} s" in text


# ---- containers


def test_the_container_recipe_builds_from_what_is_there() -> None:
    dockerfile_parse = pytest.importorskip("dockerfile_parse", reason="needs dockerfile-parse")
    recipe = DEPLOY / "container" / "Containerfile"
    with recipe.open("rb") as file:
        parsed = dockerfile_parse.DockerfileParser(fileobj=file)
        steps = [(step["instruction"], step["value"]) for step in parsed.structure]
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "LABEL", "ENV", "USER", "VOLUME", "EXPOSE",
             "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD", "COMMENT"}  # fmt: skip
    assert {name for name, _ in steps} <= known
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [value.split()[:-1] for name, value in steps if name == "COPY" and "--from" not in value]
    for source in (path for paths in copied for path in paths):
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored, "the build's context holds it"
    last_stage = steps[max(i for i, (name, _) in enumerate(steps) if name == "FROM") :]
    user = dict(last_stage)["USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number other than root's, which Kubernetes can check"
    assert json.loads(dict(last_stage)["ENTRYPOINT"]) == ["p2pqg"]
    assert json.loads(dict(last_stage)["CMD"])[0] == "join"


def test_compose_runs_five_locked_up_agents() -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="needs compose-spec")
    text = (DEPLOY / "compose" / "compose.yaml").read_text()
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)  # as with none of the variables set
    read = compose_spec.PyOptions(apply_merge=True)
    read.from_yaml(text).validate()
    with pytest.raises(ValueError, match="read_onlly"):
        read.from_yaml(text.replace("read_only", "read_onlly"))
    services = yaml.safe_load(text)["services"]
    assert len(services) == 5
    for name, service in services.items():
        assert service["volumes"] == [f"./agents/{name}:/home/agent"]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert "privileged" not in service
    build = services["basel"]["build"]
    context = (DEPLOY / "compose" / build["context"]).resolve()
    assert (context / build["dockerfile"]).is_file()


# ---- Kubernetes


def manifests() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "p2pqg.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.mark.parametrize("kind", sorted(manifests()))
def test_kubernetes_knows_every_field(kind: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    manifest = manifests()[kind]
    kubernetes_validate.validate(manifest, "1.30", strict=True)
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    manifest["spec" if "spec" in manifest else "data"] = {"replikas": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, "1.30", strict=True)


def test_pods_get_names_addresses_and_keys_that_fit(tmp_path: Path) -> None:
    """What a pod's init container writes is valid, and every agent can be dialled where the file says."""
    found = manifests()
    service, stateful = found["Service"], found["StatefulSet"]
    for name, text in found["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    network = config.load(NetworkFile, tmp_path / "network.toml")
    assert list(network.names) == NAMES
    assert stateful["spec"]["replicas"] == len(NAMES)
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    pod = stateful["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    for selector in (
        service["spec"]["selector"],
        stateful["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    init, agent = pod["spec"]["initContainers"][0], pod["spec"]["containers"][0]
    (keys,) = (volume["secret"] for volume in pod["spec"]["volumes"] if "secret" in volume)
    for name in NAMES:
        home = tmp_path / name
        home.mkdir()
        command = [part.replace("/settings", str(tmp_path)) for part in init["command"]]
        subprocess.run(command, cwd=home, check=True, env={"HOSTNAME": name, "PATH": "/usr/bin:/bin"})
        settings = config.load(AgentSettings, home / "agent.toml")
        assert settings.agent.name == name
        assert network.addresses[name] == f"{name}.{service['metadata']['name']}:7000"
        assert settings.agent.listen.endswith(f":{agent['ports'][0]['containerPort']}")
        paths = {item["path"] for item in keys["items"] if item["path"].startswith(f"{name}/")}
        assert settings.tls is not None
        wanted = (settings.tls.certificate, settings.tls.private_key, settings.tls.authority)
        assert paths == {f"{name}/{path.name}" for path in wanted}
        assert all(str(path.parent) == "/keys" for path in wanted)


# ---- settings


def samples() -> list[Path]:
    return [path for path in sorted((DEPLOY / "samples").glob("*.toml")) if path.name != "network.toml"]


@pytest.mark.parametrize("path", samples(), ids=lambda path: path.stem)
def test_a_sample_is_valid(path: Path) -> None:
    settings = config.load(AgentSettings, path)
    network = config.load(NetworkFile, settings.network.file)
    assert settings.agent.name in network.names


def test_samples_agree_with_each_other() -> None:
    found = [config.load(AgentSettings, path) for path in samples()]
    assert len({settings.agent.wire for settings in found}) == 1
    common = [s.model_dump(include={"rounds", "seed", "algorithm", "schedule", "finish"}) for s in found]
    assert all(settings == common[0] for settings in common)


def test_the_hospital_is_never_dialled() -> None:
    """Of two neighbours the smaller name dials."""
    hospital = config.load(AgentSettings, DEPLOY / "samples" / "hospital.toml")
    network = config.load(NetworkFile, hospital.network.file)
    graph = network.build().graph(0)
    neighbours = [network.names[j] for j in graph.incoming[network.names.index(hospital.agent.name)]]
    assert neighbours
    assert all(hospital.agent.name < neighbour for neighbour in neighbours)
    assert hospital.agent.listen.startswith("127.")

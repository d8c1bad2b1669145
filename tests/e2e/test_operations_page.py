"""docs/operations.md, followed literally: its commands, each on its machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
SCP = """#!/bin/sh
# scp SOURCE MACHINE:TARGET between folders instead of machines
cp "$1" "$MACHINES/${2%%:*}/${2#*:}"
"""


def commands() -> list[tuple[str, str]]:
    """(machine, command) of every line of the page with a prompt, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    found = [re.fullmatch(r"(\w+)\$ (.+)", line) for line in lines]
    assert all(found), lines
    return [(match[1], match[2]) for match in found if match]


def addresses() -> dict[str, str]:
    """The page's table of machines."""
    return dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGE.read_text(), re.MULTILINE))


@dataclass
class Machines:
    """A folder and a network namespace for each machine."""

    folder: Path
    agents: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def command(self, machine: str, text: str) -> list[str]:
        return ["ip", "netns", "exec", f"p2pqg-{machine}", "sh", "-c", text]

    def environment(self) -> dict[str, str]:
        tools = self.folder / "bin"
        return os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "MACHINES": str(self.folder),
                             "OMP_NUM_THREADS": "1"}  # fmt: skip

    def run(self, machine: str, text: str) -> subprocess.CompletedProcess[str]:
        """To its end, with "y" for whatever it asks."""
        return subprocess.run(
            self.command(machine, text), cwd=self.folder / machine, env=self.environment(), input="y\n" * 3,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def start(self, machine: str, text: str) -> None:
        """In a terminal of its own."""
        with (self.folder / f"{machine}.log").open("w") as log:
            self.agents[machine] = subprocess.Popen(
                self.command(machine, f"exec {text}"), cwd=self.folder / machine, env=self.environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True,
            )  # fmt: skip

    def log(self, machine: str) -> str:
        return (self.folder / f"{machine}.log").read_text()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """Three namespaces on one bridge, which is in a fourth: this machine's own network stays as it is."""
    found = addresses()
    spaces = ["p2pqg-lan", *(f"p2pqg-{name}" for name in found)]
    try:
        try:
            for space in spaces:
                ip("netns", "add", space)
            ip("-n", "p2pqg-lan", "link", "add", "lan", "type", "bridge")
            ip("-n", "p2pqg-lan", "link", "set", "lan", "up")
            for name, address in found.items():
                space = f"p2pqg-{name}"
                ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", name, "netns", "p2pqg-lan")
                ip("-n", "p2pqg-lan", "link", "set", name, "master", "lan", "up")
                ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
                ip("-n", space, "link", "set", "eth0", "up")
                ip("-n", space, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs network namespaces: {getattr(error, 'stderr', error)!r}")
        tools = tmp_path / "bin"
        tools.mkdir()
        start = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m p2pqg.cli.main "$@"\n'
        for tool, script in (("scp", SCP), ("p2pqg", start)):
            (tools / tool).write_text(script)
            (tools / tool).chmod(0o755)
        for name in found:
            (tmp_path / name).mkdir()
        machines = Machines(tmp_path)
        yield machines
        for process in machines.agents.values():
            process.kill()
            process.wait()
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)


@pytest.mark.network
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip (Debian: apt-get install iproute2)")
@pytest.mark.timeout(900)
def test_a_stranger_brings_up_three_machines(machines: Machines) -> None:
    for machine, text in commands():
        if text.startswith("p2pqg join"):
            machines.start(machine, text)
            continue
        deadline = time.monotonic() + 300
        done = machines.run(machine, text)
        while done.returncode and text.startswith(("p2pqg status", "p2pqg peers")):
            assert time.monotonic() < deadline, done.stdout + done.stderr + machines.log(machine)
            time.sleep(1)  # the agents are starting
            done = machines.run(machine, text)
        assert done.returncode == 0, f"{machine}$ {text}\n{done.stdout}{done.stderr}"
    names = set(addresses())
    assert set(machines.agents) == names
    for name, process in machines.agents.items():
        assert process.wait(timeout=600) == 0, machines.log(name)
    for name in names:
        home = machines.folder / name / name
        card = json.loads((home / "model.json").read_text())
        assert card["finished"]
        assert set(card["participation"]["mixed"]) == names - {name}
        assert stat.S_IMODE((home / "agent.key").stat().st_mode) == 0o600
        keys = {path.parent.name for path in machines.folder.rglob("agent.key*")}
        assert keys == names, "no key left its machine"
        assert "insecure" not in machines.log(name).lower()


def test_the_page_names_commands_and_files_that_exist() -> None:
    from p2pqg.cli.main import COMMANDS

    text = PAGE.read_text()
    assert {text.split()[1] for _, text in commands() if text.startswith("p2pqg")} <= set(COMMANDS)
    for path in re.findall(r"\]\((\.\./[^)]+)\)", text):
        assert (PAGE.parent / path).exists(), path
    for path in re.findall(r"(deploy/\S+?\.(?:service|conf))", text):
        assert (PAGE.parents[1] / path).exists(), path

"""Four hospitals on this computer: what README.md says, command by command, each machine a folder.

    python examples/hospitals/run.py [pneumoniamnist.npz] [--out FOLDER] [--epsilon 3]

`scp` copies between folders, and the machines' addresses are ports of this one; nothing else is different.
The commands of a block run at the same time on different machines, and in order on each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from p2pqg_simulator.swarm import free_ports

HERE = Path(__file__).parent
DATA = HERE.parents[2] / "shared" / "data" / "pneumoniamnist.npz"
SHARED = ("xrays.py", "deal.py", "network.toml", "privacy.toml", "alone.toml")
"""What of this folder every machine has."""
TIMEOUT_S = 900.0
TOOLS = {
    "p2pqg": f'exec {shlex.quote(sys.executable)} -m p2pqg "$@"',
    "python3": f'exec {shlex.quote(sys.executable)} "$@"',
    "scp": 'cp "$1" "$MACHINES/${2%%:*}/${2#*:}"  # scp SOURCE MACHINE:TARGET',
}
"""Programs as the machines have them, in the language of the shell."""


class WalkFailed(Exception):
    """A command or an agent ended otherwise than README.md says."""


@dataclass(frozen=True)
class Part:
    """A piece of the page: prose, or a wait, or commands `(machine, command)`."""

    prose: str = ""
    wait: str = ""
    commands: tuple[tuple[str, str], ...] = ()


def parts(page: str) -> Iterator[Part]:
    """The page from its first numbered section on."""
    marks = r"```console\n(.*?)```|<!-- run\.py waits: (.*?) -->"
    pieces = re.split(marks, page[page.index("\n## 1.") :], flags=re.DOTALL)
    for prose, block, wait in zip(pieces[::3], [*pieces[1::3], None], [*pieces[2::3], None], strict=True):
        if prose.strip():
            yield Part(prose=prose.strip())
        if wait:
            yield Part(wait=wait)
        if block:
            lines = [line.split("$ ", 1) for line in block.splitlines()]
            yield Part(commands=tuple((machine, command) for machine, command in lines))


def addresses(page: str) -> dict[str, str]:
    """Of each machine, from the page's table."""
    return dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", page, re.MULTILINE))


@dataclass
class Machines:
    """A folder and a port for each machine."""

    folder: Path
    ports: dict[str, str]
    """What takes the place of each machine's address and port."""
    agents: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    said: dict[tuple[str, str], str] = field(default_factory=dict)
    """What each command printed."""

    def make(self, names: Iterator[str] | list[str]) -> None:
        tools = self.folder / "bin"
        tools.mkdir(parents=True)
        for tool, script in TOOLS.items():
            (tools / tool).write_text(f"#!/bin/sh\n{script}\n")
            (tools / tool).chmod(0o755)
        for name in names:
            (self.folder / name).mkdir()
            for file in SHARED:
                shutil.copy(HERE / file, self.folder / name)

    def start(self, machine: str, command: str, stream: Any, **options: Any) -> subprocess.Popen[str]:
        for address, port in self.ports.items():
            command = command.replace(address, port)
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "MACHINES": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "110",
        }
        return subprocess.Popen(
            ["sh", "-c", command], cwd=self.folder / machine, env=environment, text=True,
            stdout=stream, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip

    def run(self, machine: str, command: str) -> str:
        """To its end, with "y" to what it asks; returns what it said. An agent is only started."""
        if command.startswith("p2pqg join"):
            with (self.folder / f"{machine}.log").open("a") as log:
                join = self.start(machine, f"exec {command}", log, stdin=subprocess.DEVNULL)
            self.agents[machine] = join
            return f"(its log is {machine}.log)"
        process = self.start(machine, command, subprocess.PIPE, stdin=subprocess.PIPE)
        said, _ = process.communicate("y\n", timeout=TIMEOUT_S)
        if process.returncode:
            raise WalkFailed(f"{machine}$ {command}\nexit code {process.returncode}\n{said}")
        self.said[machine, command] = said
        return said.replace("[y/N]: ", "[y/N]: y\n").rstrip()

    def at(self, machine: str) -> int:
        """The round of a machine's agent."""
        path = self.folder / machine / machine / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return int(json.loads(lines[-1])["round"]) if lines else 0

    def wait(self, condition: str, console: Console) -> None:
        """Until ``MACHINE is at round N``, or ``all have ended``."""
        found = re.fullmatch(r"(\w+) is at round (\d+)|all have ended", condition)
        assert found, condition
        deadline = time.monotonic() + TIMEOUT_S
        with console.status("") as spinner:
            while not (
                self.at(found[1]) >= int(found[2])
                if found[1]
                else all(agent.poll() is not None for agent in self.agents.values())
            ):
                self.check(deadline)
                spinner.update("  ".join(f"{name}: round {self.at(name)}" for name in self.agents))
                time.sleep(0.2)
        self.check(deadline)

    def check(self, deadline: float) -> None:
        """No agent has failed; -9 is the one that was killed."""
        for name, agent in self.agents.items():
            if agent.poll() not in (None, 0, -9):
                raise WalkFailed(f"the agent of {name} failed\n{self.log(name)}")
        if time.monotonic() > deadline:
            raise WalkFailed("\n".join(["nothing happens", *map(self.log, self.agents)]))

    def log(self, machine: str) -> str:
        lines = (self.folder / f"{machine}.log").read_text().splitlines()
        return "\n".join([f"{machine}.log:", *lines[-10:]])

    def close(self) -> None:
        for agent in self.agents.values():
            if agent.poll() is None:
                agent.kill()
            agent.wait()


def walk(machines: Machines, page: str, console: Console) -> None:
    """The page, with what its commands say."""
    for part in parts(page):
        if part.prose:
            console.print(Markdown(part.prose))
        if part.wait:
            machines.wait(part.wait, console)
        by_machine: dict[str, list[str]] = {}
        for machine, command in part.commands:
            by_machine.setdefault(machine, []).append(command)

        def in_order(machine: str, commands: dict[str, list[str]] = by_machine) -> list[str]:
            return [machines.run(machine, command) for command in commands[machine]]

        with ThreadPoolExecutor() as pool:
            said = dict(zip(by_machine, map(iter, pool.map(in_order, by_machine)), strict=True))
        for machine, command in part.commands:
            console.print(Text(f"{machine}$ {command}", "bold cyan"), soft_wrap=True)
            if text := next(said[machine]):
                console.print(Text(text, "dim"), soft_wrap=True)
        if part.commands:
            console.print()


def outcome(machines: Machines) -> list[dict[str, Any]]:
    """What came of it at each machine."""
    cards = {
        name: json.loads((machines.folder / name / name / "model.json").read_text())
        for name in sorted(machines.agents)
    }
    scores = {
        (machine, command.split()[2].split("/")[0]): json.loads(said)
        for (machine, command), said in machines.said.items()
        if command.startswith("python3 xrays.py")
    }
    rows = []
    for name, card in cards.items():
        missing = rounds_without(name, [card["participation"] for card in cards.values()])
        rows.append(
            {
                "site": name,
                "images": card["samples"],
                "together": scores[name, name],
                "alone": scores[name, "alone"],
                "rounds": card["rounds"] - len(missing),
                "epsilon": (card.get("privacy") or {}).get("epsilon"),
                "missing": spans(missing),
            }
        )
    return rows


def rounds_without(site: str, views: list[dict[str, Any]]) -> list[int]:
    """The rounds in which a site was missing in the view of all its neighbours, each of which says who was
    missing when."""
    seen = [
        {
            round
            for span in view["missing"] if span["peer"] == site
            for round in range(span["from"], span["to"] + 1)
        }
        for view in views if site in view["mixed"]
    ]  # fmt: skip
    return sorted(set.intersection(*seen))


def spans(rounds: list[int]) -> list[tuple[int, int]]:
    """Whole numbers in order as (first, last) of those without a gap."""
    starts = [round for round in rounds if round - 1 not in rounds]
    ends = [round for round in rounds if round + 1 not in rounds]
    return list(zip(starts, ends, strict=True))


def table(rows: list[dict[str, Any]]) -> Table:
    """For the end: the common model at each site, beside what the site reached alone."""
    shown = Table(
        "site", "images", "accuracy", "sensitivity", "specificity", "AUC", "rounds", "ε", "missing in rounds",
        title="The model of all four on each site's held-out images, % (in brackets: trained alone)",
    )  # fmt: skip
    for row in rows:
        shown.add_row(
            row["site"],
            f"{row['images']:,}",
            *(in_percent(row, key) for key in ("accuracy", "sensitivity", "specificity", "auc")),
            str(row["rounds"]),
            "-" if row["epsilon"] is None else f"{row['epsilon']:.2f}",
            in_words(row["missing"]),
        )
    mean = {
        model: {key: statistics.mean(row[model][key] for row in rows) for key in rows[0][model]}
        for model in ("together", "alone")
    }
    shown.add_section()
    shown.add_row(
        "mean", "", *(in_percent(mean, key) for key in ("accuracy", "sensitivity", "specificity", "auc"))
    )
    return shown


def in_words(missing: list[tuple[int, int]]) -> str:
    """Spans of rounds."""
    return ", ".join(f"{first} to {last}" for first, last in missing) or "none"


def in_percent(row: dict[str, Any], key: str) -> str:
    """A score of the common model, and in brackets that of the site alone."""
    return f"{100 * row['together'][key]:.1f} ({100 * row['alone'][key]:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=DATA, help="pneumoniamnist.npz")
    parser.add_argument("--out", type=Path, help="where to make the machines' folders  [runs/hospitals-TIME]")
    parser.add_argument("--epsilon", default="3.0", help="budget of each hospital, or none")
    options = parser.parse_args()
    if not options.data.is_file():
        parser.error(f"{options.data}: expected PneumoniaMNIST, found no file; get pneumoniamnist.npz from "
                     "https://medmnist.com, and name it as argument")  # fmt: skip
    if find_spec("opacus") is None:
        parser.error("expected Opacus, found none: pip install 'p2pqg[privacy]'")
    folder = (options.out or Path(f"runs/hospitals-{time.strftime('%Y%m%d-%H%M%S')}")).absolute()
    if folder.exists():
        parser.error(f"{folder}: expected no such folder yet")
    page = (HERE / "README.md").read_text(encoding="utf-8")
    if options.epsilon == "none":
        page = page.replace("chur$ cat chur/ledger.json\n", "")  # there is none
    names = addresses(page)
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    machines = Machines(folder, {f"{names[n]}:7000": f"127.0.0.1:{ports[n]}" for n in names})
    machines.make(list(names))
    shutil.copy(options.data, folder / "basel" / "pneumoniamnist.npz")
    set_budget(folder, list(names), options.epsilon)
    console = Console(width=min(Console().width, 120) if sys.stdout.isatty() else 110)
    console.print(f"README.md, command by command. The machines are folders in {folder}, and the ports of "
                  f"{', '.join(names)} are {', '.join(str(ports[n]) for n in names)}.\n")  # fmt: skip
    began = time.monotonic()
    try:
        walk(machines, page, console)
        rows = outcome(machines)
    except WalkFailed as error:
        sys.exit(str(error))
    finally:
        machines.close()
    (folder / "outcome.json").write_text(json.dumps(rows, indent=2) + "\n")
    console.print(table(rows))
    console.print(f"{time.monotonic() - began:.0f} s; the numbers are in {folder / 'outcome.json'}")


def set_budget(folder: Path, names: list[str], epsilon: str) -> None:
    """Another budget than the page's, on all machines."""
    for name in names:
        for file in ("privacy.toml", "alone.toml"):
            path = folder / name / file
            text = path.read_text()
            if epsilon == "none":
                text = text.replace("dp = true", "dp = false")
            else:
                text = re.sub("target_epsilon = .*", f"target_epsilon = {float(epsilon)}", text)
            path.write_text(text)


if __name__ == "__main__":
    main()

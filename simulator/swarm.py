"""Real agents on one host: over the in-memory network in this process, or one process each over gRPC.

A swarm of processes is what `p2pqg join` would run on n devices: its folder holds a topology file and one
home for each agent, and an agent reads nothing but its own. When all are done, their files are gathered into
the same `RunFolder` that a simulation writes, so that the two can be compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors.torch import load_file
from torch import Tensor

from p2pqg import checkpoint, config
from p2pqg.agent import Agent, Outcome
from p2pqg.config import AgentTable, NetworkFile, RunSettings, SimulationSettings, agent_names
from p2pqg.errors import ConfigError, P2PQGError
from p2pqg.storage import write_atomically
from p2pqg.tasks import precision
from p2pqg.tasks.base import Buffers, Task
from p2pqg.telemetry import read_metrics
from p2pqg.topology import Topology
from p2pqg.transport import virtual_time
from p2pqg.transport.memory import MemoryNetwork

from .evaluation import evaluate
from .folder import RunFolder, best
from .simulate import effective

SETTINGS = "swarm.toml"
POLL_S = 0.2
GRACE_S = 30.0
"""How long agents that were told to stop may take before they are killed."""


def in_memory(
    network: NetworkFile,
    settings: RunSettings,
    tasks: Sequence[Task],
    memory: MemoryNetwork,
    **table: object,
) -> list[tuple[Agent, Outcome]]:
    """Run all agents of `network` to their end in this process, under virtual time.

    `tasks[i]` belongs to the i-th name; `table` overrides settings of ``[agent]``.
    """
    agents = [
        Agent(
            AgentTable.model_validate({"name": name, **table}),
            network,
            settings,
            task,
            memory.transport(name),
        )
        for name, task in zip(network.names, tasks, strict=True)
    ]

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(agent.run() for agent in agents))

    return list(zip(agents, virtual_time.run(main()), strict=True))


def memory_network(topology: str, n: int, name: str = "test") -> NetworkFile:
    """The topology file of n agents that live in a `MemoryNetwork`."""
    agents = [{"name": name, "address": f"memory:{name}"} for name in agent_names(n)]
    return NetworkFile.model_validate({"name": name, "topology": topology, "agents": agents})


@dataclass
class Member:
    """One agent's process, its home, and the last line of its metrics."""

    name: str
    home: Path
    process: subprocess.Popen[bytes] | None = None
    latest: dict[str, Any] = field(default_factory=dict)
    _read: int = 0

    @property
    def exit_code(self) -> int | None:
        """None while the process runs."""
        return self.process.poll() if self.process else None

    def refresh(self) -> None:
        """Read what the agent has measured since the last call."""
        path = self.home / "metrics.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        complete = lines[: lines.rfind(b"\n") + 1]
        self._read += len(complete)
        for line in complete.splitlines():
            self.latest |= json.loads(line)

    def last_words(self) -> str:
        """The end of the agent's log: why it failed."""
        path = self.home / "log.txt"
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return lines[-1] if lines else "no output"


class Swarm:
    """n agents as processes on loopback, each with its home in `out`.

    A context manager: leaving it ends every process that still runs, and says so to none of the others'
    files. Raises `ConfigError` if `out` holds another run.
    """

    def __init__(
        self, settings: SimulationSettings, out: Path, *, resume: bool = False, stop_after: int | None = None
    ) -> None:
        self.settings, self.folder, self.stop_after = effective(settings), RunFolder(out), stop_after
        self.began_s = time.monotonic()
        graph = self.settings.graph
        precision.require(self.settings.task.precision, torch.device("cpu"))
        if not resume and ((out / SETTINGS).exists() or self.folder.used):
            raise ConfigError("expected an empty folder, or --resume; found a run", where=str(out))
        self.folder.create()
        self.members = [Member(name, out / name) for name in settings.names]
        self._write_files(graph)

    def __enter__(self) -> Swarm:
        command = [sys.executable, "-m", "p2pqg.cli.main", "join", "--config"]
        for member in self.members:
            arguments = [*command, str(member.home / "agent.toml")]
            if self.stop_after is not None:
                arguments += ["--stop-after", str(self.stop_after)]
            with (member.home / "log.txt").open("ab") as log:
                member.process = subprocess.Popen(
                    arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        return self

    def __exit__(self, *error: object) -> None:
        self._end(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for member in self.members:
            assert member.process is not None
            try:
                member.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._end(signal.SIGKILL)
                member.process.wait()

    def watch(self) -> Iterator[list[Member]]:
        """The members, several times a second, until all are done.

        Raises `P2PQGError` with an agent's last words as soon as one fails.
        """
        running = True
        while running:
            running = any(member.exit_code is None for member in self.members)
            for member in self.members:
                member.refresh()
                if member.exit_code not in (None, 0):
                    raise P2PQGError(
                        f"{member.name} failed (exit code {member.exit_code}): {member.last_words()}; "
                        f"its log is {member.home / 'log.txt'}"
                    )
            yield self.members
            if running:
                time.sleep(POLL_S)

    @property
    def finished(self) -> bool:
        """Whether every agent trained to the end and took its model home."""
        return all(member.exit_code == 0 and (member.home / "model.json").exists() for member in self.members)

    def curve(self) -> list[dict[str, Any]]:
        """Scores by round of training, as gathered."""
        lines = read_metrics(self.folder.metrics)
        return [line for line in lines if "mean_accuracy" in line]

    def gather(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Write the files of a `RunFolder` from those of the agents and return the summary."""
        spec = tasks[0].spec
        trained, buffers, rounds = self._checkpoints(tasks)
        lines = list(self._metrics(rounds))
        training = [line for line in lines if line["round"] <= rounds]
        last = training[-1]
        last |= evaluate(tasks, trained, buffers).numbers()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self.folder.metrics, text.encode())
        x = torch.stack(
            [spec.flatten(load_file(member.home / "model.safetensors")) for member in self.members]
        )
        final = evaluate(tasks, x, buffers).numbers()
        cards = [json.loads((member.home / "model.json").read_text()) for member in self.members]
        sent = [card["bytes_sent"] for card in cards]
        privacy = [
            (math.inf if own["epsilon"] is None else own["epsilon"], own["delta"])
            for own in (card["privacy"] for card in cards)
            if own
        ]
        summary = {
            "kind": "swarm",
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.settings.seed,
            "agents": [member.name for member in self.members],
            **(dict(zip(("epsilon", "delta"), max(privacy), strict=True)) if privacy else {}),
            "parameters": spec.d,
            "rounds": rounds,
            "gossip_rounds": cards[0]["gossip_only_rounds"],
            "best": best(training),
            "last": {k: v for k, v in last.items() if k not in ("round", "lr", "missing")},
            "final": final,
            "bytes_sent": {"mean": sum(sent) / len(sent), "max": max(sent)},
            "participation": {card["agent"]: card["participation"] for card in cards},
            "wall_s": time.monotonic() - self.began_s,
        }
        card = {key: summary[key] for key in ("settings", "parameters", "final")}
        self.folder.save_models(spec, x, buffers, summary["agents"], card)
        self.folder.save_summary(summary)
        return summary

    # ---- inside

    def _write_files(self, graph: Topology) -> None:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(len(self.members))]
        agents = [
            {"name": member.name, "address": address}
            for member, address in zip(self.members, addresses, strict=True)
        ]
        network: dict[str, Any] = {"name": "swarm", "agents": agents, "topology": self.settings.topology}
        if self.settings.topology.startswith("edges:"):
            names = self.settings.names
            incoming = graph.graph(0).incoming
            network["edges"] = [[names[i], names[j]] for i, own in enumerate(incoming) for j in own if i < j]
        _write_toml(self.folder.path / "network.toml", network)
        _write_toml(self.folder.path / SETTINGS, _without_none(self.settings.model_dump(mode="json")))
        run = _without_none(self.settings.model_dump(mode="json", exclude={"agents", "topology"}))
        for member, address in zip(self.members, addresses, strict=True):
            member.home.mkdir(exist_ok=True)
            agent = {"name": member.name, "listen": address, "home": "."}
            settings = run | {"agent": agent, "network": {"file": "../network.toml"}}
            _write_toml(member.home / "agent.toml", settings)

    def _checkpoints(self, tasks: Sequence[Task]) -> tuple[Tensor, list[Buffers], int]:
        """The agents' models `[n, d]` and buffers at the end of training, and the round that was."""
        x: list[Tensor] = []
        buffers: list[Buffers] = []
        rounds: set[int] = set()
        for member, task in zip(self.members, tasks, strict=True):
            tensors, meta = checkpoint.load(member.home / "checkpoint.safetensors")
            x.append(tensors["x"])
            buffers.append({name: tensors[f"buffer.{name}"] for name in task.buffers()})
            rounds.add(meta["round"])
        assert len(rounds) == 1
        return torch.stack(x), buffers, rounds.pop()

    def _metrics(self, rounds: int) -> Iterator[dict[str, Any]]:
        """One line a round, over the agents that did it; `missing` names those that left it out, because they
        were behind or away. The last round of training has a line in any case."""
        done: dict[int, dict[str, dict[str, Any]]] = {rounds: {}}
        for member in self.members:
            for line in read_metrics(member.home / "metrics.jsonl"):
                done.setdefault(line["round"], {})[member.name] = line
        for round, own in sorted(done.items()):
            lines = list(own.values())
            absent = [member.name for member in self.members if member.name not in own]
            missing = {"missing": absent} if absent else {}
            if not lines or round > rounds:
                apart = {"disagreement": max(line["disagreement"] for line in lines)} if lines else {}
                yield {"round": round, **apart, **missing}
                continue
            losses = [line["loss"] for line in lines]
            merged = {
                "round": round,
                **missing,
                "lr": lines[0]["lr"],
                "train_loss": None if None in losses else sum(losses) / len(losses),
                "round_s": max(line["round_s"] for line in lines),
                "exchange_s": max(line["exchange_s"] for line in lines),
            }
            accuracies = [line["test_accuracy"] for line in lines if line.get("test_accuracy") is not None]
            if accuracies:
                merged |= {
                    "mean_accuracy": sum(accuracies) / len(accuracies),
                    "worst_accuracy": min(accuracies),
                }
            test_losses = [line["test_loss"] for line in lines if line.get("test_loss") is not None]
            if test_losses:
                merged |= {
                    "mean_loss": sum(test_losses) / len(test_losses),
                    "worst_loss": max(test_losses),
                }
            yield merged

    def _end(self, number: signal.Signals) -> None:
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    member.process.send_signal(number)


def settings_of(out: Path) -> SimulationSettings:
    """The settings a swarm in `out` was started with. Raises `ConfigError` if there is none."""
    return config.load(SimulationSettings, out / SETTINGS)


def run(
    swarm: Swarm, tasks: Sequence[Task], observe: Callable[[list[Member]], None]
) -> dict[str, Any] | None:
    """Run a swarm to its end and gather its files; None if it was stopped before."""
    with swarm:
        for members in swarm.watch():
            observe(members)
    return swarm.gather(tasks) if swarm.finished else None


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _write_toml(path: Path, table: dict[str, Any]) -> None:
    write_atomically(path, tomli_w.dumps(table).encode())


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: a key that is not there means the default."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }

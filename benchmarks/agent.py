"""What one agent takes of a device: memory, CPU for each round, CPU while it waits.

    python benchmarks/agent.py

Two agents on loopback, one process each; the figures are those of the second, from /proc. *Busy* is a run of
`ROUNDS` rounds over gRPC with plaintext; *waiting* is an agent whose neighbour stays connected but does not
begin a round, so that all it does is to keep time, the connection, its page and the watchdog alive.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from p2pqg.telemetry import read_metrics
from p2pqg_simulator.swarm import free_ports

NAMES = ("agent-000", "agent-001")
ROUNDS = 60
WAIT_S = 30.0
STILL = f"{Path(__file__).with_name('tasks.py').resolve()}:make_still"
TASKS: dict[str, dict[str, Any]] = {
    "quadratic, 10 parameters": {"name": "quadratic"},
    "digits, 9,930 parameters": {"name": "digits"},
    "gossip alone, 1 M": {"name": STILL, "options": {"d": 1_000_000}},
    "gossip alone, 10 M": {"name": STILL, "options": {"d": 10_000_000}},
}
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """Of one process: CPU seconds so far; resident memory now and at its peak; what of it is not shared with
    files, in MiB."""

    cpu_s: float
    rss: float
    peak: float
    anonymous: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        memory = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith("kB")}
        cpu_s = (int(fields[11]) + int(fields[12])) / TICKS
        return cls(cpu_s, memory["VmRSS:"], memory["VmHWM:"], memory["RssAnon:"])


class Pair:
    """Two agents, as processes, until the block ends."""

    def __init__(self, folder: Path, task: dict[str, Any], rounds: int, **changes: Any) -> None:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
        agents = [{"name": name, "address": where} for name, where in zip(NAMES, addresses, strict=False)]
        (folder / "network.toml").write_text(tomli_w.dumps({"name": "benchmark", "agents": agents}))
        self.homes, self.files = [folder / name for name in NAMES], []
        for name, where in zip(NAMES, addresses, strict=False):
            settings = {
                "rounds": rounds,
                "task": task,
                "schedule": {"lr": 0.01},
                "finish": {"max_rounds": 0},
                "agent": {"name": name, "listen": where, "home": name, "checkpoint_every": 0} | changes,
                "network": {"file": "network.toml"},
            }
            if name == NAMES[1]:
                settings["telemetry"] = {"web": addresses[2]}
            self.files.append(folder / f"{name}.toml")
            self.files[-1].write_text(tomli_w.dumps(settings))

    def __enter__(self) -> Pair:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "p2pqg.cli.main", "join", "--config", str(file)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1", "WATCHDOG_USEC": "60000000"},
            )
            for file in self.files
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def usage(self) -> Usage:
        """Of the second agent."""
        return Usage.of(self.processes[1].pid)

    def wait_for_round(self, round: int) -> None:
        """Until the second agent has done so many rounds."""
        metrics = self.homes[1] / "metrics.jsonl"
        while not metrics.exists() or len(read_metrics(metrics)) < round:
            if self.processes[1].poll() is not None:
                raise SystemExit(f"{NAMES[1]} ended with exit code {self.processes[1].returncode}")
            time.sleep(0.01)


def busy(task: dict[str, Any]) -> tuple[Usage, float]:
    """Usage in the middle of a run, and CPU milliseconds a round."""
    with tempfile.TemporaryDirectory() as folder, Pair(Path(folder), task, 10**6) as pair:
        pair.wait_for_round(20)
        before, first = pair.usage(), len(read_metrics(pair.homes[1] / "metrics.jsonl"))
        pair.wait_for_round(first + ROUNDS)
        after, last = pair.usage(), len(read_metrics(pair.homes[1] / "metrics.jsonl"))
    return after, 1000 * (after.cpu_s - before.cpu_s) / (last - first)


def waiting(task: dict[str, Any]) -> float:
    """CPU share of an agent whose neighbour is stopped (SIGSTOP) in the middle of a round."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Pair(Path(folder), task, 10**6, round_timeout_s=1000.0) as pair,
    ):
        pair.wait_for_round(20)
        pair.processes[0].send_signal(signal.SIGSTOP)
        time.sleep(2)
        before, began = pair.usage(), time.monotonic()
        time.sleep(WAIT_S)
        share = (pair.usage().cpu_s - before.cpu_s) / (time.monotonic() - began)
        pair.processes[0].send_signal(signal.SIGCONT)
    return share


def torch_alone() -> Usage:
    """A process that has imported torch and nothing else."""
    script = "import torch, sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        usage = Usage.of(process.pid)
        process.kill()
    return usage


def main() -> None:
    alone = torch_alone()
    print(f"Python {platform.python_version()} on {platform.machine()}, one thread for torch")
    print(f"{'':<28}{'RSS':>9}{'of it own':>11}{'peak':>9}{'CPU a round':>14}")
    print(f"{'import torch':<28}{alone.rss:>6.0f} MiB{alone.anonymous:>7.0f} MiB{alone.peak:>6.0f} MiB")
    for name, task in TASKS.items():
        usage, cpu_ms = busy(task)
        print(
            f"{name:<28}{usage.rss:>6.0f} MiB{usage.anonymous:>7.0f} MiB{usage.peak:>6.0f} MiB"
            f"{cpu_ms:>11.1f} ms"
        )
    print(f"waiting for a neighbour: {waiting(TASKS['digits, 9,930 parameters']):.2%} of a core")


if __name__ == "__main__":
    main()

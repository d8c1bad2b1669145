"""`p2pqg simulate --engine distributed`: real processes, gloo between them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from p2pqg.cli.main import main
from p2pqg.config import SimulationSettings
from p2pqg.telemetry import read_metrics
from p2pqg_simulator import record
from p2pqg_simulator.commands import parameter_difference
from p2pqg_simulator.folder import RunFolder
from p2pqg_simulator.simulate import settings_from
from p2pqg_simulator.swarm import free_ports

OPTIONS: dict[str, Any] = {"agents": 5, "task": "quadratic", "dtype": "float64", "lr": 0.05}
pytestmark = pytest.mark.timeout(300)  # on a busy machine the imports alone take long

Start = Callable[..., "list[Rank]"]


@dataclass
class Rank:
    """One process and the file its stderr goes to."""

    process: BaseProcess
    errors: Path

    def send(self, number: int) -> None:
        """A signal."""
        assert self.process.pid
        os.kill(self.process.pid, number)

    def end(self) -> tuple[int | None, str]:
        """Exit code and the last line of stderr."""
        self.process.join(200)
        return self.process.exitcode, (self.errors.read_text().strip().splitlines() or [""])[-1]


def simulate(variables: dict[str, str], arguments: list[str], errors: Path) -> None:
    """What a process that torchrun started runs."""
    os.environ.update(variables)
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    sys.argv = ["p2pqg", "simulate", "--engine", "distributed", *arguments]
    main()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `p2pqg simulate` as so many ranks; nothing is left running after the test.

    They are forked from one fresh process that has imported everything, which spares each the imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["p2pqg_simulator.commands", "sklearn.datasets"])
    started: list[Rank] = []

    def begin(ranks: int, *arguments: object) -> list[Rank]:
        (port,) = free_ports(1)
        for rank in range(ranks):
            variables = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            errors = tmp_path / f"errors-{len(started)}"
            given = ({name: str(value) for name, value in variables.items()}, [*map(str, arguments)], errors)
            started.append(Rank(context.Process(target=simulate, args=given), errors))
            started[-1].process.start()
        return started[-ranks:]

    yield begin
    for rank in started:
        rank.process.kill()
        rank.process.join()


def finished(ranks: list[Rank]) -> list[tuple[int | None, str]]:
    return [rank.end() for rank in ranks]


def wait_for_rounds(folder: RunFolder, rounds: int) -> None:
    deadline = time.monotonic() + 200
    while not (folder.metrics.exists() and len(read_metrics(folder.metrics)) >= rounds):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def equal(a: Path, b: Path) -> None:
    assert float(parameter_difference(RunFolder(a), RunFolder(b))) <= 1e-12
    first, second = (read_metrics(RunFolder(path).metrics) for path in (a, b))
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert other == {
            key: value if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)
            for key, value in one.items()
        }


CASES = [
    ("qg-dsgdm-n", "ring", {}),
    ("dsgdm-n-gt", "ring", {}),
    ("slowmo", "ring", {"tau": 3}),
    ("sgdm-n", "ring", {}),
    ("qg-dsgdm-n", "complete", {}),
    ("dsgdm-n-gt", "one-peer-exponential", {}),
]
FEW = [CASES[0], CASES[-1]]


def settings(algorithm: str, graph: str, own: dict[str, int], rounds: int = 12) -> SimulationSettings:
    return settings_from({**OPTIONS, "algorithm": algorithm, "topology": graph, "algorithm_options": own,
                          "rounds": rounds, "eval_every": 5})  # fmt: skip


def command(algorithm: str, graph: str, own: dict[str, int], rounds: int = 12) -> list[str]:
    options = {**OPTIONS, "algorithm": algorithm, "topology": graph, "rounds": rounds, "eval_every": 5}
    pairs = [("algorithm-option", f"{key}={value}") for key, value in own.items()]
    pairs += [(key.replace("_", "-"), str(value)) for key, value in options.items()]
    return [text for key, value in pairs for text in (f"--{key}", value)]


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "case",
    [*FEW, *(pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in FEW)],
    ids=lambda case: f"{case[0]}-{case[1]}",
)
def test_ranks_are_one_process(case: Any, ranks: int, tmp_path: Path, start: Start) -> None:
    record(settings(*case), tmp_path / "one")
    assert finished(start(ranks, *command(*case), "--out", tmp_path / "ranks")) == [(0, "")] * ranks
    equal(tmp_path / "one", tmp_path / "ranks")


def test_a_stopped_run_goes_on_over_another_number_of_ranks(tmp_path: Path, start: Start) -> None:
    case, parts = CASES[1], tmp_path / "parts"
    record(settings(*case), tmp_path / "one")
    assert finished(start(2, *command(*case), "--stop-after", 3, "--out", parts)) == [(0, "")] * 2
    assert record(settings(*case), parts, resume=True, stop_after=7) is None
    assert finished(start(2, "--resume", "--out", parts)) == [(0, "")] * 2
    equal(tmp_path / "one", parts)


def test_bytes_between_ranks_are_those_of_the_rows_that_cross(tmp_path: Path, start: Start) -> None:
    """Agents 0, 1 and 2, 3, 4 on a ring: rows 0 and 1 cross one way, 2 and 4 the other, 10 numbers each."""
    finished(start(2, *command("slowmo", "ring", {"tau": 3}), "--out", tmp_path))
    summary = RunFolder(tmp_path).load_summary()
    assert summary["ranks"] == 2
    gossip = summary["bytes_between_ranks"]["gossip"]
    assert gossip == 4 * 10 * 8 * (12 + summary["gossip_rounds"])
    averages = 4 + 4  # SlowMo's in rounds 0, 3, 6, 9; the averaged model after 5, 10, 12 and at the end
    assert summary["bytes_between_ranks"]["means"] == averages * 2 * 10 * 8


def test_a_mistake_on_ranks_is_everybodys(tmp_path: Path, start: Start) -> None:
    too_many = start(2, *command("dsgd", "ring", {}), "--agents", 1, "--out", tmp_path / "a")
    diverging = start(2, *command("dsgd", "ring", {}, 900), "--lr", 1e6, "--out", tmp_path / "b")
    (code, error), other = finished(too_many)
    assert (code, error) == other
    assert (code, error) == (2, "Error: agents: expected at most 1 processes, one for each agent, found 2")
    (code, error), other = finished(diverging)
    assert (code, error) == other
    assert code == 1
    assert "is not finite" in error


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_dead_or_silent_rank_ends_the_others(number: int, tmp_path: Path, start: Start) -> None:
    survivor, victim = start(
        2, *command("dsgd", "ring", {}, 10**6), "--rank-timeout", 5, "--out", tmp_path / "out"
    )
    wait_for_rounds(RunFolder(tmp_path / "out"), 3)
    victim.send(number)
    code, error = survivor.end()
    assert code == 1
    assert "Error: rank 0: another rank is gone, or silent for 5 s" in error


def test_an_interrupted_run_can_go_on(tmp_path: Path, start: Start) -> None:
    case, out = CASES[-1], tmp_path / "out"
    ranks = start(2, *command(*case, 10**6), "--out", out)
    wait_for_rounds(RunFolder(out), 5)
    ranks[1].send(signal.SIGINT)
    assert finished(ranks) == [(130, "interrupted")] * 2
    iterate, _ = RunFolder(out).load_iterate(torch.device("cpu"))
    assert iterate.round == len(read_metrics(RunFolder(out).metrics))
    longer = settings(*case, iterate.round + 3)
    record(longer, out, resume=True)
    record(longer, tmp_path / "whole")
    equal(tmp_path / "whole", out)


@pytest.mark.slow
def test_torchrun_as_documented(tmp_path: Path) -> None:
    case = CASES[0]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "p2pqg"]
    simulate = ["simulate", "--engine", "distributed", *command(*case), "--out", str(tmp_path / "ranks")]
    done = subprocess.run([*torchrun, *simulate], capture_output=True, text=True, check=True)
    assert done.stdout.count("Results are in") == 1
    record(settings(*case), tmp_path / "one")
    equal(tmp_path / "one", tmp_path / "ranks")
    refused = subprocess.run(
        [*torchrun, "simulate", "--out", str(tmp_path / "x")], capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "engine: expected distributed under torchrun, found auto" in refused.stderr
    assert not (tmp_path / "x").exists()

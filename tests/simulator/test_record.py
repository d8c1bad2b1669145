"""A run's folder: complete, readable, and the same whether or not the run was interrupted."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from p2pqg.algorithms import ALGORITHMS, build, hyper_parameters
from p2pqg.errors import ConfigError, StorageError, TrainingDiverged
from p2pqg.telemetry import read_metrics
from p2pqg_simulator import Iterate, Simulation, record
from p2pqg_simulator.columns import blocks_of
from p2pqg_simulator.folder import RunFolder
from p2pqg_simulator.simulate import settings_from

QUADRATIC = {"agents": 5, "task": "quadratic", "task_options": {"noise": 0.3}, "rounds": 12, "lr": 0.05}

FILES = ("metrics.jsonl", "model.safetensors", "local-models.safetensors", "model.json")

NORMALISED = """
import torch
from torch import nn
from p2pqg import seeds
from p2pqg.tasks.supervised import SupervisedTask

def make_task(context):
    random = seeds.generator(context.seed, "data", context.agent)
    inputs = torch.randn(14 + context.index, 6, generator=random)
    targets = torch.randint(0, 3, (len(inputs),), generator=random)
    net = lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3))
    return SupervisedTask(net, (inputs, targets), (inputs, targets), agent=context.agent,
                          seed=context.seed, batch_size=6)
"""


def run(out: Path, options: dict, **how) -> dict | None:
    return record(settings_from(options), out, **how)


def same_files(a: Path, b: Path) -> None:
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    summaries = [RunFolder(path).load_summary() for path in (a, b)]
    for summary in summaries:
        assert summary.pop("wall_s") > 0
        assert summary.pop("cpu_s") > 0
    assert summaries[0] == summaries[1]
    (first, _), (second, _) = (RunFolder(path).load_iterate(torch.device("cpu")) for path in (a, b))
    assert torch.equal(first.x, second.x)
    assert first.state.keys() == second.state.keys()
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_stopped_and_resumed_is_never_stopped(algorithm: str, dtype: str, tmp_path: Path) -> None:
    options = QUADRATIC | {
        "algorithm": algorithm, "dtype": dtype, "eval_every": 4, "milestones": [9],
        "local_steps": 2 if build(algorithm).multi_step else 1, "topology": "one-peer-exponential",
    }  # fmt: skip
    if "tau" in hyper_parameters(algorithm):
        options["algorithm_options"] = {"tau": 3}
    run(tmp_path / "whole", options)
    for stop in (1, 7):
        assert run(tmp_path / "parts", options, stop_after=stop, resume=stop > 1) is None
    run(tmp_path / "parts", options, resume=True)
    same_files(tmp_path / "whole", tmp_path / "parts")


def test_resume_is_exact_with_buffers_and_dropout(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(NORMALISED)
    options = {"agents": 4, "task": f"{tmp_path}/task.py:make_task", "rounds": 10, "eval_every": 5}
    run(tmp_path / "whole", options)
    run(tmp_path / "parts", options, stop_after=4)
    run(tmp_path / "parts", options, resume=True)
    same_files(tmp_path / "whole", tmp_path / "parts")
    assert "1.running_mean" in load_file(tmp_path / "whole" / "model.safetensors")


def test_resume_keeps_the_engine_it_began_with(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(NORMALISED.replace("nn.BatchNorm1d(5), nn.Dropout(0.3)", "nn.ReLU()"))
    options = {"agents": 6, "task": f"{tmp_path}/task.py:make_task", "rounds": 10}
    for engine in ("loop", "vmap"):
        run(tmp_path / engine, options, engine=engine)
        run(tmp_path / f"{engine} parts", options, engine=engine, stop_after=5)
        run(tmp_path / f"{engine} parts", options, resume=True)
        same_files(tmp_path / engine, tmp_path / f"{engine} parts")
        assert RunFolder(tmp_path / engine).load_summary()["engine"] == engine


def test_an_interrupted_run_can_go_on(tmp_path: Path) -> None:
    options = QUADRATIC | {"eval_every": 5}
    run(tmp_path / "whole", options)

    def interrupt(iterate) -> None:
        if iterate.round == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", options, observe=interrupt)
    assert not (tmp_path / "parts" / "summary.json").exists()
    run(tmp_path / "parts", options, resume=True)
    same_files(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("block", "saved"), [(0, 5), (1, 6)])
def test_ctrl_c_leaves_a_whole_round(
    block: int, saved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the round has written over nothing yet, and when it has over the first block."""
    monkeypatch.setattr("p2pqg_simulator.engine.blocks", lambda n, d, *_: blocks_of(4, d))
    options = QUADRATIC | {"algorithm": "dsgdm-n-gt"}
    run(tmp_path / "whole", options)
    exchange, calls = Simulation.exchange, Counter[int]()

    def interrupted(self: Simulation, vectors: tuple[Tensor, ...], round: int) -> tuple[Tensor, ...]:
        calls[round] += 1
        if (round, calls[round]) == (5, block + 1):
            signal.raise_signal(signal.SIGINT)
        return exchange(self, vectors, round)

    with monkeypatch.context() as patched:
        patched.setattr(Simulation, "exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", options)
    assert RunFolder(tmp_path / "parts").load_iterate(torch.device("cpu"))[0].round == saved
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(tmp_path / "parts", options, resume=True)
    same_files(tmp_path / "whole", tmp_path / "parts")


def test_whoever_insists_leaves_with_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pqg_simulator.engine.blocks", lambda n, d, *_: blocks_of(4, d))
    run(tmp_path, QUADRATIC, stop_after=3)

    def insist(iterate: Iterate) -> None:
        if iterate.round == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, QUADRATIC, resume=True, observe=insist)
    assert RunFolder(tmp_path).load_iterate(torch.device("cpu"))[0].round == 3


def test_a_finished_run_can_be_prolonged_but_not_changed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, QUADRATIC)
    assert run(out, QUADRATIC | {"rounds": 20}, resume=True)["rounds"] == 20
    with pytest.raises(ConfigError, match=r"schedule\.lr: expected 0\.05, as the run began, found 0\.1"):
        run(out, QUADRATIC | {"rounds": 20, "lr": 0.1}, resume=True)
    with pytest.raises(ConfigError, match="empty folder"):
        run(out, QUADRATIC)


def test_what_is_written_says_what_happened(tmp_path: Path) -> None:
    out = tmp_path / "run"
    seen = []
    summary = run(out, QUADRATIC | {"eval_every": 5}, observe=seen.append)
    metrics = read_metrics(out / "metrics.jsonl")
    assert [line["round"] for line in metrics] == [iterate.round for iterate in seen]
    trained, gossiped = metrics[:12], metrics[12:]
    assert [line["round"] for line in trained if "mean_loss" in line] == [5, 10, 12]
    assert all(line["lr"] == 0.05 and line["train_loss"] > 0 for line in trained)
    assert len(gossiped) == summary["gossip_rounds"] > 0
    assert gossiped[-1]["disagreement"] <= 1e-3
    assert summary["best"]["mean_loss"] == min(line["mean_loss"] for line in trained if "mean_loss" in line)
    assert summary["last"]["consensus"] == trained[-1]["consensus"]
    assert summary["final"]["consensus"] == gossiped[-1]["consensus"] < trained[-1]["consensus"]
    assert summary["bytes_sent"]["max"] == 2 * 10 * 4 * len(metrics)
    x, names = RunFolder(out).load_local_models()
    assert names == [f"agent-00{i}" for i in range(5)]
    torch.testing.assert_close(load_file(out / "model.safetensors")["x"], x.mean(0))
    card = json.loads((out / "model.json").read_text())
    assert card["final"] == summary["final"]
    assert card["settings"]["algorithm"]["name"] == "qg-dsgdm-n"


def test_centralised_methods_share_the_data_out_at_random(tmp_path: Path) -> None:
    options = {"agents": 3, "rounds": 1, "algorithm": "sgdm-n"}
    assert run(tmp_path / "a", options)["settings"]["task"]["partition"] == "iid"
    told = run(tmp_path / "b", options | {"partition": "dirichlet"})
    assert told["settings"]["task"]["partition"] == "dirichlet"
    assert told["last"]["train_loss"] != RunFolder(tmp_path / "a").load_summary()["last"]["train_loss"]


def test_the_last_good_checkpoint_survives_a_divergence(tmp_path: Path) -> None:
    # The rate explodes when the warm-up is over.
    options = QUADRATIC | {"warmup_steps": 300, "warmup_from": 0.01, "lr": 1e6, "rounds": 600}
    run(tmp_path, options, stop_after=1)
    good = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(TrainingDiverged, match=r"agent-00\d.*: round \d+: the \w+ is not finite"):
        run(tmp_path, options, resume=True)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == good
    assert not (tmp_path / "summary.json").exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run(tmp_path, QUADRATIC, stop_after=3)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"checkpoint\.safetensors: corrupted"):
        run(tmp_path, QUADRATIC, resume=True)

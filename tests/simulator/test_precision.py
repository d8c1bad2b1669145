"""Gradients and scores in less than float32; everything else stays float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from sample_tasks import supervised
from torch import nn

from p2pqg.errors import ConfigError
from p2pqg.tasks import SupervisedTask
from p2pqg.tasks.augmentation import ImageTransform
from p2pqg.tasks.precision import arithmetic
from p2pqg_simulator import experiments
from p2pqg_simulator.commands import simulate as simulate_command
from p2pqg_simulator.commands import swarm as swarm_command
from p2pqg_simulator.experiments import recipes
from p2pqg_simulator.experiments.base import Plan
from p2pqg_simulator.experiments.published import table
from p2pqg_simulator.experiments.records import Record, Records
from p2pqg_simulator.folder import RunFolder
from p2pqg_simulator.gradients import Compiled, Gradients, Loop, Vmap
from p2pqg_simulator.report import render
from p2pqg_simulator.simulate import simulate

BFLOAT16 = 2.0**-8
"""Relative error of a rounding."""


def dense(n: int = 4) -> list[SupervisedTask]:
    def module() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))

    tasks = supervised([12] * n, module=module)
    for task in tasks:
        task.train = (task.train[0].float(), task.train[1])
        task.test = (task.test[0].float(), task.test[1])
    return tasks


def images(n: int = 4) -> list[SupervisedTask]:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8 * n, 3, 8, 8), dtype=torch.uint8, generator=random)

    def module() -> nn.Module:
        convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.GroupNorm(2, 8), nn.Tanh(), nn.Flatten(), nn.Linear(512, 3))

    return [
        SupervisedTask(
            module,
            train=(pixels[8 * i : 8 * i + 8], torch.arange(8) % 3),
            test=(pixels[:4], torch.arange(4) % 3),
            agent=f"agent-{i}",
            seed=0,
            batch_size=8,
            transform=ImageTransform((0.5,) * 3, (0.25,) * 3, torch.float32, "flip-crop"),
        )
        for i in range(n)
    ]


def in_precision(tasks: list[SupervisedTask], precision: str, engine: Callable[..., Gradients]) -> Gradients:
    for task in tasks:
        task.precision = precision
    return engine(tasks)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).max())


@pytest.mark.parametrize("engine", [Loop, Vmap, pytest.param(Compiled, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("make", "roundings"), [(dense, 2), (images, 10)], ids=["dense", "convolutions"])
def test_bfloat16_gradients_are_close_to_those_in_float32(
    engine: Callable[..., Gradients], make: Callable[[], list[SupervisedTask]], roundings: int
) -> None:
    tasks = make()
    x = torch.stack([tasks[0].init(seed) for seed in range(4)])
    expected, losses = in_precision(tasks, "float32", Loop)(x, [{}] * 4, 0)
    g, own_losses = in_precision(tasks, "bfloat16", engine)(x, [{}] * 4, 0)
    assert g.dtype == own_losses.dtype == torch.float32
    assert BFLOAT16 / 100 < relative(g, expected) < roundings * BFLOAT16
    torch.testing.assert_close(own_losses, losses, rtol=10 * BFLOAT16, atol=0)


def test_scores_are_computed_in_it_too() -> None:
    (task,) = dense(1)
    x = task.init(1)
    full = task.evaluate(x, {})
    task.precision = "bfloat16"
    rounded = task.evaluate(x, {})
    assert rounded.loss != full.loss
    assert rounded.loss == pytest.approx(full.loss, rel=4 * BFLOAT16)


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_state_and_models_stay_float32(engine: str) -> None:
    options = {"agents": 4, "rounds": 3, "lr": 0.1, "engine": engine, "algorithm": "qg-dsgdm-n"}
    runs = {p: list(simulate(precision=p, **options)) for p in ("float32", "bfloat16")}
    trained = [iterate for iterate in runs["bfloat16"] if iterate.agreement is None]
    for iterate in trained:
        assert iterate.x.dtype == iterate.losses.dtype == torch.float32
        assert all(vector.dtype == torch.float32 for vector in iterate.state.values())
    assert not torch.equal(trained[-1].x, runs["float32"][len(trained) - 1].x)
    # Not what a model rounded to bfloat16 would be: most numbers have digits behind the seventh bit.
    assert (trained[-1].x != trained[-1].x.bfloat16().float()).float().mean() > 0.9


def test_digits_are_learnt_in_bfloat16() -> None:
    last = list(simulate(agents=4, rounds=60, lr=0.1, alpha=10.0, precision="bfloat16"))[-1]
    assert last.scores is not None
    assert last.scores.averaged.accuracy > 0.9


def told(command: click.Command, *arguments: object) -> str:
    """What is wrong with the arguments; nothing if the command ran."""
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, ConfigError), done.exception
    return str(done.exception or "")


def test_a_run_resumes_bit_for_bit_and_in_its_precision_only(tmp_path: Path) -> None:
    run = partial(told, simulate_command)
    bfloat16 = ["-n", 4, "--rounds", 6, "--precision", "bfloat16"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert not run(*bfloat16, "--out", whole)
    assert not run(*bfloat16, "--stop-after", 3, "--out", parts)
    other = run("--resume", "--precision", "float32", "--out", parts)
    assert "task.precision: expected 'bfloat16', as the run began, found 'float32'" in other
    assert not run("--resume", "--out", parts)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert RunFolder(parts).load_summary()["settings"]["task"]["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["float16"], "task.precision: expected 'float32', 'tf32' or 'bfloat16', found 'float16'"),
        (["bfloat16", "--dtype", "float64"], "bfloat16 expects a model in float32, found float64"),
        (["bfloat16", "--task", "quadratic"], "bfloat16 expects a SupervisedTask, found Quadratic"),
        (["tf32"], "expected float32 or bfloat16 on cpu, found tf32"),
        (["bfloat16", "--dp", "--noise-multiplier", "1"], "bfloat16 expects gradients without differential"),
    ],
)
@pytest.mark.parametrize("command", [simulate_command, swarm_command])
def test_what_cannot_be_is_refused(
    command: click.Command, arguments: list[str], expected: str, tmp_path: Path
) -> None:
    assert expected in told(command, "--precision", *arguments, "--out", tmp_path / "run")


def test_tf32_switches_are_left_as_they_were() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    assert before == (False, True)  # what torch does unless it is told otherwise
    for precision, allowed in (("float32", False), ("tf32", True), ("bfloat16", False)):
        with suppress(KeyError), arithmetic(precision, torch.device("cuda")):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
            raise KeyError
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before
    with arithmetic("tf32", torch.device("cpu")):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before


# ---- records


CASE = next(row.cell for row in table("1") if row.mean == 82.2)


def test_another_precision_makes_other_records(tmp_path: Path) -> None:
    (tmp_path / "cifar10").touch()
    experiment = experiments.load("table1")
    asked = Plan(
        data=tmp_path, cell={key: str(CASE[key]) for key in ("method", "alpha", "topology", "model")}
    )
    usual = experiment.pending(asked, [])
    rounded = experiment.pending(replace(asked, precision="bfloat16"), [])
    assert [case | {"precision": "bfloat16"} for case in usual] == rounded
    assert recipes.settings(rounded[0], replace(asked, precision="bfloat16")).task.precision == "bfloat16"
    with pytest.raises(ConfigError, match="because no network is trained here"):
        experiments.load("figure3").pending(replace(asked, precision="bfloat16"), [])


def test_reports_tell_precisions_apart(tmp_path: Path) -> None:
    records = Records(tmp_path, "training")
    for accuracy, more in ((0.84, {}), (0.81, {"precision": "bfloat16"})):
        scores = {"mean_accuracy": accuracy, "worst_accuracy": accuracy, "averaged_accuracy": accuracy}
        result = {"diverged": None, "best": scores, "last": scores, "settings": {"task": {"data": None}}}
        records.append(
            Record("training", "full", {**CASE, "lr": 0.1, "seed": 0, **more}, result, {"wall_s": 1.0})
        )
    usual, _, rounded = (
        render(["table1"], tmp_path, tmp_path / "out")
        .read_text()
        .partition("The paper's own scale. Gradients and scores were computed in bfloat16.")
    )
    assert "| 84.00 |" in usual
    assert "| 81.00 |" not in usual
    assert "| 81.00 |" in rounded
    assert "| 84.00 |" not in rounded

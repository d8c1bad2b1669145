"""The example of docs/your-own-task.md runs as it stands on the page."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from p2pqg.errors import ConfigError
from p2pqg.tasks import Task, TaskContext, load_task_factory

PAGE = (Path(__file__).parents[2] / "docs" / "your-own-task.md").read_text()


def block(language: str) -> str:
    (only,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(only)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example's files, with three separable diagnoses and hospitals of unequal size."""
    (tmp_path / "wards.py").write_text(block("python"))
    (tmp_path / "data").mkdir()
    random = np.random.default_rng(0)
    centres = 3 * random.normal(size=(3, 12))
    for name, patients in {"north": 90, "south": 40, "held-out": 60}.items():
        diagnosis = np.arange(patients) % 3
        measurements = centres[diagnosis] + random.normal(size=(patients, 12))
        np.savez(tmp_path / "data" / f"{name}.npz", measurements=measurements, diagnosis=diagnosis)
    return tmp_path


def task(folder: Path, agent: str, **options: object) -> Task:
    table = tomllib.loads(block("toml"))["task"]
    context = TaskContext(
        agent=agent,
        agents=("north", "south"),
        seed=0,
        batch_size=table["batch_size"],
        data=folder / table["data"],
        options=table["options"] | options,
    )
    return load_task_factory(table["name"], folder)(context)


def test_the_example_is_as_short_as_promised() -> None:
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 25


def test_both_hospitals_train_from_the_same_start(folder: Path) -> None:
    tasks = [task(folder, "north"), task(folder, "south")]
    assert [t.samples for t in tasks] == [90, 40]
    assert tasks[0].spec == tasks[1].spec
    assert tasks[0].spec.names == ("0.weight", "0.bias", "3.weight", "3.bias")
    assert tasks[0].spec.shapes[0] == (48, 12)
    start = tasks[0].init(0)
    assert (start == tasks[1].init(0)).all()
    for one in tasks:
        x = start
        for step in range(30):
            x = x - 0.1 * one.gradient(x, one.buffers(), step).g
        before, after = one.evaluate(start, one.buffers()), one.evaluate(x, one.buffers())
        assert after.loss < before.loss / 2
        assert after.samples == 60


def test_total_samples_is_unknown_unless_given(folder: Path) -> None:
    assert task(folder, "north").total_samples is None
    assert task(folder, "north", total_samples=130).total_samples == 130


def test_a_hospital_without_data_is_told_which_file_is_missing(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"east\.npz: task\.data: expected a file, found none"):
        task(folder, "east")

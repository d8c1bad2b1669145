"""The examples of docs/python-api.md run as they are printed, and the generator is what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from sample_tasks import supervised

from p2pqg.errors import ConfigError
from p2pqg_simulator import consensus_distance, simulate

PAGE = Path(__file__).parents[2] / "docs" / "python-api.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_ten_lines_train_sixteen_agents(capsys: pytest.CaptureFixture[str]) -> None:
    code = examples()[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names: dict = {}
    exec(code, names)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(line[0]) for line in printed[:3]] == [20, 40, 60]
    accuracies = [float(line[1].rstrip("%")) for line in printed]
    assert accuracies[-1] > 85
    assert accuracies[-1] > accuracies[0]
    assert names["averaged"].shape == names["iterate"].x[0].shape


def test_iterates_can_be_branched() -> None:
    names: dict = {}
    exec(examples()[1], names)
    assert names["here"].round == names["there"].round == 11
    assert consensus_distance(names["there"].x) < 1e-6 < consensus_distance(names["here"].x)


def test_a_task_may_be_a_function() -> None:
    tasks = {task.agent: task for task in supervised([10, 10, 10])}
    iterates = list(simulate(agents=3, task=lambda context: tasks[context.agent], rounds=4, finish_rounds=2))
    assert [iterate.round for iterate in iterates] == [1, 2, 3, 4, 5, 6]
    assert [iterate.loss is None for iterate in iterates] == [False] * 4 + [True] * 2
    assert torch.equal(iterates[0].x, next(simulate(agents=3, task=lambda c: tasks[c.agent], rounds=1)).x)


def test_mistakes_are_reported_before_the_first_round() -> None:
    with pytest.raises(ConfigError, match="unknown option"):
        simulate(learning_rate=0.1)
    with pytest.raises(ConfigError, match=r"schedule\.lr"):
        simulate(lr=-1)

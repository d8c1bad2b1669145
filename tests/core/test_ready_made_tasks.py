"""Digits and quadratics, and how tasks are found by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from p2pqg.errors import ConfigError
from p2pqg.tasks import TASKS, SupervisedTask, Task, TaskContext, load_task_factory
from p2pqg.tasks.digits import PIXEL_MEAN, PIXEL_STD
from p2pqg.tasks.quadratic import QuadraticTask

AGENTS = tuple(f"agent-{i:03d}" for i in range(8))


def context(agent: str = AGENTS[0], **settings: Any) -> TaskContext:
    return TaskContext(**({"agent": agent, "agents": AGENTS, "seed": 1, "alpha": 0.1} | settings))


def digits(agent: str = AGENTS[0], **settings: Any) -> SupervisedTask:
    task = TASKS["digits"](context(agent, **settings))
    assert isinstance(task, SupervisedTask)
    return task


def quadratics(**settings: Any) -> list[QuadraticTask]:
    tasks = [TASKS["quadratic"](context(agent, **settings)) for agent in AGENTS]
    return [task for task in tasks if isinstance(task, QuadraticTask)]


def rows(inputs: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in inputs}


def test_agents_hold_disjoint_shares_of_the_training_images_only() -> None:
    tasks = [digits(agent) for agent in AGENTS]
    assert [task.samples for task in tasks] == [1437 // 8] * 8
    assert {task.total_samples for task in tasks} == {1437 // 8 * 8}
    shares = [rows(task.train[0]) for task in tasks]
    assert len(set.union(*shares)) == sum(map(len, shares)) == 1437 // 8 * 8
    assert not set.union(*shares) & rows(tasks[0].test[0])
    for task in tasks:
        assert task.train[0].untyped_storage().nbytes() == task.train[0].nbytes


def test_held_out_images_are_stratified_and_the_same_in_every_run() -> None:
    a, b = digits(seed=1), digits(AGENTS[3], seed=2, partition="iid", agents=AGENTS[:5])
    assert torch.equal(a.test[0], b.test[0])
    assert torch.equal(a.test[1], b.test[1])
    assert torch.bincount(a.test[1]).tolist() == [36] * 10


def test_images_are_scikit_learns_standardised() -> None:
    pixels = load_digits().images
    assert pytest.approx([pixels.mean(), pixels.std()], abs=1e-3) == [PIXEL_MEAN, PIXEL_STD]
    original = {image.astype(np.float64).tobytes() for image in pixels}
    restored = digits(dtype=torch.float64).test[0] * PIXEL_STD + PIXEL_MEAN
    assert {image.round().numpy().tobytes() for image in restored} <= original


def test_digits_honours_dtype_width_and_partition() -> None:
    assert digits(dtype=torch.float64).init(0).dtype == torch.float64
    for width in (4, 16):
        assert digits(options={"width": width}).spec.d == 18 * width**2 + 332 * width + 10
    plain = [digits(agent, partition="dirichlet-plain") for agent in AGENTS]
    assert sum(task.samples for task in plain) == 1437 == plain[0].total_samples
    assert len({task.samples for task in plain}) > 1


def test_digits_can_be_learnt() -> None:
    """Three epochs of plain SGD on all images: a linear classifier gets about 0.93."""
    task = digits(agents=AGENTS[:1], partition="iid")
    x = task.init(0)
    for step in range(3 * task.steps_per_epoch):
        x = x - 0.2 * task.gradient(x, {}, step).g
    accuracy = task.evaluate(x, {}).accuracy
    assert accuracy is not None
    assert accuracy > 0.94


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "task.options.width: expected 1 or more, found 0"),
        ({"width": "16"}, "task.options.width: expected int, found '16'"),
        ({"width": True}, "task.options.width: expected int, found True"),
        ({"depth": 3}, "task.options.depth: expected width, found depth"),
    ],
)
def test_digits_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        digits(options=options)


def test_digits_refuses_more_agents_than_images() -> None:
    many = tuple(map(str, range(1438)))
    with pytest.raises(ConfigError, match="between 1 and 1437 agents"):
        digits("0", agents=many)


def test_quadratic_gradient_is_the_derivative_of_its_loss() -> None:
    task = quadratics(dtype=torch.float64)[2]
    x = task.init(3)
    g = task.gradient(x, {}, 0).g
    for direction in torch.eye(len(x), dtype=torch.float64):
        ahead, behind = (task.gradient(x + h * direction, {}, 0).loss for h in (1e-3, -1e-3))
        assert float((ahead - behind) / 2e-3) == pytest.approx(float(g @ direction), abs=1e-9)


@pytest.mark.parametrize("heterogeneity", [0.0, 2.0])
def test_quadratic_optimum_minimises_the_mean_of_all_agents(heterogeneity: float) -> None:
    tasks = quadratics(dtype=torch.float64, options={"heterogeneity": heterogeneity})
    best = tasks[0].optimum()
    gradients = torch.stack([task.gradient(best, {}, 0).g for task in tasks])
    assert gradients.mean(0).abs().max() < 1e-14
    assert (gradients.abs().max() < 1e-13) == (heterogeneity == 0)
    x = tasks[0].init(0)
    for at in (best, x):
        mean_loss = sum(float(task.gradient(at, {}, 0).loss) for task in tasks) / len(tasks)
        assert tasks[5].evaluate(at, {}).loss == pytest.approx(mean_loss, abs=1e-13)
    assert tasks[0].evaluate(x, {}).loss > tasks[0].evaluate(best, {}).loss
    assert tasks[0].evaluate(x, {}).accuracy is None


def test_quadratic_noise_is_drawn_by_agent_and_step_about_the_exact_gradient() -> None:
    exact, noisy = quadratics(dtype=torch.float64), quadratics(dtype=torch.float64, options={"noise": 0.5})
    x = exact[0].init(0)
    errors = torch.stack([noisy[0].gradient(x, {}, t).g - exact[0].gradient(x, {}, t).g for t in range(1000)])
    assert torch.equal(noisy[0].gradient(x, {}, 7).g, noisy[0].gradient(x, {}, 7).g)
    assert float(errors.std()) == pytest.approx(0.5, rel=0.05)
    assert float(errors.mean()) == pytest.approx(0, abs=0.02)
    other = noisy[1].gradient(x, {}, 0).g - exact[1].gradient(x, {}, 0).g
    assert not torch.allclose(other, errors[0])


def test_quadratic_spectrum_and_dtype() -> None:
    tasks = quadratics(options={"d": 5, "condition": 100.0})
    assert tasks[0].spec.dtype == torch.float32
    for task in tasks:
        values = torch.linalg.eigvalsh(task.A)
        assert values.tolist() == pytest.approx([0.01, 0.0316228, 0.1, 0.316228, 1.0], rel=1e-3)


@pytest.mark.parametrize(
    ("key", "value"), [("d", 0), ("heterogeneity", -1.0), ("condition", 0.5), ("noise", -1)]
)
def test_quadratic_options_are_checked(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"task.options.{key}: expected \d or more, found {value}"):
        quadratics(options={key: value})


@pytest.mark.parametrize("name", ["digits", "quadratic"])  # the others need data
def test_ready_made_tasks_keep_the_contract(name: str) -> None:
    task = load_task_factory(name, Path())(context())
    assert isinstance(task, Task)
    x = task.init(0)
    assert x.shape == (task.spec.d,)
    assert x.dtype == task.spec.dtype
    assert torch.equal(x, load_task_factory(name, Path())(context(AGENTS[1], seed=9)).init(0))
    result = task.gradient(x, task.buffers(), 0)
    assert result.g.shape == x.shape
    assert result.loss.shape == ()


OWN = """
from p2pqg.tasks.quadratic import make_task as quadratic
answer = 42
def make_task(context):
    return quadratic(context)
def nothing(context):
    return object()
def broken(context):
    return {}["missing"]
"""


def test_own_task_from_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.py").write_text(OWN)
    assert isinstance(load_task_factory("tasks/mine.py:make_task", tmp_path)(context()), Task)
    assert isinstance(load_task_factory(f"{tmp_path}/tasks/mine.py:make_task", Path())(context()), Task)


def test_own_task_from_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tasks_for_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_tasks_for_test", raising=False)
    assert isinstance(load_task_factory("my_tasks_for_test:make_task", Path())(context()), Task)


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text("def make_task(context): raise KeyError('first')")
    with pytest.raises(ConfigError, match="first"):
        load_task_factory("mine.py:make_task", tmp_path)(context())
    source.write_text("def make_task(context): raise KeyError('the second')")
    with pytest.raises(ConfigError, match="the second"):
        load_task_factory("mine.py:make_task", tmp_path)(context())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "digits, quadratic, .*, my_module:make_task or path/to/file.py:make_task, found 'digit'"),
        (":make_task", "found ':make_task'"),
        ("mine.py:", "found 'mine.py:'"),
        ("absent.py:make_task", "expected a Python file, found none at .*absent.py"),
        ("no_such_module:make_task", "expected a module that Python can import.*found 'no_such_module'"),
        ("p2pqg.nowhere:make_task", "expected a module that Python can import.*found 'p2pqg.nowhere'"),
        (".relative:make_task", "importing .relative raised TypeError"),
        ("mine.py:absent", "expected a function absent in mine.py, found nothing of that name"),
        ("mine.py:answer", "expected a function answer in mine.py, found 42"),
        ("raises.py:make_task", "importing .*raises.py raised ZeroDivisionError"),
        ("syntax.py:make_task", "importing .*syntax.py raised SyntaxError"),
        ("exits.py:make_task", "importing .*exits.py raised SystemExit"),
        ("imports.py:make_task", "importing .*imports.py raised ModuleNotFoundError.*no_such_library"),
        (
            "mine.py:nothing",
            "expected mine.py:nothing to return a Task, found object without spec, samples",
        ),
        ("mine.py:broken", "mine.py:broken raised KeyError: 'missing'"),
    ],
)
def test_whatever_is_wrong_with_an_own_task_is_a_config_error(
    name: str, message: str, tmp_path: Path
) -> None:
    files = {
        "mine.py": OWN,
        "raises.py": "1 / 0",
        "syntax.py": "def",
        "exits.py": "raise SystemExit(0)",
        "imports.py": "import no_such_library",
    }
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_task_factory(name, tmp_path)(context())
    assert caught.value.key == "task.name"

"""examples/hospitals: what its page says can be typed, its settings are read, and it runs from end to end."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
from processes import ENVIRONMENT
from safetensors.torch import save_file

from p2pqg.cli.main import cli
from p2pqg.cli.templates import agent_toml, member_toml
from p2pqg.config import AgentSettings, NetworkFile, SimulationSettings, load, validate
from p2pqg.privacy import protect_agent
from p2pqg.tasks import TaskContext, load_task_factory

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "hospitals"
PAGE = (EXAMPLE / "README.md").read_text(encoding="utf-8")
DATA = ROOT.parent / "shared" / "data" / "pneumoniamnist.npz"


def program(name: str) -> ModuleType:
    """A file of the example as a module."""
    specification = importlib.util.spec_from_file_location(f"hospitals_{name}", EXAMPLE / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


run, deal, xrays = program("run"), program("deal"), program("xrays")
SITES = list(run.addresses(PAGE))


@pytest.fixture
def dealt(tmp_path: Path) -> Path:
    """A folder with the files of all sites, of images that mean nothing."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in {"train": 400, "test": 80}.items():
        arrays[f"{part}_images"] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 4 > 0).astype(np.uint8)[:, None]
    np.savez(tmp_path / "all.npz", **arrays)
    deal.deal(tmp_path / "all.npz", tmp_path)
    return tmp_path


def test_every_command_of_the_page_can_be_typed() -> None:
    found = [command for part in run.parts(PAGE) for command in part.commands]
    assert {machine for machine, _ in found} == set(SITES)
    typed = [shlex.split(command)[1:] for _, command in found if command.startswith("p2pqg")]
    assert {words[0] for words in typed} >= {"network", "init", "install", "join", "status", "evaluate"}
    for words in typed:
        arguments = words[: words.index(">")] if ">" in words else words
        group: click.Command = cli
        while isinstance(group, click.Group):
            found_command = group.get_command(click.Context(group), arguments.pop(0))
            assert found_command is not None, words
            group = found_command
        group.make_context("p2pqg", arguments)  # parses, and does nothing else


def test_the_waits_of_the_page_are_understood(tmp_path: Path) -> None:
    machines = run.Machines(tmp_path, {})
    (tmp_path / "chur" / "chur").mkdir(parents=True)
    (tmp_path / "chur" / "chur" / "metrics.jsonl").write_text('{"round": 41}\n')
    first, second, last = [part.wait for part in run.parts(PAGE) if part.wait]
    machines.wait(first, run.Console())
    assert "bern" in second
    machines.wait(last, run.Console())


def test_the_settings_are_read_and_agree(dealt: Path) -> None:
    options = (dealt / "options.toml").read_text()
    (dealt / "network.toml").write_text(
        (EXAMPLE / "network.toml").read_text()
        + options
        + "".join(member_toml(site, "127.0.0.1:7000") for site in SITES)
    )
    network = load(NetworkFile, dealt / "network.toml")
    assert network.task.options == {"total_images": 400, "pneumonia": 0.75}
    agent = tomllib.loads(
        agent_toml("chur", "127.0.0.1:7000", Path("chur.npz")) + (EXAMPLE / "privacy.toml").read_text()
    )
    settings = validate(AgentSettings, agent, where="agent.toml")
    assert settings.task.data == Path.cwd() / "chur.npz"
    (dealt / "alone.toml").write_text((EXAMPLE / "alone.toml").read_text() + options)
    alone = load(SimulationSettings, dealt / "alone.toml")
    assert alone.privacy == settings.privacy
    assert (alone.rounds, alone.schedule) == (network.rounds, network.schedule)


def test_every_site_can_train_its_images_privately_and_score_the_model(dealt: Path) -> None:
    factory = load_task_factory("xrays.py:make_task", EXAMPLE)
    options = tomllib.loads((dealt / "options.toml").read_text())["task"]["options"]
    tasks = []
    for site in SITES:
        context = TaskContext(site, tuple(SITES), 0, data=dealt / f"{site}.npz", options=options)
        tasks.append(factory(context))
    assert sum(task.samples for task in tasks) == tasks[0].total_samples == 400
    assert tasks[0].spec.d == 4290, "as the page and the module say"
    privacy = {"dp": True, "noise_multiplier": 2.0}  # a budget would import Opacus, for seconds
    settings = validate(SimulationSettings, {"privacy": privacy}, where="privacy")
    mechanism = settings.mechanism(tasks[0])
    assert protect_agent(tasks[0], mechanism, settings.algorithm.build(), agent="basel", home=None)
    x = tasks[0].init(0)
    save_file({name: view.clone() for name, view in tasks[0].spec.views(x).items()}, dealt / "model")
    found = xrays.score(dealt / "model", dealt / "basel.npz")
    assert found["images"] == 20
    assert found["accuracy"] == pytest.approx(tasks[0].evaluate(x, {}).accuracy)
    right = 15 * found["sensitivity"] + 5 * found["specificity"]
    assert right == pytest.approx(20 * found["accuracy"])


def test_auc_is_one_for_a_model_that_is_always_right(
    dealt: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images, labels = xrays.load(dealt / "bern.npz", "test")
    assert images.min() >= -1
    assert images.max() <= 1

    class Oracle(xrays.nn.Module):  # type: ignore[name-defined, misc]
        def forward(self, inputs: Any) -> Any:
            return xrays.nn.functional.one_hot(labels, 2).float() * (2.0 - labels.float())[:, None]

    save_file({}, tmp_path / "empty")
    monkeypatch.setattr(xrays, "network", Oracle)
    found = xrays.score(tmp_path / "empty", dealt / "bern.npz")
    assert [found[key] for key in ("accuracy", "sensitivity", "specificity", "auc")] == [1, 1, 1, 1]


def test_a_site_is_missing_where_all_its_neighbours_miss_it() -> None:
    def seen(*missing: tuple[int, int]) -> dict[str, Any]:
        return {
            "mixed": {"chur": 9},
            "missing": [{"peer": "chur", "from": a, "to": b} for a, b in missing],
        }

    views = [seen((4, 4), (5, 9)), seen((3, 8)), {"mixed": {"bern": 9}, "missing": []}]
    found = run.rounds_without("chur", views)
    assert found == [4, 5, 6, 7, 8]
    assert run.spans([4, 5, 8, 10, 11]) == [(4, 5), (8, 8), (10, 11)]
    assert run.rounds_without("bern", views) == []


def test_the_table_of_the_page_is_of_the_record() -> None:
    rows = json.loads((EXAMPLE / "outcome.json").read_text())
    for row in rows:
        (line,) = [
            line for line in PAGE.splitlines() if line.startswith(f"| {row['site']} | {row['images']:,} |")
        ]
        cells = [cell.strip() for cell in line.split("|")[3:-1]]
        pairs = [run.in_percent(row, key) for key in ("accuracy", "sensitivity", "specificity", "auc")]
        missing = run.in_words(row["missing"])
        assert cells == [*pairs, str(row["rounds"]), f"{row['epsilon']:.2f}", missing]
    without = json.loads((EXAMPLE / "outcome-without-privacy.json").read_text())
    for key, name in {"accuracy": "accuracy of\n", "specificity": "specificity ", "auc": "AUC "}.items():
        assert f"{name}{100 * sum(row['together'][key] for row in without) / 4:.1f}" in PAGE


def start(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


@pytest.mark.slow
def test_without_the_data_it_says_where_they_are(tmp_path: Path) -> None:
    done = start(tmp_path / "nowhere.npz")
    assert done.returncode == 2
    assert "nowhere.npz: expected PneumoniaMNIST" in done.stderr
    assert "https://medmnist.com" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_four_hospitals(tmp_path: Path) -> None:
    if not DATA.exists():
        pytest.skip(f"needs {DATA}")
    pytest.importorskip("opacus")
    done = start(DATA, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["site"]: row for row in json.loads((tmp_path / "out" / "outcome.json").read_text())}
    assert set(rows) == set(SITES)
    chur = rows.pop("chur")
    assert chur["missing"]
    assert 0 < chur["rounds"] < 500
    assert 0 < chur["epsilon"] < 3
    for row in rows.values():
        assert row["rounds"] == 500
        assert not row["missing"]
        assert 2.5 < row["epsilon"] <= 3
    gain = [row["together"]["auc"] - row["alone"]["auc"] for row in [chur, *rows.values()]]
    assert sum(gain) > 0
    assert "chur was missing in round" in done.stdout
    assert "disconnected  peer=chur" in done.stdout
    assert "epsilon" in (tmp_path / "out" / "chur" / "chur" / "model.json").read_text()

"""`p2pqg simulate` and `p2pqg compare` as an operator sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from p2pqg.errors import ConfigError
from p2pqg_simulator.commands import compare, simulate
from p2pqg_simulator.folder import RunFolder

QUICK = ("-n", "4", "--task", "quadratic", "--rounds", "8", "--lr", "0.05")


def invoke(*arguments: str) -> Result:
    command = {"simulate": simulate, "compare": compare}[arguments[0]]
    return CliRunner().invoke(command, arguments[1:], catch_exceptions=False)


def test_simulate_stop_resume_and_compare(tmp_path: Path) -> None:
    whole, parts, other = (str(tmp_path / name) for name in ("whole", "parts", "other"))
    assert "after gossip" in invoke("simulate", *QUICK, "--out", whole).output
    stopped = invoke("simulate", *QUICK, "--out", parts, "--stop-after", "5")
    assert "stopped after round 5" in stopped.output
    invoke("simulate", "--resume", "--out", parts)
    assert (
        "largest difference of a parameter of the final local models: 0\n"
        in invoke("compare", whole, parts).output
    )
    invoke("simulate", *QUICK, "--algorithm", "dsgd", "--out", other)
    compared = invoke("compare", whole, other).output
    assert "algorithm.name" in compared
    assert "qg-dsgdm-n" in compared
    assert "schedule.lr" not in compared
    assert "models: 0\n" not in compared


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('agents = 3\nrounds = 4\n[task]\nname = "quadratic"\n[schedule]\nlr = 0.02\n')
    out = str(tmp_path / "out")
    invoke("simulate", "--config", str(file), "--rounds", "2", "--milestones", "1", "--task-option", "d=6",
           "--algorithm-option", "tau=3", "--out", out)  # fmt: skip
    settings = RunFolder(Path(out)).load_summary()["settings"]
    assert settings["agents"] == 3
    assert settings["rounds"] == 2
    assert settings["schedule"]["lr"] == 0.02
    assert settings["schedule"]["milestones"] == [1]
    assert settings["algorithm"]["options"] == {"tau": 3}
    assert settings["task"]["options"] == {"d": 6}


def test_an_own_task_is_found_from_the_file_and_from_anywhere_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "task.py").write_text("from p2pqg.tasks.quadratic import make_task as make\n")
    file = tmp_path / "mine" / "run.toml"
    file.write_text('agents = 3\nrounds = 4\n[task]\nname = "task.py:make"\n')
    out = str(tmp_path / "out")
    invoke("simulate", "--config", str(file), "--out", out, "--stop-after", "2")
    monkeypatch.chdir("/")
    assert "after gossip" in invoke("simulate", "--resume", "--out", out).output


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--lr", "0"), r"command line: schedule\.lr: expected a positive number, found 0"),
        (("-n", "0"), r"command line: agents: expected greater than or equal to 1, found 0"),
        (("--topology", "social"), r"social expects exactly 32 agents"),
        (("--algorithm", "lion"), r"algorithm\.name: expected one of dsgd"),
        (("--algorithm-option", "tau"), r"algorithm-option: expected KEY=VALUE, found 'tau'"),
        (("--algorithm-option", "tau=0"), r"algorithm\.tau: expected 1 or more, found 0"),
        (("--algorithm-option", "beta=0.5"), r"algorithm\.options\.beta: expected this in \[algorithm\]"),
        (("--algorithm", "dsgd", "--beta", "0.5"), r"dsgd takes .*found beta"),
        (("--milestones", "soon"), r"milestones: expected a whole number, found 'soon'"),
        (("--task-option", "d"), r"task-option: expected KEY=VALUE, found 'd'"),
        (("--task", "nothing"), r"task\.name: expected one of"),
        (("--engine", "vmap"), r"engine: vmap expects tasks that are all SupervisedTask; use loop"),
        (("--engine", "distributed"), r"command line: engine: distributed expects to be started by torchrun"),
        (("--engine", "compile"), r"engine: compile expects tasks that are all SupervisedTask; use loop"),
        (("--device", "abacus"), r"device: expected a device of this machine, found abacus"),
        (("--config", "none.toml"), r"none\.toml: cannot be read"),
        (("--resume",), r"expected a run to resume, found no checkpoint"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, arguments: tuple[str, ...], error: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=error):
        invoke("simulate", *QUICK, "--out", str(out), *arguments)
    assert not out.exists()


def test_more_agents_than_samples_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2000"):
        invoke("simulate", "-n", "2000", "--out", str(tmp_path / "out"))


def test_compare_needs_finished_runs(tmp_path: Path) -> None:
    from p2pqg.errors import StorageError

    with pytest.raises(StorageError, match="expected a finished run"):
        invoke("compare", str(tmp_path), str(tmp_path))

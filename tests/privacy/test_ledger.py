"""The ledger on disk: restarts, crashes at every write, older copies, changes, a budget that is spent."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from private_tasks import mechanism, task

from p2pqg.algorithms import build
from p2pqg.errors import ConfigError, LocalProtocolError, StorageError
from p2pqg.home import Home
from p2pqg.privacy import Ledger, Protection, Secret, protect_agent
from p2pqg.privacy.accounting import epsilon
from p2pqg.storage import write_atomically
from p2pqg.tasks.supervised import SupervisedTask

pytest.importorskip("opacus")


def start(folder: Path, own: SupervisedTask | None = None, **changes: Any) -> Protection:
    """What an agent does at a start: open the ledger, then count the incarnation."""
    home = Home(folder)
    own = own or task()
    changes = {"sample_rate": own.batch_size / own.samples, **changes}
    protection = protect_agent(own, mechanism(**changes), build("qg-dsgdm-n"), agent="agent-000", home=home)
    assert protection is not None
    home.next_incarnation()
    return protection


def ledger(protection: Protection) -> Ledger:
    assert isinstance(protection.account, Ledger)
    return protection.account


def train(protection: Protection, steps: range) -> None:
    x = protection.task.init(0)
    for step in steps:
        protection.task.gradient(x, {}, step)


def test_steps_survive_restarts(tmp_path: Path) -> None:
    for already in (0, 3, 6):
        book = ledger(protection := start(tmp_path))
        assert book.steps == already
        train(protection, range(already, already + 3))
    assert book.epsilon() == epsilon(((1.0, 1 / 3, 9),), 1e-5, "rdp")


def test_rounds_that_are_trained_again_cost_again(tmp_path: Path) -> None:
    train(start(tmp_path), range(5))
    train(again := start(tmp_path), range(2, 5))
    assert ledger(again).steps == 8


def test_a_step_is_on_disk_before_its_records_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protection = start(tmp_path)
    own = protection.task
    seen = []
    drawn = own.drawn

    def watched(step: int) -> torch.Tensor:
        content = json.loads(json.loads((tmp_path / "ledger.json").read_text())["content"])
        seen.append(content["pages"][-1]["entries"][-1][1])
        return drawn(step)

    monkeypatch.setattr(own, "drawn", watched)
    train(protection, range(3))
    assert seen == [1, 2, 3]


class Crash(BaseException):
    """The power goes."""


@contextmanager
def crash_at(monkeypatch: pytest.MonkeyPatch, write: int, when: str) -> Iterator[None]:
    """The `write`th file written by privacy or the home is the last, and is `before` or `after` the crash."""
    count = 0

    def write_or_crash(path: Path, data: bytes, mode: int = 0o666) -> None:
        nonlocal count
        count += 1
        if count == write and when == "before":
            raise Crash
        write_atomically(path, data, mode)
        if count == write:
            raise Crash

    with monkeypatch.context() as patch:
        for module in ("privacy.ledger", "privacy.agent", "home"):
            patch.setattr(f"p2pqg.{module}.write_atomically", write_or_crash)
        yield


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", range(1, 10))
def test_a_crash_at_any_write_loses_no_step_and_no_home(
    write: int, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start writes the secret, the ledger and the incarnation; then each step writes the ledger."""
    released = 0

    def some_steps() -> None:
        nonlocal released
        protection = start(tmp_path)
        x = protection.task.init(0)
        for step in range(6):
            protection.task.gradient(x, {}, step)
            released += 1

    with crash_at(monkeypatch, write, when), pytest.raises(Crash):
        some_steps()
    some_steps()
    counted = ledger(start(tmp_path)).steps
    assert released <= counted <= released + 1


def test_no_noise_is_used_twice_by_a_step_of_one_incarnation(tmp_path: Path) -> None:
    protection = start(tmp_path)
    train(protection, range(4))
    with pytest.raises(LocalProtocolError, match="step 2 after step 3"):
        train(protection, range(2, 3))


def test_no_noise_is_used_twice_whatever_is_restored(tmp_path: Path) -> None:
    """Also not after the whole home is put back, when even the incarnation is one of before."""
    home, backup = tmp_path / "home", tmp_path / "backup"
    start(home)
    shutil.copytree(home, backup)
    gradients = []
    for _ in range(3):
        own = start(home).task
        gradients.append(own.gradient(own.init(0), {}, 0).g)
        shutil.rmtree(home)
        shutil.copytree(backup, home)
    for i, g in enumerate(gradients):
        assert not any(bool((g == other).any()) for other in gradients[:i])


def test_the_secret_is_for_its_owner_alone(tmp_path: Path) -> None:
    start(tmp_path)
    secret = tmp_path / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.chmod(0o644)
    with pytest.raises(StorageError, match="only its owner"):
        start(tmp_path)


# ---- older copies


def test_an_older_ledger_of_an_earlier_incarnation_is_refused(tmp_path: Path) -> None:
    train(start(tmp_path), range(2))
    shutil.copy(tmp_path / "ledger.json", tmp_path / "old")
    train(start(tmp_path), range(2))
    shutil.copy(tmp_path / "old", tmp_path / "ledger.json")
    with pytest.raises(StorageError, match=r"ledger\.json: not the newest.*incarnation 1.*2 times"):
        start(tmp_path)


def test_an_older_ledger_of_the_same_incarnation_is_refused(tmp_path: Path) -> None:
    protection = start(tmp_path)
    train(protection, range(2))
    shutil.copy(tmp_path / "ledger.json", tmp_path / "old")
    train(protection, range(2, 5))
    checkpoint = protection.witness()
    line = json.dumps({"round": 5, **protection.measurements()})
    shutil.copy(tmp_path / "old", tmp_path / "ledger.json")
    with pytest.raises(StorageError, match="the checkpoint has paid for 5 steps, it knows of 2"):
        start(tmp_path).require(checkpoint, "the checkpoint")
    gossip_only = json.dumps({"round": 6, "disagreement": 0.0})
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{gossip_only}\n")
    with pytest.raises(StorageError, match=r"metrics\.jsonl has paid for 5 steps"):
        start(tmp_path)


def test_an_older_checkpoint_is_fine(tmp_path: Path) -> None:
    train(protection := start(tmp_path), range(2))
    old = protection.witness()
    train(protection, range(2, 5))
    start(tmp_path).require(old, "the checkpoint")


def test_a_missing_altered_or_foreign_ledger_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(start(tmp_path / name), range(2))
    path = tmp_path / "a" / "ledger.json"
    text = path.read_text()
    path.unlink()
    with pytest.raises(StorageError, match="missing"):
        start(tmp_path / "a")
    for wrong in (text.replace(r"[[1.0, 2]]", r"[[1.0, 1]]"), (tmp_path / "b" / "ledger.json").read_text()):
        assert wrong != text
        path.write_text(wrong)
        with pytest.raises(StorageError, match="altered, or of another home"):
            start(tmp_path / "a")
    path.write_text(text[:-9])
    with pytest.raises(StorageError, match="corrupted"):
        start(tmp_path / "a")


def test_a_checkpoint_of_another_ledger_or_of_none_is_refused(tmp_path: Path) -> None:
    protection = start(tmp_path)
    with pytest.raises(StorageError, match="ledger 0badcafe, which is not in it"):
        protection.require({"ledger": "0badcafe", "steps": 1}, "the checkpoint")
    with pytest.raises(ConfigError, match="expected a checkpoint of private training"):
        protection.require(None, "the checkpoint")


def test_privacy_cannot_be_switched_off_in_its_home(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(ConfigError, match="would undo"):
        protect_agent(task(), None, build("dsgd"), agent="a", home=Home(tmp_path))


def test_a_home_that_trained_without_privacy_is_told_of(tmp_path: Path) -> None:
    Home(tmp_path).next_incarnation()
    assert "without privacy before" in start(tmp_path).notices[0]


# ---- new ledgers, budgets


@pytest.mark.parametrize(
    ("own", "changes", "what"),
    [
        (task(samples=13), {"sample_rate": 1 / 3}, "the data changed"),
        (None, {"delta": 1e-6}, r"delta \(from 1e-05 to 1e-06\) changed"),
        (None, {"sample_rate": 0.5}, r"the sampling rate \(from 0.333333 to 0.5\) changed"),
    ],
    ids=["data", "delta", "rate"],
)
def test_other_data_delta_or_rate_begin_a_new_ledger(
    own: SupervisedTask | None, changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    train(first := start(tmp_path), range(4))
    second = start(tmp_path, own, **changes)
    assert len(second.notices) == 1
    assert re.match(what, second.notices[0])
    assert ledger(second).steps == 0
    (earlier,) = ledger(second).earlier()
    assert earlier["epsilon"] == ledger(first).epsilon()
    assert earlier["same_data"] == (own is None)


def test_other_noise_goes_on_in_the_same_ledger(tmp_path: Path) -> None:
    train(start(tmp_path), range(4))
    train(second := start(tmp_path, noise_multiplier=2.0), range(3))
    assert not second.notices
    assert ledger(second).epsilon() == epsilon(((1.0, 1 / 3, 4), (2.0, 1 / 3, 3)), 1e-5, "rdp")


def test_a_spent_budget_ends_training_also_after_a_restart(tmp_path: Path) -> None:
    budget = epsilon(((1.0, 1 / 3, 3),), 1e-5, "rdp") + 1e-6
    own = start(tmp_path, budget=budget)
    x = own.task.init(0)
    moved = [bool(own.task.gradient(x, {}, step).g.any()) for step in range(5)]
    assert moved == [True, True, True, False, False]
    assert [own.just_spent(), own.just_spent()] == [True, False]
    assert own.report()["spent"]
    assert own.report()["epsilon"] <= budget
    again = start(tmp_path, budget=budget)
    assert not bool(again.task.gradient(x, {}, 0).g.any())
    assert ledger(again).steps == 3


def test_a_delta_that_allows_for_whole_records_is_told_of(tmp_path: Path) -> None:
    assert "not below 1 / 12 samples" in start(tmp_path, delta=0.1).notices[0]


def test_full_gradients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MimeLite needs gradients on all samples"):
        protect_agent(task(), mechanism(), build("mimelite"), agent="a", home=Home(tmp_path))


def test_secrets_are_32_bytes_and_apart() -> None:
    with pytest.raises(ValueError, match="32"):
        Secret(b"short")
    one = Secret(bytes(32))
    assert one.derive("ab", "c") != one.derive("a", "bc")
    assert "x00" not in repr(one)

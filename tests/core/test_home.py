"""An agent's home keeps its promises: nothing half-written is loaded, and a damaged checkpoint costs the work
since the one before it, not the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from p2pqg import checkpoint
from p2pqg.errors import ConfigError, StorageError
from p2pqg.home import CHECKPOINTS, Home

AGREED = {"rounds": "9"}


def home_with(tmp_path: Path, *rounds: int) -> Home:
    home = Home(tmp_path / "home")
    for round in rounds:
        home.save({"x": torch.full((8,), float(round))}, {"agreed": AGREED, "round": round})
    return home


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": flip,
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "something else": lambda path: path.write_bytes(b"not a checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    home, said = home_with(tmp_path, 1, 2, 3), list[str]()
    damage(home.folder / CHECKPOINTS[0])
    found = home.load(AGREED, said.append)
    assert found is not None
    tensors, meta = found
    assert meta["round"] == 2
    assert torch.equal(tensors["x"], torch.full((8,), 2.0))
    assert len(said) == 1
    assert CHECKPOINTS[0] in said[0]


def test_without_any_sound_checkpoint_it_does_not_start_over_by_itself(tmp_path: Path) -> None:
    home = home_with(tmp_path, 1, 2)
    for name in CHECKPOINTS:
        flip(home.folder / name)
    with pytest.raises(StorageError, match=r"no checkpoint in this home can be read.*to start over"):
        home.load(AGREED)
    assert Home(tmp_path / "new").load(AGREED) is None


def test_a_failed_save_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = home_with(tmp_path, 1, 2)

    def full(path: Path) -> None:
        raise StorageError(f"{path}: cannot write: the disk is full")

    monkeypatch.setattr(checkpoint, "replacing", full)
    with pytest.raises(StorageError, match="the disk is full"):
        home.save({"x": torch.zeros(8)}, {"agreed": AGREED, "round": 3})
    found = home.load(AGREED)
    assert found is not None
    assert found[1]["round"] == 2


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_link)
    home = home_with(tmp_path, 1, 2)
    flip(home.folder / CHECKPOINTS[0])
    found = home.load(AGREED)
    assert found is not None
    assert found[1]["round"] == 1


def test_other_settings_are_no_reason_to_fall_back(tmp_path: Path) -> None:
    home = home_with(tmp_path, 1, 2)
    with pytest.raises(ConfigError, match="made with rounds = 9, but the settings say 10"):
        home.load({"rounds": "10"})


def test_what_a_killed_process_left_half_written_is_removed_not_read(tmp_path: Path) -> None:
    home = home_with(tmp_path, 1)
    torn = home.folder / ".checkpoint.safetensors.deadbeef.tmp"
    torn.write_bytes(b"half")
    with home.lock():
        assert not torn.exists()
    found = home.load(AGREED)
    assert found is not None
    assert found[1]["round"] == 1

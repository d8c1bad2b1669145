"""A checkpoint is what was saved, bit for bit, or an error that says why."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from p2pqg import checkpoint
from p2pqg.errors import StorageError

META = {"round": 7, "settings": {"lr": 0.1, "name": "µ"}, "none": None}


def tensors() -> dict[str, torch.Tensor]:
    stacked = torch.arange(12, dtype=torch.float32).view(3, 4)
    return {
        "float32": torch.tensor([1.0, float("nan"), -0.0, float("inf"), 1e-45]),
        "float64": torch.tensor([[0.1], [5e-324]], dtype=torch.float64),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "transposed": stacked.T,
        "row": stacked[1],
    }


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, tensors(), META)
    loaded, meta = checkpoint.load(path)
    assert meta == META
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert bits(loaded[name]) == bits(tensor)
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    checkpoint.save(tmp_path / "again", dict(reversed(tensors().items())), dict(reversed(META.items())))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_any_altered_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("altered") / "state.safetensors"
    checkpoint.save(path, tensors(), META)
    data = bytearray(path.read_bytes())
    # Padding of the JSON header (trailing spaces) carries nothing.
    header_end = 8 + struct.unpack("<Q", data[:8])[0]
    padding = range(len(bytes(data[:header_end]).rstrip(b" ")), header_end)
    position %= len(data)
    data[position] ^= flip
    path.write_bytes(data)
    try:
        loaded, meta = checkpoint.load(path)
    except StorageError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert position in padding
        assert meta == META
        assert all(bits(loaded[name]) == bits(tensor) for name, tensor in tensors().items())


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_names_itself(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, tensors(), META)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StorageError, match=r"state\.safetensors: corrupted"):
        checkpoint.load(path)


def test_a_missing_or_foreign_file_is_said_to_be_so(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(StorageError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(StorageError, match=r"foreign\.safetensors: expected a checkpoint"):
        checkpoint.load(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "the file system is read-only")]
)
def test_a_failed_save_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"a": torch.ones(3)}, {"round": 1})

    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(StorageError, match=reason):
            checkpoint.save(path, {"a": torch.zeros(3)}, {"round": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    assert checkpoint.load(path)[1] == {"round": 1}


def test_a_disk_that_is_full_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StorageError, match="cannot write: the disk is full"):
        checkpoint.save(tmp_path / "a", {"x": torch.ones(3)}, {})
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        checkpoint.save(tmp_path / "none" / "a", {}, {})

"""Data that lies on the device: read as it is, or refused with the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from p2pqg.errors import ConfigError
from p2pqg.tasks import load_csv, load_npz


def test_npz_arrays_become_tensors(tmp_path: Path) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    path = tmp_path / "scans.npz"
    np.savez(path, images=images, labels=np.array([0, 1, 2, 1], dtype=np.uint8))
    inputs, targets = load_npz(path, "images", "labels", dtype=torch.float64)
    assert inputs.dtype == torch.float64
    assert inputs.tolist() == images.tolist()
    assert targets.dtype == torch.int64
    assert targets.tolist() == [0, 1, 2, 1]


def test_fractional_targets_stay_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", inputs=np.ones((2, 1)), targets=np.array([0.5, 1.0]))
    _, targets = load_npz(tmp_path / "a.npz")
    assert targets.dtype == torch.float32
    assert targets.tolist() == [0.5, 1.0]


def test_csv_columns_become_inputs_and_target(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("age,sick, weight\n30,1,70.5\n40,0,80\n")
    inputs, targets = load_csv(path, target="sick")
    assert inputs.tolist() == [[30, 70.5], [40, 80]]
    assert (targets.dtype, targets.tolist()) == (torch.int64, [1, 0])
    _, weights = load_csv(path, target="weight", dtype=torch.float64)
    assert (weights.dtype, weights.tolist()) == (torch.float64, [70.5, 80])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.ones(2), "labels": np.ones(2)}, "expected an array 'targets', found inputs, labels"),
        ({"inputs": np.ones(2), "targets": np.ones(3)}, r"found inputs \(2,\) and targets \(3,\)"),
        ({"inputs": np.ones(2), "targets": np.float64(1)}, "expected one target for each input"),
        ({"inputs": np.array([1, np.nan]), "targets": np.ones(2)}, "expected finite inputs"),
        ({"inputs": np.ones(2), "targets": np.array([1, np.inf])}, "expected finite targets"),
        ({"inputs": np.array(["a", "b"]), "targets": np.ones(2)}, "inputs of a numeric type, found <U1"),
        ({"inputs": np.ones(2) * 1j, "targets": np.ones(2)}, "numeric type, found complex128"),
        ({"inputs": np.array([{}, {}]), "targets": np.ones(2)}, "without pickled objects"),
    ],
)
def test_unusable_archives_are_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ConfigError, match=message) as caught:
        load_npz(tmp_path / "bad.npz")
    assert caught.value.where == str(tmp_path / "bad.npz")
    assert caught.value.key == "task.data"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"plain text"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="expected a numpy archive"):
        load_npz(tmp_path / "bad.npz")


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(ConfigError, match="expected a numpy archive"):
        load_npz(tmp_path / "one.npy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one column 'label', found no line"),
        ("a,b\n1,2\n", "one column 'label', found a, b"),
        ("label,label\n1,2\n", "one column 'label', found label, label"),
        ("a,label\n1,2\n3\n", "line 3: expected 2 values, found 1"),
        ("a,label\n1,cat\n", "line 2: expected numbers: .*'cat'"),
        ("a,label\ninf,1\n", "expected finite inputs"),
        ("a,label\n1,nan\n", "expected finite targets"),
    ],
)
def test_unusable_tables_are_refused_by_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_csv(tmp_path / "bad.csv")
    assert caught.value.where == str(tmp_path / "bad.csv")


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(b"a,label\n\xff\xfe,1\n")
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        load_csv(tmp_path / "bad.csv")


@pytest.mark.parametrize("load", [load_csv, load_npz])
def test_missing_files_are_named(load: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent: task\.data: expected a file, found none"):
        load(tmp_path / "absent")
